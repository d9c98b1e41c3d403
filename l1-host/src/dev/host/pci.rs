//! Finds virtio devices on PCI, on bus 0 and behind bridges, and has each interrupt by MSI-X.
//! May: alloc. Context: boot. Input: the machine's devices.

use super::{
    hal::L1,
    transport::{Doorbell, Way},
};
use crate::hw::{
    mmio::{self, Register},
    pci::Configuration,
};
use alloc::{format, string::String, vec::Vec};
use spin::Once;
use virtio_drivers::transport::{
    DeviceType,
    pci::{
        PciTransport, VIRTIO_PCI_CAP_COMMON_CFG, VIRTIO_PCI_CAP_NOTIFY_CFG,
        bus::{
            BarInfo, Command, ConfigurationAccess, DeviceFunction, HeaderType, PCI_CAP_ID_VNDR,
            PciRoot,
        },
        virtio_device_type,
    },
};

/// All that there are, in the order of their places. Each look at the buses takes thousands of accesses that leave
/// the machine.
static DEVICES: Once<Vec<(DeviceFunction, DeviceType)>> = Once::new();

/// The numbers of a bridge's own bus, the one behind it, and the last that it leads to.
const BUSES: u8 = 0x18;
/// Capability of message-signalled interrupts, extended.
const MSIX: u8 = 0x11;
const MSIX_ENABLE: u32 = 1 << 31;
/// Where messages to the local APICs go.
const MESSAGES: u32 = 0xfee0_0000;
/// `queue_select` in the common configuration, `queue_msix_vector`, and `queue_notify_off`.
const QUEUE_SELECT: u64 = 22;
const QUEUE_VECTOR: u64 = 26;
const QUEUE_NOTIFY_OFF: u64 = 30;
const NO_PLACE: &str = "its registers have no place";

/// How a device's queues and L1 tell each other of what is new. Physical addresses.
#[derive(Clone, Copy, Debug)]
pub struct Signals {
    /// The common configuration.
    common: u64,
    /// The first doorbell.
    doorbells: u64,
    /// Bytes from one to the next.
    distance: u64,
}

impl Signals {
    /// Has the device's queue `queue` interrupt.
    ///
    /// # Errors
    /// It cannot.
    pub fn route(&self, queue: u16) -> Result<(), String> {
        let vector = self.of_queue(queue, QUEUE_VECTOR)?;
        vector.write(0);
        if vector.read() == 0 { Ok(()) } else { Err("its queue cannot interrupt".into()) }
    }

    /// The doorbell of queue `queue`.
    ///
    /// # Errors
    /// It has no place.
    pub fn doorbell(&self, queue: u16) -> Result<Doorbell, String> {
        let number = self.of_queue(queue, QUEUE_NOTIFY_OFF)?.read();
        let register = Register::at(self.doorbells + u64::from(number) * self.distance);
        Ok(Doorbell::Pci(register.ok_or(NO_PLACE)?, queue))
    }

    /// The register at `offset` of the common configuration, which is now that of queue `queue`.
    fn of_queue(&self, queue: u16, offset: u64) -> Result<Register<u16>, String> {
        let register = |offset| Register::at(self.common + offset).ok_or(NO_PLACE);
        register(QUEUE_SELECT)?.write(queue);
        Ok(register(offset)?)
    }
}

/// Calls `found` for each device of `kind`, in the order of their places.
pub fn each(
    kind: DeviceType,
    way: Way,
    mut found: impl FnMut(DeviceFunction, Result<(PciTransport, Signals), String>),
) {
    let mut root = PciRoot::new(Configuration);
    for &(place, _) in DEVICES.call_once(look).iter().filter(|(_, other)| *other == kind) {
        found(place, open(&mut root, place, way));
    }
}

/// The virtio devices of all buses that firmware has numbered.
fn look() -> Vec<(DeviceFunction, DeviceType)> {
    let mut root = PciRoot::new(Configuration);
    let mut devices = Vec::new();
    let mut reached = [false; 256];
    reached[0] = true;
    // A bus behind another has the greater number: one pass finds all, and ends whatever bridges say.
    for bus in 0..=u8::MAX {
        if !reached[usize::from(bus)] {
            continue;
        }
        for (place, info) in root.enumerate_bus(bus) {
            if info.header_type == HeaderType::PciPciBridge {
                reached[usize::from(pass_through(&mut root, place))] = true;
            } else if let Some(kind) = virtio_device_type(&info) {
                devices.push((place, kind));
            }
        }
    }
    devices
}

/// Has the bridge at `place` let accesses of both directions through; the bus behind it.
fn pass_through(root: &mut PciRoot<Configuration>, place: DeviceFunction) -> u8 {
    let (_, command) = root.get_status_command(place);
    root.set_command(place, command | Command::MEMORY_SPACE | Command::BUS_MASTER);
    (Configuration.read_word(place, BUSES) >> 8) as u8
}

fn open(
    root: &mut PciRoot<Configuration>,
    place: DeviceFunction,
    way: Way,
) -> Result<(PciTransport, Signals), String> {
    map_registers(root, place)?;
    root.set_command(place, Command::MEMORY_SPACE | Command::BUS_MASTER);
    enable_messages(root, place, way)?;
    let (common, _) = structure(root, place, VIRTIO_PCI_CAP_COMMON_CFG)?;
    let (doorbells, capability) = structure(root, place, VIRTIO_PCI_CAP_NOTIFY_CFG)?;
    let distance = u64::from(Configuration.read_word(place, capability + 16));
    let transport = PciTransport::new::<L1, _>(root, place).map_err(|why| format!("{why}"))?;
    Ok((transport, Signals { common, doorbells, distance }))
}

/// Keeps the device at `place` from memory for ever.
pub fn keep_off_the_bus(place: DeviceFunction) {
    PciRoot::new(Configuration).set_command(place, Command::empty());
}

fn map_registers(root: &mut PciRoot<Configuration>, place: DeviceFunction) -> Result<(), String> {
    let bars = root.bars(place).map_err(|why| format!("{why}"))?;
    for (start, len) in bars.iter().flatten().filter_map(memory) {
        mmio::map(start, len).map_err(|_| String::from("L1 cannot map its registers"))?;
    }
    Ok(())
}

/// Memory behind base address register `index`, if it has been given any.
fn bar(root: &mut PciRoot<Configuration>, place: DeviceFunction, index: u8) -> Option<(u64, u64)> {
    memory(&root.bar_info(place, index).ok()??)
}

/// Where memory starts, and its bytes, if there is any.
fn memory(bar: &BarInfo) -> Option<(u64, u64)> {
    bar.memory_address_size().filter(|&(start, len)| start != 0 && len != 0)
}

/// Routes message 0 as `way` says.
fn enable_messages(
    root: &mut PciRoot<Configuration>,
    place: DeviceFunction,
    way: Way,
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
    for (offset, value) in
        [(0, MESSAGES | way.apic_id << 12), (4, 0), (8, u32::from(way.vector)), (12, 0)]
    {
        Register::<u32>::at(entry + offset).ok_or(NO_PLACE)?.write(value);
    }
    let head = Configuration.read_word(place, capability.offset);
    // The mask of the whole function is off with it.
    Configuration.write_word(place, capability.offset, head & !(1 << 30) | MSIX_ENABLE);
    Ok(())
}

/// The physical address of the first structure of `kind` among the device's registers, and where the
/// capability is that says so.
fn structure(
    root: &mut PciRoot<Configuration>,
    place: DeviceFunction,
    kind: u8,
) -> Result<(u64, u8), String> {
    let found = root.capabilities(place).find(|capability| {
        capability.id == PCI_CAP_ID_VNDR && (capability.private_header >> 8) as u8 == kind
    });
    let found = found.ok_or_else(|| format!("it has no configuration of kind {kind}"))?;
    let index = Configuration.read_word(place, found.offset + 4) as u8;
    let offset = Configuration.read_word(place, found.offset + 8);
    let (start, _) = bar(root, place, index).ok_or(NO_PLACE)?;
    Ok((start + u64::from(offset), found.offset))
}
