//! The guest's side of the ABI: hypercalls, MSRs, the PVCS.
//! May: unsafe. Context: any. Input: the hypervisor's answers, trusted.
#![expect(unsafe_code, reason = "hypercalls and trapping instructions")]

use super::entry;
use core::{
    arch::asm,
    sync::atomic::{
        AtomicU16, AtomicU32, AtomicU64,
        Ordering::{AcqRel, Relaxed},
    },
};
use pv_abi::{
    ext, hypercall as nr, msr,
    msr::{arch, x2apic},
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

/// WRMSR by instruction, which works where hypercalls mean something else. A refusal is an event.
fn wrmsr_instruction(index: u32, value: u64) {
    let (low, high) = (value as u32, (value >> 32) as u32);
    // SAFETY: only `restore` writes registers so, to the values that the guest runs with.
    unsafe { asm!("wrmsr", in("ecx") index, in("eax") low, in("edx") high, options(nostack)) };
}

/// Ends the VM.
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

/// What this vCPU's number is, as its descriptor table says (SEL-2).
pub fn vcpu_index() -> u64 {
    let index: u64;
    // SAFETY: reads the limit of a descriptor.
    unsafe {
        asm!("lsl {0:e}, {1:e}", inout(reg) u64::MAX => index, in(reg) u32::from(VCPU_INDEX));
    }
    index
}

/// Puts the x87 unit and the data segment registers into a state that harms nobody.
pub fn reset_unit() {
    // SAFETY: the guest keeps nothing in them; DS and ES have no effect in 64-bit mode.
    unsafe {
        asm!("fninit", "mov ds, {0:e}", "mov es, {0:e}", in(reg) 0, options(nomem, nostack));
    }
}

/// The page shared with the hypervisor. Every field is accessed as an atomic by both sides.
#[derive(Clone, Copy, Debug)]
pub struct Shared(u64);

/// The PVCS.
pub fn pvcs() -> Shared {
    Shared(&raw const entry::pvcs as u64)
}

impl Shared {
    /// Where it is, for guest and hypervisor.
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

    pub fn eflags(self) -> u64 {
        self.at::<AtomicU32>(offset::EFLAGS).load(Relaxed).into()
    }

    pub fn error_code(self) -> u16 {
        self.at::<AtomicU16>(offset::EVENT_ERRCODE).load(Relaxed)
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

    pub fn set_selectors(self, value: u32) {
        self.at::<AtomicU32>(offset::USER_CS).store(value, Relaxed);
    }

    /// Takes the event and leaves the fields to the next one.
    pub fn take_event(self) -> u16 {
        self.at::<AtomicU16>(offset::EVENT_VECTOR).swap(0, AcqRel)
    }

    /// Clears IF, and leaves IP.
    pub fn clear_if(self) {
        self.at::<AtomicU64>(offset::EVENT_FLAGS).fetch_and(!flags::IF, AcqRel);
    }
}

/// Ends the interrupt in service.
pub fn end_of_interrupt() {
    wrmsr(x2apic::EOI, 0);
}

/// Registers entries and PVCS with the hypervisor, again after an attack on them. It relies on no
/// register that an attack can change.
pub fn restore() {
    let address = |symbol: *const u8| symbol as u64;
    wrmsr_instruction(msr::PVM_VCPU_STRUCT, pvcs().address());
    wrmsr_instruction(msr::PVM_EVENT_ENTRY, address(&raw const entry::event_entry));
    wrmsr_instruction(msr::PVM_RETU_RIP, address(&raw const entry::retu_instruction));
    wrmsr_instruction(arch::LSTAR, address(&raw const entry::syscall_entry));
    wrmsr_instruction(arch::KERNEL_GS_BASE, 0);
    wrmsr_instruction(arch::FS_BASE, 0);
    wrmsr_instruction(arch::GS_BASE, 0);
    pvcs().clear_if();
    pvcs().take_event();
}

/// Brings the local APIC and its timer back to where nothing comes.
pub fn quiet() {
    const MASKED: u64 = 1 << 16;
    wrmsr(x2apic::TIMER_INITIAL, 0);
    wrmsr(x2apic::LVT_TIMER, MASKED);
    wrmsr(x2apic::TPR, 0);
    pvcs().clear_if();
    // What is requested is taken on the way to user mode.
    while in_service() {
        end_of_interrupt();
    }
}

fn in_service() -> bool {
    (0..8).any(|word| rdmsr(x2apic::ISR0 + word) != 0)
}
