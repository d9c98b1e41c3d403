//! Holds the assembly: entries from the hypervisor and the way to user mode.
//! May: unsafe, asm. Context: any. Input: trusted.
#![expect(unsafe_code, reason = "entry points, and what they share with Rust")]

use crate::{event, local::Local, smp, user::Registers};
use core::{arch::global_asm, mem::offset_of};
use pv_abi::{event::RFLAGS_FORCED, msr::EVENT_ENTRY_SUPERVISOR, pvcs, selectors};

/// Bytes of a vCPU's stack.
pub const STACK: usize = 64 << 10;
/// What `enter_user` returns after an event.
pub const KIND_EVENT: u32 = 1;
/// What `enter_user` returns after a system call.
pub const KIND_SYSCALL: u32 = 2;

global_asm!(
    include_str!("registers.S"),
    include_str!("entry.S"),
    event = sym event::enter,
    other = sym smp::run_here,
    LOCAL = const size_of::<Local>(),
    USER = const offset_of!(Local, user),
    USER_RSP = const offset_of!(Local, user_rsp),
    KERNEL_RSP = const offset_of!(Local, kernel_rsp),
    EVENT_RSP = const offset_of!(Local, event_rsp),
    USER_CS = const selectors::USER_CS,
    USER_DS = const selectors::USER_DS,
    PVCS_RIP = const pvcs::offset::RIP,
    PVCS_RCX = const pvcs::offset::RCX,
    PVCS_R11 = const pvcs::offset::R11,
    SUPERVISOR = const EVENT_ENTRY_SUPERVISOR,
    RFLAGS = const RFLAGS_FORCED,
    REGISTERS_RSP = const offset_of!(Registers, rsp),
    KIND_EVENT = const KIND_EVENT,
    KIND_SYSCALL = const KIND_SYSCALL,
    STACK = const STACK,
);

unsafe extern "C" {
    pub safe static l2_guest_event_entry: u8;
    pub safe static l2_guest_syscall_entry: u8;
    pub safe static l2_guest_retu: u8;
    pub safe static l2_guest_start_other: u8;
    pub safe static l2_guest_local: Local;
    fn l2_guest_enter_user(registers: *mut Registers) -> u32;
    fn l2_guest_hypercall(number: u64, a: u64, b: u64, c: u64, d: u64) -> u64;
}

/// Any hypercall.
///
/// # Safety
/// What the call does to memory, to its mapping, and to where the hypervisor enters the kernel
/// must be sound.
pub unsafe fn hypercall(number: u64, [a, b, c, d]: [u64; 4]) -> u64 {
    // SAFETY: the hypervisor preserves every register but RAX, RCX and R11, as the C convention
    // allows (HC-1); the rest is the caller's promise.
    unsafe { l2_guest_hypercall(number, a, b, c, d) }
}

/// Goes to user mode with `registers` and the PVCS; comes back with the user's registers in them,
/// but for RCX and R11. Says by which entry.
///
/// # Safety
/// The PVCS is filled for user mode, the virtual interrupt flag is 0, and only user pages can be
/// written from there.
pub unsafe fn enter_user(registers: &mut Registers) -> u32 {
    // SAFETY: the assembly writes nothing but `registers` and words of its own, and preserves what
    // the C convention wants; the rest is the caller's promise.
    unsafe { l2_guest_enter_user(registers) }
}
