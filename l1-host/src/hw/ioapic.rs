//! Routes the machine's interrupt lines, by its I/O APICs (Intel 82093AA).
//! May: unsafe. Context: any.
#![expect(unsafe_code, reason = "memory-mapped registers")]

use super::physmap::DIRECT_MAP;
use arrayvec::ArrayVec;
use spin::Mutex;

/// An I/O APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoApic {
    /// The physical address of its page.
    pub address: u32,
    /// The number of its first line among those of all.
    pub first_line: u32,
}

/// The one of a PC-like machine whose firmware names none.
pub const USUAL: IoApic = IoApic { address: 0xfec0_0000, first_line: 0 };
/// I/O APICs that are used; further ones stay as the firmware has left them.
pub const MOST: usize = 8;

/// Those of the machine.
pub type IoApics = ArrayVec<IoApic, MOST>;

static ALL: Mutex<IoApics> = Mutex::new(ArrayVec::new_const());

const WINDOW: u64 = 0x10;
const VERSION: u32 = 1;
const ENTRIES: u32 = 0x10;
const MASKED: u32 = 1 << 16;
/// Lines that an I/O APIC has at most; one that is absent seems to have more.
const MOST_LINES: u32 = 240;

impl IoApic {
    /// Puts register `register` into the window; returns the window. The caller has [`ALL`] locked.
    fn select(self, register: u32) -> *mut u32 {
        let base = DIRECT_MAP + u64::from(self.address);
        // SAFETY: the I/O APIC's page is mapped, uncached; its register select is at 0.
        unsafe { (base as *mut u32).write_volatile(register) };
        (base + WINDOW) as *mut u32
    }

    fn set(self, register: u32, value: u32) {
        // SAFETY: the window is part of the same page.
        unsafe { self.select(register).write_volatile(value) }
    }

    /// Its lines; 0 if it is absent.
    fn lines(self) -> u32 {
        // SAFETY: as for `set`.
        let version = unsafe { self.select(VERSION).read_volatile() };
        let lines = (version >> 16 & 0xff) + 1;
        if lines <= MOST_LINES { lines } else { 0 }
    }
}

/// Uses `all`, whose pages are mapped. All lines are masked: what firmware has routed somewhere is not for us.
pub fn start(all: IoApics) {
    let mut used = ALL.lock();
    *used = all;
    for apic in used.iter() {
        for line in 0..apic.lines() {
            apic.set(ENTRIES + 2 * line, MASKED);
        }
    }
}

/// Routes line `line` to `vector` on the CPU with APIC id `destination`: each time that it rises. False if there is
/// no such line.
#[must_use]
pub fn route(line: u32, vector: u8, destination: u32) -> bool {
    program(line, u32::from(vector), destination)
}

/// Masks line `line`.
pub fn mask(line: u32) {
    let _ = program(line, MASKED, 0);
}

fn program(line: u32, low: u32, destination: u32) -> bool {
    let all = ALL.lock();
    let place = |apic: &IoApic| {
        let number = line.checked_sub(apic.first_line)?;
        (number < apic.lines()).then_some((*apic, ENTRIES + 2 * number))
    };
    let Some((apic, entry)) = all.iter().find_map(place) else { return false };
    apic.set(entry + 1, destination << 24);
    apic.set(entry, low);
    true
}
