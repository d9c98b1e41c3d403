//! Pairs this process with a partner that answers.
#![expect(unsafe_code, reason = "pipes and futexes by system call")]

use super::{
    cpu,
    process::{end_with_parent, give_up, shared_words, start},
};
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
use linux_guest::syscall::{syscall3, syscall4};
use std::{
    io::{self, PipeReader, PipeWriter},
    os::fd::AsRawFd,
};

/// Round trips before anything is measured.
const WARM_UP: usize = 16;

/// Two pipes to a partner that sends every byte back.
#[derive(Debug)]
pub struct PipePair {
    there: PipeWriter,
    back: PipeReader,
}

impl PipePair {
    /// Makes a partner on a CPU.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(partner_cpu: usize) -> io::Result<Self> {
        let (request, there) = io::pipe()?;
        let (back, answer) = io::pipe()?;
        start(|| {
            end_with_parent();
            if cpu::pin(partner_cpu).is_err() {
                return 1;
            }
            loop {
                receive(request.as_raw_fd());
                send(answer.as_raw_fd());
            }
        })?;
        let mut pair = Self { there, back };
        (0..WARM_UP).for_each(|_| pair.round_trip());
        Ok(pair)
    }

    /// Sends a byte and waits for it.
    #[inline(always)]
    pub fn round_trip(&mut self) {
        send(self.there.as_raw_fd());
        receive(self.back.as_raw_fd());
    }
}

#[inline(always)]
fn send(pipe: i32) {
    let byte = 0_u8;
    // SAFETY: the kernel reads `byte`.
    let sent = unsafe { syscall3(libc::SYS_write, pipe as u64, (&raw const byte) as u64, 1) };
    if sent != 1 {
        give_up("the pipe does not take a byte");
    }
}

#[inline(always)]
fn receive(pipe: i32) {
    let mut byte = 0_u8;
    // SAFETY: the kernel writes `byte`.
    let came = unsafe { syscall3(libc::SYS_read, pipe as u64, (&raw mut byte) as u64, 1) };
    if came != 1 {
        give_up("the pipe does not give a byte");
    }
}

/// A word that a partner sets back.
#[derive(Debug)]
pub struct FutexPair {
    word: &'static AtomicU64,
}

impl FutexPair {
    /// Makes a partner on a CPU.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(partner_cpu: usize) -> io::Result<Self> {
        let word = &shared_words()?[0];
        start(|| {
            end_with_parent();
            if cpu::pin(partner_cpu).is_err() {
                return 1;
            }
            loop {
                wait_while(word, 0);
                set(word, 0);
            }
        })?;
        let pair = Self { word };
        (0..WARM_UP).for_each(|_| pair.round_trip());
        Ok(pair)
    }

    /// Sets the word and waits for the partner to set it back.
    #[inline(always)]
    pub fn round_trip(&self) {
        set(self.word, 1);
        wait_while(self.word, 1);
    }
}

#[inline(always)]
fn set(word: &AtomicU64, value: u64) {
    word.store(value, SeqCst);
    // SAFETY: the address is a name only.
    unsafe { syscall3(libc::SYS_futex, word.as_ptr() as u64, libc::FUTEX_WAKE as u64, 1) };
}

#[inline(always)]
fn wait_while(word: &AtomicU64, value: u64) {
    while word.load(SeqCst) == value {
        let operation = libc::FUTEX_WAIT as u64;
        // SAFETY: the kernel reads the word's low half, which comes first in memory.
        unsafe { syscall4(libc::SYS_futex, word.as_ptr() as u64, operation, value, 0) };
    }
}
