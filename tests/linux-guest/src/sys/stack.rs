//! Uses alternate signal stacks.
#![expect(unsafe_code, reason = "sigaltstack, its handlers and a stack run to its end")]

use super::{
    mapping::Mapping,
    trap::{Trap, attempt},
};
use core::{
    ops::Range,
    sync::atomic::{AtomicU64, Ordering::SeqCst},
};
use std::{io, ptr};

/// Makes `memory` the signal stack of this thread and returns its addresses.
///
/// # Errors
/// The kernel's.
pub fn use_for_signals(memory: &'static Mapping) -> io::Result<Range<u64>> {
    let bytes = size_of_val(memory.words());
    let start = memory.address();
    let stack = libc::stack_t {
        ss_sp: ptr::with_exposed_provenance_mut(start as usize),
        ss_flags: 0,
        ss_size: bytes,
    };
    // SAFETY: the memory is never unmapped, and nobody else uses it.
    if unsafe { libc::sigaltstack(&raw const stack, ptr::null_mut()) } == 0 {
        Ok(start..start + bytes as u64)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Grows the stack until it faults, and shrinks it again.
pub fn overflow() -> Option<Trap> {
    attempt!(
        ["mov r12, rsp"]
        "sub rsp, 4096\nmov qword ptr [rsp], 0\njmp 2b"
        ["mov rsp, r12"];
        out("r12") _,
    )
}

static OUTER: AtomicU64 = AtomicU64::new(0);
static INNER: AtomicU64 = AtomicU64::new(0);
static AFTER: AtomicU64 = AtomicU64::new(0);

/// Raises a signal whose handler raises another; both run on the signal stack. Returns a stack
/// address of the outer and of the inner handler, if each ran once and the inner one first ended.
///
/// # Errors
/// The kernel refuses the handlers.
pub fn nested() -> io::Result<Option<(u64, u64)>> {
    for (signal, handler) in
        [(libc::SIGUSR1, outer as *const () as usize), (libc::SIGUSR2, inner as *const () as usize)]
    {
        // SAFETY: an all-zero sigaction is valid: default action, empty mask.
        let mut action: libc::sigaction = unsafe { core::mem::zeroed() };
        action.sa_sigaction = handler;
        action.sa_flags = libc::SA_ONSTACK;
        // SAFETY: the handlers use atomics and raise, which handlers may.
        if unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: the handler is installed.
    unsafe { libc::raise(libc::SIGUSR1) };
    let (outer, inner) = (OUTER.load(SeqCst), INNER.load(SeqCst));
    Ok((outer != 0 && AFTER.load(SeqCst) == inner).then_some((outer, inner)))
}

extern "C" fn outer(_: i32) {
    let here = 0_u8;
    // SAFETY: the handler is installed.
    unsafe { libc::raise(libc::SIGUSR2) };
    AFTER.store(INNER.load(SeqCst), SeqCst);
    OUTER.store((&raw const here) as u64, SeqCst);
}

extern "C" fn inner(_: i32) {
    let here = 0_u8;
    INNER.store((&raw const here) as u64, SeqCst);
}
