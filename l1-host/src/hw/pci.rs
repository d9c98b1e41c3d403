//! Reaches the configuration space of PCI devices, and their registers in memory.
//! May: unsafe, port-io, alloc. Context: boot; registers: any. Input: the machine's devices.
#![expect(unsafe_code, reason = "ports and memory-mapped registers")]

use super::physmap::DIRECT_MAP;
use crate::{boot::cpus, memory::paging::NoMemory};
use arrayvec::ArrayVec;
use core::ops::Range;
use pv_abi::addr::Hpa;
use spin::Mutex;
use virtio_drivers::transport::pci::bus::{ConfigurationAccess, DeviceFunction};
use x86_64::instructions::port::Port;

/// Configuration mechanism 1, which every PC-like machine has.
const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;
const ENABLE: u32 = 1 << 31;

/// Where registers are mapped: the last GiB of the direct map's first slot, so that they may be
/// anywhere in physical memory. No machine has RAM there whose size fits the direct map's tables.
const WINDOW: u64 = DIRECT_MAP + (511 << 30);
/// Regions that can be mapped.
const REGIONS: usize = 64;

/// Physical regions that are mapped, and where.
static MAPPED: Mutex<ArrayVec<(Range<u64>, u64), REGIONS>> = Mutex::new(ArrayVec::new_const());

/// Address and data go together.
static PORTS: Mutex<()> = Mutex::new(());

/// The configuration space of all devices.
#[derive(Clone, Copy, Debug)]
pub struct Configuration;

fn select(device: DeviceFunction, offset: u8) -> u32 {
    let function = u32::from(device.bus) << 16
        | u32::from(device.device) << 11
        | u32::from(device.function) << 8;
    ENABLE | function | u32::from(offset & !3)
}

impl ConfigurationAccess for Configuration {
    fn read_word(&self, device: DeviceFunction, offset: u8) -> u32 {
        let _both = PORTS.lock();
        // SAFETY: reading configuration space changes nothing that L1 relies on.
        unsafe {
            Port::<u32>::new(ADDRESS).write(select(device, offset));
            Port::<u32>::new(DATA).read()
        }
    }

    fn write_word(&mut self, device: DeviceFunction, offset: u8, data: u32) {
        let _both = PORTS.lock();
        // SAFETY: the caller drives the device; it is told of no memory but L1's own buffers.
        unsafe {
            Port::<u32>::new(ADDRESS).write(select(device, offset));
            Port::<u32>::new(DATA).write(data);
        }
    }

    unsafe fn unsafe_clone(&self) -> Self {
        *self
    }
}

/// Maps `len` bytes of registers at physical address `start`.
///
/// # Errors
/// [`NoMemory`] for tables, or for one more region.
pub fn map(start: u64, len: u64) -> Result<(), NoMemory> {
    let pages = start & !0xfff..start.saturating_add(len).next_multiple_of(4096);
    let mut mapped = MAPPED.lock();
    if mapped.iter().any(|(region, _)| region.start <= pages.start && pages.end <= region.end) {
        return Ok(());
    }
    let at = mapped.last().map_or(WINDOW, |(region, at)| at + (region.end - region.start));
    for page in pages.clone().step_by(4096) {
        cpus::map_registers(at + (page - pages.start), Hpa(page))?;
    }
    mapped.try_push((pages, at)).map_err(|_| NoMemory)
}

/// Where the registers at physical address `start` are, if they are mapped.
#[must_use]
pub fn mapped(start: u64) -> Option<u64> {
    let mapped = MAPPED.lock();
    let (region, at) = mapped.iter().find(|(region, _)| region.contains(&start))?;
    Some(at + (start - region.start))
}

/// Writes the 32-bit register at physical address `start`; nothing happens if it is not mapped.
pub fn write32(start: u64, value: u32) {
    if let Some(at) = mapped(start).filter(|at| at.is_multiple_of(4)) {
        // SAFETY: the page is mapped, uncached, and holds a device's registers.
        unsafe { (at as *mut u32).write_volatile(value) }
    }
}

/// A 16-bit register of a device, mapped.
#[derive(Clone, Copy, Debug)]
pub struct Register16(u64);

impl Register16 {
    /// The one at physical address `start`, if it is mapped.
    #[must_use]
    pub fn at(start: u64) -> Option<Self> {
        mapped(start).filter(|at| at.is_multiple_of(2)).map(Self)
    }

    /// Writes it.
    #[inline]
    pub fn write(self, value: u16) {
        // SAFETY: as for `write32`; mappings of registers stay.
        unsafe { (self.0 as *mut u16).write_volatile(value) }
    }

    /// Reads it.
    #[must_use]
    pub fn read(self) -> u16 {
        // SAFETY: as for `write`.
        unsafe { (self.0 as *const u16).read_volatile() }
    }
}
