//! Looks for a table of Intel's MultiProcessor Specification on machines whose firmware has no ACPI.
//! May: nothing. Context: boot, on the start-up tables. Input: the firmware, trusted.

use super::{
    acpi::Firmware,
    entry::{MAPPED, copy},
};
use crate::{
    firmware::mp_table::{self, Entry, POINTER},
    hw::ioapic::IoApic,
};
use core::{iter, ops::Range};

/// Where the structure that leads to the table may be (section 4): at the end of base memory, and in the firmware's own
/// memory.
const PLACES: [Range<u64>; 2] = [0x9_fc00..0xa_0000, 0xf_0000..0x10_0000];
/// The longest table that is read: of the most processors that L1 drives, and of a hundred lines.
const MOST: usize = 4096;

/// Adds the processors, and the I/O APIC, to what else the firmware says.
pub fn read(firmware: &mut Firmware) {
    let places = PLACES.into_iter().flat_map(|place| place.step_by(POINTER));
    let Some(table) = places.filter_map(|at| mp_table::table_of(&copy(at))).next() else { return };
    let table = u64::from(table);
    if table + MOST as u64 > MAPPED {
        return;
    }
    let read: [u8; MOST] = copy(table);
    let length = read.first_chunk().and_then(mp_table::length);
    let Some(whole) = length.and_then(|length| read.get(..length)) else { return };
    for entry in mp_table::entries(whole) {
        if let Entry::Processor(id) = entry {
            firmware.add_processor(id.into());
        }
    }
    let io_apic = mp_table::entries(whole).find_map(|entry| match entry {
        Entry::IoApic(address) => Some(IoApic { address, first_line: 0 }),
        Entry::Processor(_) => None,
    });
    if let Some(io_apic) = io_apic {
        // Nobody numbers the lines of several.
        firmware.io_apics = iter::once(io_apic).collect();
    }
}
