//! Sleeps and wakes on words that processes share.
#![expect(unsafe_code, reason = "the futex system call")]

use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
use linux_guest::syscall::{syscall3, syscall4};

/// Sleeps until the low half of `word` is not `value`.
pub fn wait_while(word: &AtomicU64, value: u32) {
    while word.load(SeqCst) as u32 == value {
        let operation = libc::FUTEX_WAIT as u64;
        // SAFETY: reads the word (its low half comes first in memory) and sleeps.
        unsafe { syscall4(libc::SYS_futex, word.as_ptr() as u64, operation, u64::from(value), 0) };
    }
}

/// Sets `word` and wakes one sleeper.
pub fn set_and_wake(word: &AtomicU64, value: u32) {
    word.store(u64::from(value), SeqCst);
    // SAFETY: uses the address as a name only.
    unsafe { syscall3(libc::SYS_futex, word.as_ptr() as u64, libc::FUTEX_WAKE as u64, 1) };
}
