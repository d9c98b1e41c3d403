//! Attacks by two vCPUs on devices: one changes rings and registers while the hypervisor reads them for the
//! other.
//! May: nothing. Context: any. Input: random.

use super::devices::{address, shielded};
use crate::{
    judge::Rounds,
    println,
    runtime::{
        abi, memory, second,
        virtio::{self, DATA, Descriptor, Device, SIZE, describe, fuzzed, set_half},
    },
};
use core::sync::atomic::{
    AtomicU64,
    Ordering::{Relaxed, SeqCst},
};
use hostile::values;
use pv_abi::{
    ext::call,
    virtio::{
        block::{HEADER, request},
        mmio,
        queue::{INDIRECT, NEXT},
    },
};
use suite::{
    holds,
    random::Random,
    verdict::{Case, Verdict},
};

/// The slots that both vCPUs attack: a disk, a card.
static SLOTS: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

fn slot(random: &mut Random) -> u64 {
    SLOTS[random.below(2) as usize].load(Relaxed)
}

/// Queues that [`Device::start_all`] sets up.
fn queues(device: &Device) -> u64 {
    if device.slot == SLOTS[0].load(Relaxed) { 2 } else { 5 }
}

/// The words of a chain: as they should be, and otherwise.
fn scribble(random: &mut Random, device: &Device, number: u64) {
    let ring = device.ring(number);
    let index = random.below(4);
    let table = random.pick(&[ring.table(), device.indirect()]);
    let data = memory::frame(DATA + random.below(16));
    let part = match index {
        0 if table == ring.table() && random.once_in(2) => {
            Descriptor { flags: INDIRECT, ..Descriptor::new(device.indirect(), 48) }
        }
        0 => {
            Descriptor { flags: NEXT, next: 1, ..Descriptor::new(device.headers(), HEADER as u32) }
        }
        1 => {
            let flags = NEXT | random.pick(&[0, 2]);
            Descriptor { flags, next: 2, ..Descriptor::new(data, 512) }
        }
        _ => Descriptor::new(device.headers() + HEADER as u64, 1).to_write(),
    };
    describe(table, index, part);
    match random.below(8) {
        0 => memory::word(table + 16 * index).store(address(random), Relaxed),
        1 => memory::word(table + 16 * index + 8).store(values::number(random), Relaxed),
        2 => set_half(ring.driver() + 4 + 2 * random.below(8), random.bits() as u16),
        3 => set_half(ring.driver() + 2, ring.offered().wrapping_add(random.below(4) as u16)),
        // No flushes: the machine takes its time for these.
        4 => {
            let kind = random.pick(&[0, 1, 2, 8, 11, 13, 77]);
            memory::word(device.headers()).store(kind, Relaxed);
        }
        5 => memory::word(device.headers() + 8).store(values::number(random), Relaxed),
        6 => memory::word(ring.device()).store(random.bits(), Relaxed),
        _ => {}
    }
}

/// The other vCPU rewrites rings, headers and registers; this one has the devices look at them.
pub fn rewritten(rounds: &mut Rounds) -> Verdict {
    fn other(random: &mut Random) -> Verdict {
        for _ in 0..64 {
            let device = Device::new(slot(random));
            let number = random.below(queues(&device));
            scribble(random, &device, number);
        }
        let slot = slot(random);
        match random.below(16) {
            0 => virtio::write(slot, mmio::STATUS, 0),
            1 => virtio::write(slot, mmio::QUEUE_READY, random.below(2)),
            2 => virtio::write(slot, mmio::QUEUE_NOTIFY, random.below(5)),
            _ => 0,
        };
        Ok(())
    }
    let [card, _] = virtio::cards()?;
    let disk = virtio::disk()?;
    second::needed()?;
    for (place, device) in SLOTS.iter().zip([disk, card]) {
        place.store(device.slot, Relaxed);
    }
    shielded(rounds, |rounds| {
        let (mut stops, mut goes_on) = (0_u64, 0_u64);
        second::beside(rounds, other, |rounds| {
            while let Some(round) = rounds.next() {
                second::meet(&mut rounds.random)?;
                let random = &mut rounds.random;
                let device = random.pick(&[disk, card]);
                if device.status() != virtio::RUNNING {
                    stops += u64::from(device.needs_reset());
                    // The other may reset it meanwhile.
                    let _ = device.start_all();
                }
                for _ in 0..4 {
                    fuzzed(1);
                    let ring = device.ring(random.below(queues(&device)));
                    scribble(random, &device, ring.number);
                    ring.offer(random.below(4) as u16);
                    abi::call(call::DOORBELL, [device.slot, ring.number, 0, 0]);
                }
                goes_on += u64::from(!device.needs_reset());
                let status = device.status();
                holds!(status >> 8 == 0, "round {round}: Status {status:#x}");
            }
            Ok(())
        })?;
        // Both are as good as new.
        for device in [disk, card] {
            device.start(0).case(format_args!("afterwards"))?;
        }
        println!("# devices.rewritten: stopped {stops}, not {goes_on}");
        holds!(stops > rounds.count / 100, "{stops} devices stopped");
        Ok(())
    })
}

/// The other vCPU makes chains available as fast as the device takes them: it is not to work for that one
/// for ever. It is stopped, or the second vCPU was not fast enough, or they share a CPU.
pub fn endless(rounds: &mut Rounds) -> Verdict {
    fn other(_: &mut Random) -> Verdict {
        let ring = Device::new(SLOTS[0].load(Relaxed)).ring(0);
        for _ in 0..100_000 {
            // As full as can be, all the time.
            set_half(ring.driver() + 2, ring.used().wrapping_add(SIZE));
        }
        Ok(())
    }
    let disk = virtio::disk()?;
    second::needed()?;
    SLOTS[0].store(disk.slot, Relaxed);
    shielded(rounds, |rounds| {
        let (mut stops, mut most) = (0_u64, 0);
        second::beside(rounds, other, |rounds| {
            while rounds.next().is_some() {
                fuzzed(1);
                disk.start(0)?;
                let ring = disk.ring(0);
                memory::word(disk.headers()).store(request::GET_ID.into(), SeqCst);
                for head in 0..u64::from(SIZE) {
                    set_half(ring.driver() + 4 + 2 * head, 0);
                }
                let header = Descriptor::new(disk.headers(), HEADER as u32);
                describe(ring.table(), 1, Descriptor::new(disk.headers() + 64, 21).to_write());
                describe(ring.table(), 0, Descriptor { flags: NEXT, next: 1, ..header });
                // It may have been stopped by the other's index before that.
                abi::call(call::DOORBELL, [disk.slot, 0, 0, 0]);
                stops += u64::from(disk.needs_reset());
                most = most.max(ring.used());
            }
            Ok(())
        })?;
        println!("# devices.endless: stopped {stops}, {most} requests at once at most");
        disk.start(0)
    })
}
