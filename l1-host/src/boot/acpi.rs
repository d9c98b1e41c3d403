//! Asks the firmware's tables which processors there are.
//! May: unsafe. Context: boot, on the start-up tables. Input: the firmware, trusted.
#![expect(unsafe_code, reason = "the tables are raw memory")]

use super::pvh::{KERNEL_BASE, MAPPED};
use acpi::{
    AcpiHandler, AcpiTables, PhysicalMapping,
    madt::{Madt, MadtEntry},
};
use arrayvec::ArrayVec;
use core::ptr::NonNull;
use switcher::layout::MAX_CPUS;

/// A processor may be started: it is enabled.
const ENABLED: u32 = 1;

/// APIC ids of the processors that may be started, the running one's included; empty without tables
/// that say. More than L1 can drive are left out.
pub type Processors = ArrayVec<u32, MAX_CPUS>;

#[derive(Clone, Copy)]
struct StartUpTables;

impl AcpiHandler for StartUpTables {
    unsafe fn map_physical_region<T>(
        &self,
        address: usize,
        size: usize,
    ) -> PhysicalMapping<Self, T> {
        assert!((address + size) as u64 <= MAPPED, "ACPI tables lie below 4 GiB");
        let mapped = (KERNEL_BASE as usize + address) as *mut T;
        // SAFETY: the start-up tables map everything below `MAPPED` there, and stay loaded until
        // the tables have been read.
        unsafe { PhysicalMapping::new(address, NonNull::new_unchecked(mapped), size, size, *self) }
    }

    fn unmap_physical_region<T>(_: &PhysicalMapping<Self, T>) {}
}

/// Reads the table of interrupt controllers, found by way of the root pointer at `rsdp`.
#[must_use]
pub fn processors(rsdp: u64) -> Processors {
    let mut found = Processors::new();
    if rsdp == 0 {
        return found;
    }
    // SAFETY: the loader says that the pointer is there.
    let Ok(tables) = (unsafe { AcpiTables::from_rsdp(StartUpTables, rsdp as usize) }) else {
        return found;
    };
    let Ok(madt) = tables.find_table::<Madt>() else { return found };
    for entry in madt.get().entries() {
        let processor = match entry {
            MadtEntry::LocalApic(entry) => (u32::from(entry.apic_id), entry.flags),
            MadtEntry::LocalX2Apic(entry) => (entry.x2apic_id, entry.flags),
            _ => continue,
        };
        let (id, flags) = processor;
        if flags & ENABLED != 0 && !found.contains(&id) {
            let _ = found.try_push(id);
        }
    }
    found
}
