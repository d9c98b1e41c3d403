//! Asks the firmware's tables which processors there are, and how the machine is switched off.
//! May: unsafe. Context: boot, on the start-up tables. Input: the firmware, trusted.
#![expect(unsafe_code, reason = "the tables are raw memory")]

use super::entry::{KERNEL_BASE, MAPPED};
use crate::{
    firmware::{
        mailbox, s5,
        virtio_mmio::{self, Devices, dsdt},
    },
    hw::{
        exit::{Control, PowerOff, Register},
        ioapic::{self, IoApic, IoApics},
    },
    log,
};
use acpi::{
    AcpiHandler, AcpiTables, PhysicalMapping,
    address::{AddressSpace, GenericAddress},
    fadt::Fadt,
    madt::{Madt, MadtEntry, MultiprocessorWakeupEntry},
};
use arrayvec::ArrayVec;
use core::{iter, ptr::NonNull, slice};
use pv_abi::addr::Hpa;
use switcher::layout::MAX_CPUS;

/// A processor may be started: it is enabled.
const ENABLED: u32 = 1;

/// APIC ids of the processors that may be started, the running one's included; empty without tables
/// that say. More than L1 can drive are left out.
pub type Processors = ArrayVec<u32, MAX_CPUS>;

/// The way to the tables.
#[derive(Clone, Copy, Debug)]
pub enum Root {
    /// The root pointer is at this address.
    Pointer(u64),
    /// What it says.
    Table {
        /// 0 for 32-bit addresses, else 64-bit ones.
        revision: u8,
        /// Where the table of tables is.
        address: usize,
    },
}

/// What the tables say.
#[derive(Debug)]
pub struct Firmware {
    /// The processors.
    pub processors: Processors,
    /// The mailbox in which they wait for a command, if they do: then they start in no other way.
    pub mailbox: Option<Hpa>,
    /// How to switch off.
    pub power_off: Option<PowerOff>,
    /// The I/O APICs.
    pub io_apics: IoApics,
    /// Virtio devices with registers in memory alone.
    pub virtio: Devices,
}

/// What is so on a machine without tables.
impl Default for Firmware {
    fn default() -> Self {
        let io_apics = iter::once(ioapic::USUAL).collect();
        Self {
            processors: Processors::new(),
            mailbox: None,
            power_off: None,
            io_apics,
            virtio: Devices::new(),
        }
    }
}

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

type Tables = AcpiTables<StartUpTables>;

impl Root {
    fn tables(self) -> Option<Tables> {
        // SAFETY: the loader says that they are there.
        let tables = unsafe {
            match self {
                Self::Pointer(address) => Tables::from_rsdp(StartUpTables, address as usize),
                Self::Table { revision, address } => {
                    Tables::from_rsdt(StartUpTables, revision, address)
                }
            }
        };
        tables.ok()
    }
}

/// Reads the tables that `root` leads to. L1 can map what is below `reach`.
#[must_use]
pub fn read(root: Option<Root>, reach: u64) -> Firmware {
    let Some(tables) = root.and_then(Root::tables) else { return Firmware::default() };
    let code = byte_code(&tables).unwrap_or_default();
    let power_off = power_off(&tables, code, reach);
    let mut firmware = Firmware { power_off, ..Firmware::default() };
    firmware.virtio.extend(dsdt::devices(code).take(virtio_mmio::MOST));
    let Ok(madt) = tables.find_table::<Madt>() else { return firmware };
    let mut io_apics = IoApics::new();
    for entry in madt.get().entries() {
        match entry {
            MadtEntry::LocalApic(entry) => firmware.add(entry.apic_id.into(), entry.flags),
            MadtEntry::LocalX2Apic(entry) => firmware.add(entry.x2apic_id, entry.flags),
            MadtEntry::IoApic(entry) => {
                let (address, first_line) =
                    (entry.io_apic_address, entry.global_system_interrupt_base);
                let _ = io_apics.try_push(IoApic { address, first_line });
            }
            MadtEntry::MultiprocessorWakeup(entry) => firmware.mailbox = mailbox(entry, reach),
            _ => {}
        }
    }
    if !io_apics.is_empty() {
        firmware.io_apics = io_apics;
    }
    firmware
}

impl Firmware {
    fn add(&mut self, id: u32, flags: u32) {
        if flags & ENABLED != 0 {
            self.add_processor(id);
        }
    }

    /// Adds a processor that may be started.
    pub fn add_processor(&mut self, id: u32) {
        if !self.processors.contains(&id) {
            let _ = self.processors.try_push(id);
        }
    }
}

fn mailbox(entry: &MultiprocessorWakeupEntry, reach: u64) -> Option<Hpa> {
    match mailbox::place(entry.header.length, entry.mailbox_address, reach) {
        Ok(address) => Some(Hpa(address)),
        Err(wrong) => {
            log!("the firmware's mailbox for processors is not used: {wrong}");
            None
        }
    }
}

/// The firmware's byte code.
fn byte_code(tables: &Tables) -> Option<&'static [u8]> {
    let dsdt = tables.dsdt().ok()?;
    assert!((dsdt.address as u64).saturating_add(dsdt.length.into()) <= MAPPED, "as all tables");
    // SAFETY: the firmware's table says so, and it is mapped as all of them are. Nobody looks at it when the
    // start-up tables are gone.
    let code = unsafe {
        let start = (KERNEL_BASE as usize + dsdt.address) as *const u8;
        slice::from_raw_parts(start, dsdt.length as usize)
    };
    Some(code)
}

/// The registers and values of sleep state S5; none on machines that have other means.
fn power_off(tables: &Tables, code: &[u8], reach: u64) -> Option<PowerOff> {
    let fadt = tables.find_table::<Fadt>().ok()?;
    let [first_value, second_value] = s5::sleep_types(code)?;
    let port = |register: GenericAddress| {
        let io = register.address_space == AddressSpace::SystemIo;
        u16::try_from(register.address).ok().filter(|&port| io && port != 0)
    };
    let Some(first) = fadt.pm1a_control_block().ok().and_then(port) else {
        let register = fadt.sleep_control_register().ok().flatten()?;
        let memory = register.address_space == AddressSpace::SystemMemory;
        let in_reach = memory && register.address != 0 && register.address < reach;
        let in_memory = in_reach.then_some(Register::Memory(register.address));
        let register = port(register).map(Register::Port).or(in_memory)?;
        return Some(PowerOff::Sleep(register, first_value));
    };
    let second = fadt.pm1b_control_block().ok().flatten().and_then(port);
    let smi = u16::try_from(fadt.smi_cmd_port).ok().filter(|&port| port != 0);
    Some(PowerOff::Control(Control {
        first: (first, first_value),
        second: second.map(|port| (port, second_value)),
        acpi_on: smi.map(|port| (port, fadt.acpi_enable)),
    }))
}
