//! The guest's side of the ABI: CPUID, the PVCS of each vCPU, and what all native guests share.
#![expect(unsafe_code, reason = "trapping instructions")]

use crate::entry;
use core::{
    arch::asm,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};
use pv_abi::msr::{self, arch};

pub use suite::native::{
    call::{call, call1, rdmsr, shutdown, tsc, vcpu_index, wrmsr},
    pvcs::Shared,
};

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

/// Address of the PVCS that the guest starts with.
pub fn first_pvcs() -> u64 {
    &raw const entry::pvcs as u64
}

/// The number of this vCPU, 0 or 1.
pub fn vcpu() -> usize {
    vcpu_index().min(1) as usize
}

fn current_pvcs() -> &'static AtomicU64 {
    // SAFETY: words of the guest's own memory, one for each vCPU.
    unsafe { if vcpu() == 0 { &entry::current_pvcs } else { &entry::second_current_pvcs } }
}

/// The PVCS that is registered for this vCPU.
pub fn pvcs() -> Shared {
    Shared::at_address(current_pvcs().load(Relaxed))
}

/// Registers the page at `address`, which must be identity-mapped for the kernel.
pub fn register_pvcs(address: u64) -> bool {
    current_pvcs().store(address, Relaxed);
    wrmsr(msr::PVM_VCPU_STRUCT, address)
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
