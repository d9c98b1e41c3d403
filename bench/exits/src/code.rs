//! Holds the assembly: what is measured, and the way there and back.
#![expect(unsafe_code, reason = "machine code, and the words it shares with Rust")]

use core::{arch::global_asm, sync::atomic::AtomicU64};
use pv_abi::{
    event::RFLAGS_FORCED, hypercall, msr::EVENT_ENTRY_SUPERVISOR, msr::x2apic, pvcs, selectors,
};

global_asm!(
    include_str!("code.S"),
    USER_CS = const selectors::USER_CS,
    USER_DS = const selectors::USER_DS,
    SUPERVISOR = const EVENT_ENTRY_SUPERVISOR,
    RFLAGS = const RFLAGS_FORCED,
    PVCS_RIP = const pvcs::offset::RIP,
    PVCS_VECTOR = const pvcs::offset::EVENT_VECTOR,
    IF = const pvcs::flags::IF,
    WRMSR = const hypercall::WRMSR,
    EOI = const x2apic::EOI,
);

/// Registers that an operation starts with. RSP is the kernel's, or user mode's own.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Registers {
    pub rax: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rbx: u64,
    pub r10: u64,
    /// When it began, for code that does not read the time itself.
    pub r8: u64,
}

/// Code of the kernel's.
#[derive(Clone, Copy, Debug)]
pub struct Kernel(u64);

/// Declares labels of the assembly.
macro_rules! labels {
    (
        kernel { $($kernel:ident = $kernel_label:ident,)* }
        user { $($user:ident = $start:ident $end:ident,)* }
        entries { $($entry:ident = $entry_label:ident,)* }
    ) => {
        unsafe extern "C" {
            $(safe static $kernel_label: u8;)*
            $(safe static $start: u8; safe static $end: u8;)*
            $(safe static $entry_label: u8;)*
        }
        impl Kernel {
            $(#[doc = stringify!($kernel)] pub fn $kernel() -> Self {
                Self(&raw const $kernel_label as u64)
            })*
        }
        /// Code to copy to a page of user mode.
        pub mod user {
            use super::*;
            $(pub fn $user() -> &'static [u8] {
                // SAFETY: the labels are around a piece of this program.
                unsafe {
                    let end = &raw const $end;
                    core::slice::from_raw_parts(&raw const $start, end.offset_from_unsigned(&raw const $start))
                }
            })*
        }
        /// Addresses of entries, and of what the hypervisor is told of.
        pub mod entry {
            use super::*;
            $(pub fn $entry() -> u64 { &raw const $entry_label as u64 })*
        }
    };
}

labels! {
    kernel {
        nothing = exits_kernel_nothing,
        hypercall = exits_kernel_hypercall,
        rdmsr = exits_kernel_rdmsr,
        wrmsr = exits_kernel_wrmsr,
        cpuid = exits_kernel_cpuid,
        port_in = exits_kernel_in,
        port_out = exits_kernel_out,
        read_cr0 = exits_kernel_read_cr0,
        cli = exits_kernel_cli,
        invlpg = exits_kernel_invlpg,
        load = exits_kernel_load,
        store = exits_kernel_store,
        eretu = exits_kernel_eretu,
        eretu_prefault = exits_kernel_eretu_prefault,
        halt = exits_kernel_halt,
        spin = exits_kernel_spin,
    }
    user {
        syscall = exits_user_syscall exits_user_syscall_end,
        load = exits_user_load exits_user_load_end,
        undefined = exits_user_undefined exits_user_undefined_end,
        privileged = exits_user_privileged exits_user_privileged_end,
        int80 = exits_user_int80 exits_user_int80_end,
        arrive = exits_user_arrive exits_user_arrive_end,
    }
    entries {
        event = exits_event_entry,
        syscall = exits_syscall_entry,
        entered_user = exits_entered_user,
        end = exits_end,
        end_interrupt = exits_end_interrupt,
        retu = exits_retu,
        retu_prefault = exits_retu_prefault,
        pvcs = exits_pvcs,
    }
}

unsafe extern "C" {
    safe static exits_handler: AtomicU64;
    fn exits_run(code: u64, registers: *const Registers) -> u64;
}

/// Where events of supervisor mode go on.
pub fn handler() -> &'static AtomicU64 {
    &exits_handler
}

/// Ticks from `registers.r8`, or the time that `code` reads first, to its end.
///
/// # Safety
/// What the code does to memory is sound; entries and PVCS are those of this module.
pub unsafe fn run(code: Kernel, registers: &Registers) -> u64 {
    // SAFETY: the assembly keeps what the C convention wants; the rest is the caller's promise.
    unsafe { exits_run(code.0, registers) }
}

/// The same for code that was copied to `address`.
///
/// # Safety
/// As for [`run`]; the code there is one of the pieces, copied.
pub unsafe fn run_at(address: u64, registers: &Registers) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { exits_run(address, registers) }
}
