//! Finds virtio devices on PCI bus 0 and has each interrupt by MSI-X.
//! May: alloc. Context: boot. Input: the machine's devices.

use super::hal::L1;
use crate::{
    hw::pci::{self, Configuration},
    log,
};
use alloc::{boxed::Box, format, string::String, vec::Vec};
use virtio_drivers::transport::{
    DeviceType,
    pci::{
        PciTransport, VIRTIO_PCI_CAP_COMMON_CFG,
        bus::{Command, ConfigurationAccess, DeviceFunction, PCI_CAP_ID_VNDR, PciRoot},
        virtio_device_type,
    },
};

/// Capability of message-signalled interrupts, extended.
const MSIX: u8 = 0x11;
const MSIX_ENABLE: u32 = 1 << 31;
/// Where messages to the local APICs go.
const MESSAGES: u32 = 0xfee0_0000;
/// `queue_select` in the common configuration, and `queue_msix_vector`.
const QUEUE_SELECT: u64 = 22;
const QUEUE_VECTOR: u64 = 26;

/// Has a device's first queue interrupt; says whether it can.
type Route = Box<dyn FnOnce() -> bool>;

/// What `make` makes of each device of `kind`, in the order of their places on the bus. They interrupt the
/// CPU with this APIC id by `vector`. Of one that cannot be used the log says why, by `name`.
pub fn each<T>(
    name: &str,
    kind: DeviceType,
    apic_id: u32,
    vector: u8,
    mut make: impl FnMut(DeviceFunction, PciTransport, Route) -> Result<T, String>,
) -> Vec<T> {
    let mut root = PciRoot::new(Configuration);
    let found: Vec<_> = root
        .enumerate_bus(0)
        .filter(|(_, info)| virtio_device_type(info) == Some(kind))
        .map(|(place, _)| place)
        .collect();
    let mut made = Vec::new();
    for place in found {
        let opened = open(&mut root, place, apic_id, vector);
        match opened.and_then(|(transport, route)| make(place, transport, route)) {
            Ok(device) => made.push(device),
            Err(why) => log!("{name} at {place}: not used: {why}"),
        }
    }
    made
}

fn open(
    root: &mut PciRoot<Configuration>,
    place: DeviceFunction,
    apic_id: u32,
    vector: u8,
) -> Result<(PciTransport, Route), String> {
    map_registers(root, place)?;
    root.set_command(place, Command::MEMORY_SPACE | Command::BUS_MASTER);
    enable_messages(root, place, apic_id, vector)?;
    let common = common_configuration(root, place)?;
    let transport = PciTransport::new::<L1, _>(root, place).map_err(|why| format!("{why}"))?;
    let route = move || {
        pci::exchange16(common + QUEUE_SELECT, 0);
        pci::exchange16(common + QUEUE_VECTOR, 0) == Some(0)
    };
    Ok((transport, Box::new(route)))
}

/// Keeps the device at `place` from memory for ever.
pub fn keep_off_the_bus(place: DeviceFunction) {
    PciRoot::new(Configuration).set_command(place, Command::empty());
}

fn map_registers(root: &mut PciRoot<Configuration>, place: DeviceFunction) -> Result<(), String> {
    for index in 0..6 {
        if let Some((start, len)) = bar(root, place, index) {
            pci::map(start, len).map_err(|_| String::from("L1 cannot map its registers"))?;
        }
    }
    Ok(())
}

/// Memory behind base address register `index`, if it has been given any.
fn bar(root: &mut PciRoot<Configuration>, place: DeviceFunction, index: u8) -> Option<(u64, u64)> {
    let info = root.bar_info(place, index).ok()??;
    info.memory_address_size().filter(|&(start, len)| start != 0 && len != 0)
}

/// Routes message 0 to `vector` of the CPU with this APIC id.
fn enable_messages(
    root: &mut PciRoot<Configuration>,
    place: DeviceFunction,
    apic_id: u32,
    vector: u8,
) -> Result<(), String> {
    let capability = root.capabilities(place).find(|capability| capability.id == MSIX);
    let capability = capability.ok_or("it has no MSI-X")?;
    let table = Configuration.read_word(place, capability.offset + 4);
    let (start, len) = bar(root, place, (table & 7) as u8).ok_or("it has no MSI-X table")?;
    let entry = u64::from(table & !7);
    if entry + 16 > len {
        return Err("its MSI-X table is out of place".into());
    }
    let entry = start + entry;
    for (offset, value) in [(0, MESSAGES | apic_id << 12), (4, 0), (8, u32::from(vector)), (12, 0)]
    {
        pci::write32(entry + offset, value);
    }
    let head = Configuration.read_word(place, capability.offset);
    // The mask of the whole function is off with it.
    Configuration.write_word(place, capability.offset, head & !(1 << 30) | MSIX_ENABLE);
    Ok(())
}

/// The physical address of the common configuration.
fn common_configuration(
    root: &mut PciRoot<Configuration>,
    place: DeviceFunction,
) -> Result<u64, String> {
    let common = root.capabilities(place).find(|capability| {
        capability.id == PCI_CAP_ID_VNDR
            && (capability.private_header >> 8) as u8 == VIRTIO_PCI_CAP_COMMON_CFG
    });
    let common = common.ok_or("it has no common configuration")?;
    let index = Configuration.read_word(place, common.offset + 4) as u8;
    let offset = Configuration.read_word(place, common.offset + 8);
    let (start, _) = bar(root, place, index).ok_or("its registers have no place")?;
    Ok(start + u64::from(offset))
}
