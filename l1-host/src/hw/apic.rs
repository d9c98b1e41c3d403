//! Drives the local APIC.
//! May: unsafe, msr. Context: any.
#![expect(unsafe_code, reason = "memory-mapped registers")]

use super::{cpu, features::Features, physmap::DIRECT_MAP};
use pv_abi::msr::{arch, x2apic};

/// Vectors of L1's own interrupts. 0x80 is the guest's; the rest of 32..255 is unused.
pub mod vector {
    /// Local APIC timer.
    pub const TIMER: u8 = 0x40;
    /// COM1 has received something.
    pub const CONSOLE: u8 = 0x41;
    /// Another CPU has something for this one: a look at its queues is due.
    pub const KICK: u8 = 0x42;
    /// A disk has answers.
    pub const DISK: u8 = 0x43;
    /// A network card has received something.
    pub const NETWORK: u8 = 0x44;
    /// The first of the vectors of devices' interrupt lines, one each.
    pub const FIRST_LINE: u8 = 0x50;
    /// The last of them.
    pub const LAST_LINE: u8 = 0x6f;
    /// The local APIC had nothing after all.
    pub const SPURIOUS: u8 = 0xff;
}

/// The local APIC of a CPU, in the mode it is used in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocalApic {
    /// Registers in memory, at this address in the direct map.
    Memory(u64),
    /// Registers as MSRs.
    X2apic,
}

const ENABLE: u64 = 1 << 11;
const X2APIC_ENABLE: u64 = 1 << 10;
const LVT_MASKED: u32 = 1 << 16;
const LVT_TSC_DEADLINE: u32 = 2 << 17;
/// The timer counts at the full rate.
const BY_ONE: u32 = 0b1011;
const SOFTWARE_ENABLE: u32 = 1 << 8;
#[cfg(feature = "switcher-traps")]
const ICR_NMI: u32 = 4 << 8;
const ICR_INIT: u32 = 5 << 8;
const ICR_STARTUP: u32 = 6 << 8;
const ICR_SELF: u32 = 1 << 18;
const ICR_PENDING: u32 = 1 << 12;
const ICR_ASSERT: u32 = 1 << 14;
/// The upper half of the ICR, where registers are in memory.
const ICR_HIGH: u32 = x2apic::ICR + 1;

impl LocalApic {
    /// Enables this CPU's APIC. Its page must be mapped uncached if it is used through memory.
    #[must_use]
    pub fn enable(features: &Features) -> Self {
        let base = cpu::rdmsr(arch::APIC_BASE);
        let apic = if features.x2apic {
            cpu::wrmsr(arch::APIC_BASE, base | ENABLE | X2APIC_ENABLE);
            Self::X2apic
        } else {
            cpu::wrmsr(arch::APIC_BASE, base | ENABLE);
            Self::Memory(DIRECT_MAP + (base & 0x000f_ffff_ffff_f000))
        };
        apic.write(x2apic::SVR, SOFTWARE_ENABLE | u32::from(vector::SPURIOUS));
        for lvt in [x2apic::LVT_LINT0, x2apic::LVT_LINT1, x2apic::LVT_ERROR] {
            apic.write(lvt, LVT_MASKED);
        }
        apic.write(x2apic::TPR, 0);
        apic.write(x2apic::TIMER_DIVIDE, BY_ONE);
        apic.write(x2apic::LVT_TIMER, u32::from(vector::TIMER));
        apic
    }

    /// Physical address of the memory-mapped registers.
    #[must_use]
    pub fn physical_base() -> u64 {
        cpu::rdmsr(arch::APIC_BASE) & 0x000f_ffff_ffff_f000
    }

    fn write(self, register: u32, value: u32) {
        match self {
            Self::X2apic => cpu::wrmsr(register, u64::from(value)),
            // SAFETY: the APIC page is mapped, uncached, and the register is one of the APIC's.
            Self::Memory(base) => unsafe {
                (Self::address(base, register) as *mut u32).write_volatile(value);
            },
        }
    }

    fn read(self, register: u32) -> u32 {
        match self {
            Self::X2apic => cpu::rdmsr(register) as u32,
            // SAFETY: as for `write`.
            Self::Memory(base) => unsafe {
                (Self::address(base, register) as *const u32).read_volatile()
            },
        }
    }

    const fn address(base: u64, register: u32) -> u64 {
        base + ((register - x2apic::FIRST) as u64) * 16
    }

    /// This CPU's APIC id.
    #[must_use]
    pub fn id(self) -> u32 {
        let id = self.read(x2apic::ID);
        if self == Self::X2apic { id } else { id >> 24 }
    }

    /// Ends the interrupt being handled.
    #[inline]
    pub fn eoi(self) {
        self.write(x2apic::EOI, 0);
    }

    /// Lets the timer count down once from `count` at the full rate; 0 stops it. Not after
    /// [`Self::use_deadline`].
    pub fn start_timer(self, count: u32) {
        self.write(x2apic::TIMER_INITIAL, count);
    }

    /// Sends interrupt `vector` to the CPU with APIC id `destination`.
    pub fn send(self, destination: u32, vector: u8) {
        self.command(destination, ICR_ASSERT | u32::from(vector));
    }

    /// Sends interrupt `vector` to this CPU.
    pub fn send_self(self, vector: u8) {
        self.command(0, ICR_ASSERT | ICR_SELF | u32::from(vector));
    }

    /// Sends an NMI to the CPU with APIC id `destination`.
    #[cfg(feature = "switcher-traps")]
    pub fn send_nmi(self, destination: u32) {
        self.command(destination, ICR_ASSERT | ICR_NMI);
    }

    /// Resets the CPU with APIC id `destination`, which then waits for [`Self::send_startup`].
    pub fn send_init(self, destination: u32) {
        self.command(destination, ICR_ASSERT | ICR_INIT);
    }

    /// Starts a CPU that waits, in real mode, at physical page number `page`.
    pub fn send_startup(self, destination: u32, page: u8) {
        self.command(destination, ICR_ASSERT | ICR_STARTUP | u32::from(page));
    }

    fn command(self, destination: u32, command: u32) {
        match self {
            Self::X2apic => {
                cpu::wrmsr(x2apic::ICR, u64::from(destination) << 32 | u64::from(command));
            }
            Self::Memory(_) => {
                self.write(ICR_HIGH, destination << 24);
                self.write(x2apic::ICR, command);
                while self.read(x2apic::ICR) & ICR_PENDING != 0 {
                    core::hint::spin_loop();
                }
            }
        }
    }

    /// What is left of the count.
    #[must_use]
    pub fn timer_count(self) -> u32 {
        self.read(x2apic::TIMER_CURRENT)
    }

    /// Puts the timer into TSC-deadline mode.
    pub fn use_deadline(self) {
        self.write(x2apic::LVT_TIMER, LVT_TSC_DEADLINE | u32::from(vector::TIMER));
    }
}
