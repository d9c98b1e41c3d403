//! The vCPU as operations find it: its PVCS, its page tables, its user mode.
#![expect(unsafe_code, reason = "page tables, model-specific registers and the PVCS")]

use crate::code::{self, Kernel, Registers, entry};
use core::sync::atomic::{
    AtomicU16, AtomicU32, AtomicU64,
    Ordering::{AcqRel, Relaxed},
};
use l2_guest::{frame::Frame, hypercall};
use pv_abi::{
    PAGE_SIZE,
    addr::Gva,
    event::RFLAGS_FORCED,
    ext::{Features, NativeBoot},
    msr::{self, arch, x2apic},
    pvcs::{flags, offset, vector},
    selectors::USER_CS_SS,
};

pub const P: u64 = 1;
pub const W: u64 = 2;
pub const U: u64 = 4;
pub const A: u64 = 1 << 5;
pub const D: u64 = 1 << 6;

/// Where pages are mapped: a slot of the root that nothing else uses.
const BASE: u64 = 2 << 39;
/// Pages there.
const PAGES: usize = 512;
/// The page that user code is copied to.
const USER_CODE: usize = PAGES - 1;
/// Where the kernel sees it as code of its own.
const REFLECTED: usize = PAGES - 2;
/// The vector of the timer and of interrupts to oneself.
pub const VECTOR: u64 = 0x41;
/// LVT: fires at a value of the TSC.
const DEADLINE: u64 = 2 << 17;

/// What operations share.
#[derive(Debug)]
pub struct Machine {
    leaf: u64,
    user_code: u64,
    /// A page for data.
    pub data: u64,
    /// Roots of two address spaces with the same content.
    pub roots: [u64; 2],
    /// Ticks that code without an operation takes.
    nothing: u64,
}

fn word(address: u64) -> &'static AtomicU64 {
    // SAFETY: a page table or the PVCS, mapped one to one and accessed as atomics only.
    unsafe { &*(address as *const AtomicU64) }
}

fn take() -> u64 {
    Frame::take().expect("there is memory").gpa()
}

/// Writes a register that the hypervisor has.
pub fn wrmsr(index: u32, value: u64) {
    // SAFETY: what is written are entries and pages of this program, and the local APIC.
    unsafe { hypercall::wrmsr(index, value) }.expect("the hypervisor has this register");
}

impl Machine {
    /// Takes PVCS and entries over from the library.
    pub fn new() -> Self {
        let [leaf, directory, pointers, user_code, data] = core::array::from_fn(|_| take());
        word(directory).store(leaf | P | W | U | A, Relaxed);
        word(pointers).store(directory | P | W | U | A, Relaxed);
        let first = NativeBoot::TABLES.0;
        word(first + 8 * Gva(BASE).index(4) as u64).store(pointers | P | W | U | A, Relaxed);
        let second = take();
        for index in (0..PAGE_SIZE as u64).step_by(8) {
            word(second + index).store(word(first + index).load(Relaxed), Relaxed);
        }
        for (index, value) in [
            (msr::PVM_VCPU_STRUCT, entry::pvcs()),
            (msr::PVM_EVENT_ENTRY, entry::event()),
            (msr::PVM_RETU_RIP, entry::retu()),
            (arch::LSTAR, entry::syscall()),
            (x2apic::LVT_TIMER, DEADLINE | VECTOR),
        ] {
            wrmsr(index, value);
        }
        let mut machine = Self { leaf, user_code, data, roots: [first, second], nothing: 0 };
        machine.map(USER_CODE, user_code | P | U | A);
        let nothing = || machine.ticks(Kernel::nothing(), &Registers::default());
        machine.nothing = (0..8).map(|_| nothing()).min().expect("there are some");
        machine
    }

    /// Address of page `index`.
    pub const fn page(index: usize) -> u64 {
        BASE + (index * PAGE_SIZE) as u64
    }

    /// Gives page `index` another entry, without a flush.
    pub fn set(&self, index: usize, entry: u64) {
        word(self.leaf + 8 * index as u64).store(entry, Relaxed);
    }

    /// The same, and flushes it.
    pub fn map(&self, index: usize, entry: u64) -> u64 {
        self.set(index, entry);
        hypercall::flush_page(Self::page(index));
        Self::page(index)
    }

    fn ticks(&self, code: Kernel, registers: &Registers) -> u64 {
        // SAFETY: operations touch the pages that they have mapped.
        let ticks = unsafe { code::run(code, registers) };
        drain();
        ticks
    }

    /// What the operation of `code` takes.
    pub fn run(&self, code: Kernel, registers: Registers) -> u64 {
        self.ticks(code, &registers).wrapping_sub(self.nothing)
    }

    /// Ticks since `registers.r8`, for code that does not read the time first.
    pub fn run_until(&self, code: Kernel, registers: Registers) -> u64 {
        self.ticks(code, &registers) - 1
    }

    /// What the operation of `code` takes in user mode, on the way into the kernel.
    pub fn run_user(&self, code: &[u8], registers: Registers) -> u64 {
        self.run_user_by(entry::retu(), code, registers)
    }

    /// The same, by a return that maps the page of the last fault.
    pub fn run_user_prefault(&self, code: &[u8], registers: Registers) -> u64 {
        self.run_user_by(entry::retu_prefault(), code, registers)
    }

    fn run_user_by(&self, retu: u64, code: &[u8], registers: Registers) -> u64 {
        self.prepare_user(code, USER_CS_SS, Self::page(USER_CODE));
        // Straight to the SYSCALL: the time is read in user mode.
        // SAFETY: the PVCS is filled for user mode, whose code is ours.
        let ticks = unsafe { code::run_at(retu, &registers) };
        drain();
        ticks.wrapping_sub(self.nothing)
    }

    /// What a return to user mode by `code` takes.
    pub fn run_return(&self, code: Kernel, selectors: u32, sysret: bool) -> u64 {
        self.prepare_user(code::user::arrive(), selectors, Self::page(USER_CODE));
        if !sysret {
            word(entry::pvcs() + offset::RCX as u64).store(0, Relaxed);
        }
        wrmsr(arch::LSTAR, entry::entered_user());
        let ticks = self.ticks(code, &Registers::default());
        wrmsr(arch::LSTAR, entry::syscall());
        ticks.wrapping_sub(self.nothing)
    }

    /// What a return to user mode takes that the CPU refuses, for CS is none.
    pub fn run_bad_return(&self) -> u64 {
        let data = USER_CS_SS >> 16;
        self.prepare_user(&[], data | data << 16, Self::page(USER_CODE));
        self.run(Kernel::eretu(), Registers::default())
    }

    /// What a SYSCALL takes from a page of the kernel's that is not the hypervisor's business.
    pub fn run_reflected(&self) -> u64 {
        // It has to end by its event.
        let code = code::user::syscall();
        self.prepare_user(code, USER_CS_SS, 0);
        let page = self.map(REFLECTED, self.user_code | P | A);
        drain();
        // SAFETY: the page holds the piece, and is the kernel's.
        let ticks = unsafe { code::run_at(page, &Registers::default()) };
        drain();
        ticks.wrapping_sub(self.nothing)
    }

    fn prepare_user(&self, code: &[u8], selectors: u32, rip: u64) {
        for (offset, byte) in (0..).zip(code) {
            // SAFETY: the page was taken for this, and user mode does not run.
            unsafe { ((self.user_code + offset) as *mut u8).write_volatile(*byte) };
        }
        half(offset::EVENT_VECTOR).store(vector::STANDARD, Relaxed);
        let at = |offset: usize| entry::pvcs() + offset as u64;
        // SAFETY: a word of the PVCS, accessed as an atomic only.
        let selectors_word = unsafe { &*(at(offset::USER_CS) as *const AtomicU32) };
        selectors_word.store(selectors, Relaxed);
        word(at(offset::EFLAGS)).store(RFLAGS_FORCED, Relaxed);
        word(at(offset::RIP)).store(rip, Relaxed);
        word(at(offset::RCX)).store(rip, Relaxed);
        word(at(offset::R11)).store(RFLAGS_FORCED, Relaxed);
        word(at(offset::USER_GSBASE)).store(0, Relaxed);
    }
}

fn half(offset: usize) -> &'static AtomicU16 {
    // SAFETY: a word of the PVCS, accessed as an atomic only.
    unsafe { &*((entry::pvcs() + offset as u64) as *const AtomicU16) }
}

/// Leaves the PVCS to the next event, and disables interrupts.
fn drain() {
    half(offset::EVENT_VECTOR).swap(0, AcqRel);
    word(entry::pvcs()).fetch_and(!flags::IF, AcqRel);
}

/// Sets the virtual interrupt flag, without asking what waits.
pub fn open() {
    word(entry::pvcs()).fetch_or(flags::IF, AcqRel);
}

/// Enables features of the extension.
pub fn enable(features: Features) {
    // SAFETY: hypercalls of this program come from where they stay hypercalls.
    unsafe { hypercall::Extension::enable(features) }.expect("L1 has these features");
}
