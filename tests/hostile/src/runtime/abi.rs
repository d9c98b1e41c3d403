//! The guest's side of the ABI: its PVCS and its APIC, and what all native guests share.
//! May: unsafe. Context: any. Input: the hypervisor's answers, trusted.
#![expect(unsafe_code, reason = "trapping instructions")]

use super::entry::{self, Ways};
use core::{
    arch::asm,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};
use pv_abi::msr::{self, arch, x2apic};

pub use suite::native::{
    call::{call, call1, rdmsr, shutdown, tsc, vcpu_index, wrmsr},
    pvcs::Shared,
};

/// WRMSR by instruction, which works where hypercalls mean something else. A refusal is an event.
fn wrmsr_instruction(index: u32, value: u64) {
    let (low, high) = (value as u32, (value >> 32) as u32);
    // SAFETY: only `restore` writes registers so, to the values that the guest runs with.
    unsafe { asm!("wrmsr", in("ecx") index, in("eax") low, in("edx") high, options(nostack)) };
}

/// Puts the x87 unit and the data segment registers into a state that harms nobody.
pub fn reset_unit() {
    // SAFETY: the guest keeps nothing in them; DS and ES have no effect in 64-bit mode.
    unsafe {
        asm!("fninit", "mov ds, {0:e}", "mov es, {0:e}", in(reg) 0, options(nomem, nostack));
    }
}

/// Whether this is the second vCPU.
pub fn is_second() -> bool {
    vcpu_index() == 1
}

/// Where the second vCPU's PVCS is; 0 for where it belongs.
static MOVED: AtomicU64 = AtomicU64::new(0);

/// The PVCS of this vCPU.
pub fn pvcs() -> Shared {
    if !is_second() {
        return first_pvcs();
    }
    match MOVED.load(Relaxed) {
        0 => Shared::at_address(&raw const entry::second_pvcs as u64),
        address => Shared::at_address(address),
    }
}

/// That of the first.
pub fn first_pvcs() -> Shared {
    Shared::at_address(&raw const entry::pvcs as u64)
}

/// Has the second vCPU, which asks for it, use the page at `address` from now on, until [`restore`].
pub fn move_pvcs(address: u64) {
    MOVED.store(address, Relaxed);
    wrmsr(msr::PVM_VCPU_STRUCT, address);
}

/// Ends the interrupt in service.
pub fn end_of_interrupt() {
    wrmsr(x2apic::EOI, 0);
}

/// Registers entries and PVCS with the hypervisor, again after an attack on them. It relies on no
/// register that an attack can change.
pub fn restore() {
    let ways = Ways::own();
    if is_second() {
        MOVED.store(0, Relaxed);
    }
    wrmsr_instruction(msr::PVM_VCPU_STRUCT, ways.pvcs as u64);
    wrmsr_instruction(msr::PVM_EVENT_ENTRY, ways.event_entry as u64);
    wrmsr_instruction(msr::PVM_RETU_RIP, ways.retu_instruction as u64);
    wrmsr_instruction(arch::LSTAR, ways.syscall_entry as u64);
    wrmsr_instruction(arch::KERNEL_GS_BASE, 0);
    wrmsr_instruction(arch::FS_BASE, 0);
    wrmsr_instruction(arch::GS_BASE, 0);
    pvcs().disable_interrupts();
    pvcs().take_event();
}

/// Brings the local APIC and its timer back to where nothing comes.
pub fn quiet() {
    const MASKED: u64 = 1 << 16;
    wrmsr(x2apic::TIMER_INITIAL, 0);
    wrmsr(x2apic::LVT_TIMER, MASKED);
    wrmsr(x2apic::TPR, 0);
    pvcs().disable_interrupts();
    // What is requested is taken on the way to user mode.
    while in_service() {
        end_of_interrupt();
    }
}

fn in_service() -> bool {
    (0..8).any(|word| rdmsr(x2apic::ISR0 + word) != 0)
}
