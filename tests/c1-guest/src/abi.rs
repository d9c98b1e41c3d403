//! The guest's side of the ABI: hypercalls, MSRs, the PVCS.
#![expect(unsafe_code, reason = "hypercalls and trapping instructions")]

use crate::entry;
use core::{
    arch::asm,
    sync::atomic::{
        AtomicU16, AtomicU32, AtomicU64,
        Ordering::{AcqRel, Acquire, Relaxed},
    },
};
use pv_abi::{
    ext, hypercall as nr,
    msr::{self, arch, x2apic},
    pvcs::{flags, offset, vector},
    selectors::{USER_CS_SS},
};

/// Any hypercall.
pub fn call(number: u64, args: [u64; 4]) -> u64 {
    let [a, b, c, d] = args;
    // SAFETY: the hypervisor preserves every register but RAX, RCX and R11, as the C convention
    // allows; what a call does to memory is up to its caller.
    unsafe { entry::hypercall_raw(number, a, b, c, d) }
}

pub fn rdmsr(index: u32) -> u64 {
    call(nr::RDMSR, [index.into(), 0, 0, 0])
}

/// WRMSR by hypercall; false if it was refused.
pub fn wrmsr(index: u32, value: u64) -> bool {
    call(nr::WRMSR, [index.into(), value, 0, 0]) == 0
}

pub fn counter(index: u64) -> u64 {
    call(ext::call::READ_COUNTER, [index, 0, 0, 0])
}

pub fn shutdown(reason: u64) -> ! {
    call(ext::call::SHUTDOWN, [reason, 0, 0, 0]);
    unreachable!("a VM that ended does not go on")
}

pub fn end_of_interrupt() {
    wrmsr(x2apic::EOI, 0);
}

/// The synthetic CPUID.
pub fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let (eax, ebx, ecx, edx): (u32, u32, u32, u32);
    // SAFETY: the hypervisor skips the INVLPG and answers the CPUID; no memory is touched.
    unsafe {
        asm!(
            "push rbx", "invlpg [0xffffffffff4d5650]", "cpuid", "mov {b:e}, ebx", "pop rbx",
            b = out(reg) ebx,
            inout("eax") leaf => eax, inout("ecx") subleaf => ecx, out("edx") edx,
        );
    }
    [eax, ebx, ecx, edx]
}

/// The page shared with the hypervisor.
#[derive(Clone, Copy)]
pub struct Shared(u64);

/// This vCPU's PVCS.
pub fn pvcs() -> Shared {
    Shared(&raw const entry::pvcs as u64)
}

impl Shared {
    pub fn address(self) -> u64 {
        self.0
    }

    fn at<T>(self, offset: usize) -> &'static T {
        // SAFETY: the page is this guest's own, lives for ever, and every field is accessed as
        // an atomic by both sides.
        unsafe { &*((self.0 + offset as u64) as *const T) }
    }

    pub fn event_flags(self) -> &'static AtomicU64 {
        self.at(offset::EVENT_FLAGS)
    }

    pub fn eflags(self) -> u32 {
        self.at::<AtomicU32>(offset::EFLAGS).load(Relaxed)
    }

    pub fn cr2(self) -> u64 {
        self.at::<AtomicU64>(offset::CR2).load(Relaxed)
    }

    pub fn error_code(self) -> u64 {
        self.at::<AtomicU16>(offset::EVENT_ERRCODE).load(Relaxed).into()
    }

    pub fn event_vector(self) -> &'static AtomicU16 {
        self.at(offset::EVENT_VECTOR)
    }

    pub fn selectors(self) -> u32 {
        self.at::<AtomicU32>(offset::USER_CS).load(Relaxed)
    }

    pub fn word(self, offset: usize) -> &'static AtomicU64 {
        self.at(offset)
    }

    /// Takes the event and leaves the fields to the next one.
    pub fn take_event(self) -> u64 {
        self.event_vector().swap(0, AcqRel).into()
    }

    /// Sets the virtual interrupt flag and lets in what is waiting.
    pub fn enable_interrupts(self) {
        self.event_flags().fetch_or(flags::IF, AcqRel);
        if self.event_flags().load(Acquire) & flags::IP != 0 {
            call(nr::IRQ_WIN, [0; 4]);
        }
    }

    pub fn disable_interrupts(self) {
        self.event_flags().fetch_and(!flags::IF, AcqRel);
    }

    /// Fills in where user mode goes on.
    pub fn prepare_return(self, rip: u64, rflags: u64, rcx: u64, r11: u64) {
        self.prepare_with(USER_CS_SS, rip, rflags, rcx, r11);
    }

    pub fn prepare_with(self, selectors: u32, rip: u64, rflags: u64, rcx: u64, r11: u64) {
        self.event_vector().store(vector::STANDARD, Relaxed);
        self.at::<AtomicU32>(offset::USER_CS).store(selectors, Relaxed);
        self.at::<AtomicU32>(offset::EFLAGS).store(rflags as u32, Relaxed);
        self.word(offset::RIP).store(rip, Relaxed);
        self.word(offset::RCX).store(rcx, Relaxed);
        self.word(offset::R11).store(r11, Relaxed);
    }
}

/// Registers entries and PVCS with the hypervisor.
pub fn init() {
    let address = |symbol: *const u8| symbol as u64;
    let mut fine = wrmsr(msr::PVM_VCPU_STRUCT, pvcs().address());
    fine &= wrmsr(msr::PVM_EVENT_ENTRY, address(&raw const entry::event_entry));
    fine &= wrmsr(msr::PVM_RETU_RIP, address(&raw const entry::retu_instruction));
    fine &= wrmsr(arch::LSTAR, address(&raw const entry::syscall_entry));
    fine &= wrmsr(arch::KERNEL_GS_BASE, 0);
    assert!(fine, "the ABI's registers take sane values");
}
