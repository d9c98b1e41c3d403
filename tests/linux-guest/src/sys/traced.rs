//! Runs known instructions in a traced child, one at a time or up to a breakpoint.
#![expect(unsafe_code, reason = "the instructions that the child runs")]

use super::child::Child;
use anyhow::{Context, Result, bail, ensure};
use core::{arch::global_asm, mem::offset_of};
use nix::{
    sys::{
        ptrace,
        signal::{Signal, raise},
        wait::{WaitStatus, waitpid},
    },
    unistd::Pid,
};
use std::ptr;

/// Lengths of the instructions of the stepped run, in order: a system call is number 61, a
/// breakpoint instruction number 102.
pub fn stepped_lengths() -> Vec<u64> {
    let nops = |count| vec![1; count];
    [vec![5], nops(60), vec![2], nops(40), vec![1], nops(20)].concat()
}

/// Start of the stepped run.
pub fn stepped_start() -> u64 {
    (&raw const STEPPED) as u64
}

/// Places of the watched run.
#[derive(Clone, Copy, Debug)]
pub struct Watched {
    /// First instruction.
    pub start: u64,
    /// Instruction for an execution breakpoint.
    pub target: u64,
    /// A word that the instruction after the target writes.
    pub word: u64,
    /// Behind that instruction.
    pub written: u64,
    /// Behind the breakpoint instruction that ends the run.
    pub end: u64,
}

/// What the watched run writes to its word.
pub const WATCHED_VALUE: i64 = 0x77;

/// The places of the watched run.
pub fn watched() -> Watched {
    Watched {
        start: (&raw const WATCHED) as u64,
        target: (&raw const WATCHED_TARGET) as u64,
        word: (&raw const WATCHED_WORD) as u64,
        written: (&raw const WATCHED_WRITTEN) as u64,
        end: (&raw const WATCHED_END) as u64,
    }
}

unsafe extern "C" {
    #[link_name = "roost_stepped"]
    static STEPPED: u8;
    #[link_name = "roost_watched"]
    static WATCHED: u8;
    #[link_name = "roost_watched_target"]
    static WATCHED_TARGET: u8;
    #[link_name = "roost_watched_word"]
    static WATCHED_WORD: u64;
    #[link_name = "roost_watched_written"]
    static WATCHED_WRITTEN: u8;
    #[link_name = "roost_watched_end"]
    static WATCHED_END: u8;
}

// Global, since the compiler may place assembly and its users in different object files.
global_asm!(
    ".globl roost_stepped, roost_watched, roost_watched_target, roost_watched_word",
    ".globl roost_watched_written, roost_watched_end",
    "roost_stepped:",
    "mov eax, {getpid}",
    ".rept 60",
    "nop",
    ".endr",
    "syscall",
    ".rept 40",
    "nop",
    ".endr",
    "int3",
    ".rept 20",
    "nop",
    ".endr",
    "ud2",
    "roost_watched:",
    "nop",
    "nop",
    "roost_watched_target:",
    "mov qword ptr [rip + roost_watched_word], {value}",
    "roost_watched_written:",
    "nop",
    "int3",
    "roost_watched_end:",
    "ud2",
    ".pushsection .bss.roost_watched, \"aw\", @nobits",
    ".balign 8",
    "roost_watched_word: .skip 8",
    ".popsection",
    getpid = const libc::SYS_getpid,
    value = const WATCHED_VALUE,
);

/// A traced child, stopped.
#[derive(Debug)]
pub struct Tracee {
    child: Child,
}

/// Why and where a tracee stopped.
#[derive(Clone, Copy, Debug)]
pub struct Stop {
    /// `si_code` of the SIGTRAP.
    pub code: i32,
    /// RIP.
    pub rip: u64,
}

impl Tracee {
    /// Makes a child that goes on at `start` when told to.
    ///
    /// # Errors
    /// The kernel does not let us trace.
    pub fn at(start: u64) -> Result<Self> {
        let child = Child::spawn(|| {
            let stopped = ptrace::traceme().and_then(|()| raise(Signal::SIGSTOP));
            u8::from(stopped.is_err())
        })?;
        match waitpid(child.pid(), None)? {
            WaitStatus::Stopped(_, Signal::SIGSTOP) => {}
            other => bail!("the child did not stop to be traced: {other:?}"),
        }
        let tracee = Self { child };
        let mut registers = ptrace::getregs(tracee.pid())?;
        registers.rip = start;
        // No system call is to be restarted.
        registers.orig_rax = u64::MAX;
        ptrace::setregs(tracee.pid(), registers)?;
        Ok(tracee)
    }

    /// Executes one instruction.
    ///
    /// # Errors
    /// The child did not stop with SIGTRAP.
    pub fn step(&self) -> Result<Stop> {
        ptrace::step(self.pid(), None)?;
        self.stopped()
    }

    /// Goes on to the next breakpoint.
    ///
    /// # Errors
    /// The child did not stop with SIGTRAP.
    pub fn go_on(&self) -> Result<Stop> {
        ptrace::cont(self.pid(), None)?;
        self.stopped()
    }

    /// The child's RAX.
    ///
    /// # Errors
    /// The kernel's.
    pub fn rax(&self) -> Result<u64> {
        Ok(ptrace::getregs(self.pid())?.rax)
    }

    /// A word of the child's memory.
    ///
    /// # Errors
    /// The kernel's.
    pub fn word(&self, address: u64) -> Result<i64> {
        Ok(ptrace::read(self.pid(), ptr::with_exposed_provenance_mut(address as usize))?)
    }

    /// Sets a debug register.
    ///
    /// # Errors
    /// The kernel's, which may have none to give.
    pub fn set_debug(&self, index: usize, value: u64) -> Result<()> {
        ptrace::write_user(self.pid(), debug_offset(index), value as i64)
            .with_context(|| format!("cannot set DR{index} to {value:#x}"))
    }

    /// Reads a debug register.
    ///
    /// # Errors
    /// The kernel's.
    pub fn debug(&self, index: usize) -> Result<u64> {
        Ok(ptrace::read_user(self.pid(), debug_offset(index))? as u64)
    }

    /// The child's process id.
    pub fn pid(&self) -> Pid {
        self.child.pid()
    }

    fn stopped(&self) -> Result<Stop> {
        let status = waitpid(self.pid(), None)?;
        let rip = ptrace::getregs(self.pid()).map(|registers| registers.rip);
        ensure!(
            matches!(status, WaitStatus::Stopped(_, Signal::SIGTRAP)),
            "the child did not stop with SIGTRAP: {status:?} at {rip:x?}"
        );
        Ok(Stop { code: ptrace::getsiginfo(self.pid())?.si_code, rip: rip? })
    }
}

fn debug_offset(index: usize) -> ptrace::AddressType {
    ptr::without_provenance_mut(offset_of!(libc::user, u_debugreg) + 8 * index)
}
