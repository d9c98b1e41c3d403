//! A bundle comes out as it went in, and damage is seen.

use super::*;
use alloc::vec;

fn sample() -> Bundle {
    Bundle {
        guests: vec![Guest {
            name: "g".into(),
            kind: Kind::Native {
                image: Image {
                    entry: 0x10_0000,
                    segments: vec![Segment {
                        addr: 0x10_0000,
                        memory: 4096,
                        data: Blob { offset: 4096, len: 10 },
                        write: true,
                        execute: true,
                    }],
                },
                module: None,
            },
            cmdline: "a=b".into(),
            memory: 1 << 25,
            vcpus: 1,
            backend: Backend::Auto,
            weight: 250,
            restart: Restart::OnFailure,
            core: true,
            disks: vec![Disk {
                slot: 3,
                on: MachineDisk::Pci(PciPlace { bus: 0, device: 3, function: 1 }),
                partition: Some(Partition::Label("root".into())),
                name: "root".into(),
                read_only: true,
            }],
            cards: vec![Card {
                slot: 4,
                network: "lan".into(),
                mac: None,
                ip: Some([10, 0, 2, 15]),
                rate: 1000,
                mtu: 1500,
            }],
            devices: vec![Device { slot: 5, kind: DeviceKind::Vsock { cid: 3 } }],
        }],
        networks: vec![Network { name: "lan".into(), uplink: Some(Uplink::First) }],
        stats: true,
        stats_every: 5,
        trace: Trace::Always,
        console: ConsoleMode::Prefix,
        siblings: Siblings::OneGuest,
        pti: Pti::Auto,
        port: ConsolePort::Virtio,
        wall_seconds: 7,
    }
}

#[test]
fn a_bundle_survives_the_trip() {
    let mut file = sample().encode().unwrap();
    file.resize(4096 + 10, 0);
    assert_eq!(Bundle::decode(&file).unwrap(), sample());
}

#[test]
fn damage_is_named() {
    let mut file = sample().encode().unwrap();
    assert_eq!(Bundle::decode(&file), Err(Error::Blob), "blob past the end");
    assert_eq!(Bundle::decode(&file[..20]), Err(Error::Encoding));
    assert_eq!(Bundle::decode(b"ELF"), Err(Error::NotABundle));
    file[8] += 1;
    assert_eq!(Bundle::decode(&file), Err(Error::Version(VERSION + 1)));
}
