//! Finds the virtio devices with registers in memory alone that the machine is said to have.
//! May: alloc. Context: boot. Input: who has started the machine, and the firmware.

use super::{acpi::Firmware, entry::BootInfo};
use crate::{
    dev::host,
    firmware::virtio_mmio::{self, Device, Devices, Surroundings, words},
    hw::{apic::LocalApic, serial},
    log,
};
use alloc::{string::ToString, vec::Vec};
use core::ops::Range;

/// Has L1 look at the devices that the command line or the firmware tells of, as far as they can be used. What L1
/// can map is below `reach`.
pub fn find(info: &BootInfo, firmware: &Firmware, reach: u64) {
    let page = |start: u64| start..start + 4096;
    let ram = info.given.usable.iter().cloned();
    let mut occupied: Vec<(Range<u64>, _)> = ram.map(|range| (range, "RAM")).collect();
    occupied.push((page(LocalApic::physical_base()), "a local APIC"));
    let io_apics = firmware.io_apics.iter();
    occupied.extend(io_apics.map(|apic| (page(apic.address.into()), "an I/O APIC")));
    let lines = [(serial::CONSOLE_IRQ, "the first serial port")];
    let around = Surroundings { occupied: &occupied, lines: &lines, reach };

    let mut devices = Devices::new();
    let mut place = |device: Device| virtio_mmio::place(device, &mut devices, &around);
    for (word, device) in words::devices(&info.given.command_line) {
        let placed = device
            .map_err(|why| why.to_string())
            .and_then(|device| place(device).map_err(|why| why.to_string()));
        if let Err(why) = placed {
            log!("`{word}`: not used: {why}");
        }
    }
    for device in firmware.virtio.iter().cloned() {
        let start = device.registers.start;
        if let Err(why) = place(device) {
            log!("virtio device at {start:#x}: not used: {why}");
        }
    }
    host::start_mmio(devices);
}
