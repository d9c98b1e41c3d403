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
    msr::{self, arch},
    pvcs::{flags, offset},
    selectors::VCPU_INDEX,
};

/// Any hypercall.
pub fn call(number: u64, args: [u64; 4]) -> u64 {
    let [a, b, c, d] = args;
    // SAFETY: the hypervisor preserves every register but RAX, RCX and R11, as the C convention
    // allows; what a call does to memory is up to its caller.
    unsafe { entry::hypercall_raw(number, a, b, c, d) }
}

/// A hypercall with one argument.
pub fn call1(number: u64, argument: u64) -> u64 {
    call(number, [argument, 0, 0, 0])
}

/// RDMSR by hypercall.
pub fn rdmsr(index: u32) -> u64 {
    call1(nr::RDMSR, index.into())
}

/// WRMSR by hypercall; false if it was refused.
pub fn wrmsr(index: u32, value: u64) -> bool {
    call(nr::WRMSR, [index.into(), value, 0, 0]) == 0
}

/// Ends the VM, or waits for ever where nothing can end it.
pub fn shutdown(reason: u64) -> ! {
    call1(ext::call::SHUTDOWN, reason);
    loop {
        call(nr::IRQ_HALT, [0; 4]);
    }
}

/// The time-stamp counter.
pub fn tsc() -> u64 {
    // SAFETY: no effect but its result.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// The synthetic CPUID.
pub fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let (eax, ebx, ecx, edx): (u32, u32, u32, u32);
    // SAFETY: the hypervisor skips the INVLPG and answers the CPUID; no memory is touched.
    unsafe {
        asm!(
            "mov {b:r}, rbx", "invlpg [0xffffffffff4d5650]", "cpuid", "xchg {b:r}, rbx",
            b = out(reg) ebx,
            inout("eax") leaf => eax, inout("ecx") subleaf => ecx, out("edx") edx,
        );
    }
    [eax, ebx, ecx, edx]
}

/// The CPU's own CPUID, which is native in either mode.
pub fn native_cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let found = core::arch::x86_64::__cpuid_count(leaf, subleaf);
    [found.eax, found.ebx, found.ecx, found.edx]
}

/// The page shared with the hypervisor. Every field is accessed as an atomic by both sides.
#[derive(Clone, Copy)]
pub struct Shared(u64);

/// Address of the PVCS that the guest starts with.
pub fn first_pvcs() -> u64 {
    &raw const entry::pvcs as u64
}

/// The number of this vCPU, 0 or 1: what segment slot 16 says (SEL-2).
pub fn vcpu() -> usize {
    let limit: u64;
    // SAFETY: LSL changes nothing but its destination and the flags.
    unsafe {
        asm!("lsl {:r}, {:r}", out(reg) limit, in(reg) u64::from(VCPU_INDEX), options(nostack));
    }
    limit.min(1) as usize
}

fn current_pvcs() -> &'static AtomicU64 {
    // SAFETY: words of the guest's own memory, one for each vCPU.
    unsafe { if vcpu() == 0 { &entry::current_pvcs } else { &entry::second_current_pvcs } }
}

/// The PVCS that is registered for this vCPU.
pub fn pvcs() -> Shared {
    Shared(current_pvcs().load(Relaxed))
}

/// Registers the page at `address`, which must be identity-mapped for the kernel.
pub fn register_pvcs(address: u64) -> bool {
    current_pvcs().store(address, Relaxed);
    wrmsr(msr::PVM_VCPU_STRUCT, address)
}

impl Shared {
    /// The page at `address`, which is a vCPU's PVCS.
    pub const fn at_address(address: u64) -> Self {
        Self(address)
    }

    pub const fn address(self) -> u64 {
        self.0
    }

    fn at<T>(self, offset: usize) -> &'static T {
        // SAFETY: the page is this guest's own, lives for ever, and is accessed atomically.
        unsafe { &*((self.0 + offset as u64) as *const T) }
    }

    /// The 64-bit word at `offset`.
    pub fn word(self, offset: usize) -> u64 {
        self.at::<AtomicU64>(offset).load(Relaxed)
    }

    /// Stores the 64-bit word at `offset`.
    pub fn set_word(self, offset: usize, value: u64) {
        self.at::<AtomicU64>(offset).store(value, Relaxed);
    }

    /// Stores `new` at `offset` if `expected` is there.
    pub fn exchange_word(self, offset: usize, expected: u64, new: u64) {
        let word = self.at::<AtomicU64>(offset);
        // It is somebody else's value otherwise, which stays.
        let _ = word.compare_exchange(expected, new, AcqRel, Relaxed);
    }

    pub fn event_flags(self) -> u64 {
        self.at::<AtomicU64>(offset::EVENT_FLAGS).load(Acquire)
    }

    pub fn eflags(self) -> u64 {
        self.at::<AtomicU32>(offset::EFLAGS).load(Relaxed).into()
    }

    pub fn error_code(self) -> u64 {
        self.at::<AtomicU16>(offset::EVENT_ERRCODE).load(Relaxed).into()
    }

    pub fn set_error_code(self, value: u16) {
        self.at::<AtomicU16>(offset::EVENT_ERRCODE).store(value, Relaxed);
    }

    pub fn event_word(self) -> u16 {
        self.at::<AtomicU16>(offset::EVENT_VECTOR).load(Relaxed)
    }

    pub fn set_event_word(self, value: u16) {
        self.at::<AtomicU16>(offset::EVENT_VECTOR).store(value, Relaxed);
    }

    /// `user_cs | user_ss << 16`.
    pub fn selectors(self) -> u32 {
        self.at::<AtomicU32>(offset::USER_CS).load(Relaxed)
    }

    /// Takes the event and leaves the fields to the next one.
    pub fn take_event(self) -> u16 {
        self.at::<AtomicU16>(offset::EVENT_VECTOR).swap(0, AcqRel)
    }

    /// Sets the virtual interrupt flag and lets in what is waiting.
    pub fn enable_interrupts(self) {
        self.at::<AtomicU64>(offset::EVENT_FLAGS).fetch_or(flags::IF, AcqRel);
        if self.event_flags() & flags::IP != 0 {
            call(nr::IRQ_WIN, [0; 4]);
        }
    }

    /// Clears the virtual interrupt flag.
    pub fn disable_interrupts(self) {
        self.at::<AtomicU64>(offset::EVENT_FLAGS).fetch_and(!flags::IF, AcqRel);
    }

    /// Fills in where user mode goes on; `rest` is RCX and R11.
    pub fn prepare_return(self, selectors: u32, rip: u64, rflags: u64, rest: [u64; 2]) {
        self.at::<AtomicU32>(offset::USER_CS).store(selectors, Relaxed);
        self.at::<AtomicU32>(offset::EFLAGS).store(rflags as u32, Relaxed);
        self.set_word(offset::RIP, rip);
        self.set_word(offset::RCX, rest[0]);
        self.set_word(offset::R11, rest[1]);
    }
}

/// Registers this vCPU's entries and PVCS with the hypervisor.
pub fn init() {
    let [page, event, retu, syscall] = if vcpu() == 0 {
        [
            &raw const entry::pvcs,
            &raw const entry::event_entry,
            &raw const entry::retu_instruction,
            &raw const entry::syscall_entry,
        ]
    } else {
        [
            &raw const entry::second_pvcs,
            &raw const entry::second_event_entry,
            &raw const entry::second_retu_instruction,
            &raw const entry::second_syscall_entry,
        ]
    }
    .map(|symbol| symbol as u64);
    let mut fine = register_pvcs(page);
    fine &= wrmsr(msr::PVM_EVENT_ENTRY, event);
    fine &= wrmsr(msr::PVM_RETU_RIP, retu);
    fine &= wrmsr(arch::LSTAR, syscall);
    fine &= wrmsr(arch::KERNEL_GS_BASE, 0);
    assert!(fine, "the ABI's registers take sane values");
}
