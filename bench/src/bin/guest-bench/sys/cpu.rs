//! Reads the processor's counters and runs single instructions.
#![expect(unsafe_code, reason = "assembly, and system calls about CPUs")]

use super::{result, time::clock};
use core::arch::{asm, x86_64::_rdtsc};
use linux_guest::{
    syscall::{syscall0, syscall3},
    vdso::Getcpu,
};
use std::{io, ptr, thread};

/// A port that nothing listens to.
const PORT: u64 = 0x80;

/// What the clocks say.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// The time-stamp counter, read after the clock.
    pub tsc: u64,
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub monotonic: u64,
}

impl Moment {
    /// Reads the clocks.
    #[inline(always)]
    pub fn now() -> Self {
        let monotonic = clock(libc::CLOCK_MONOTONIC);
        Self { tsc: tsc(), monotonic }
    }

    /// Ticks and nanoseconds since then; the counter is read first, to leave the clock out.
    #[inline(always)]
    pub fn until_now(self) -> (u64, u64) {
        let tsc = tsc();
        (tsc - self.tsc, clock(libc::CLOCK_MONOTONIC) - self.monotonic)
    }
}

/// When the program was started.
#[derive(Clone, Copy, Debug)]
pub struct Started {
    /// The time-stamp counter.
    pub tsc: u64,
    /// `CLOCK_BOOTTIME`, nanoseconds.
    pub since_boot: u64,
}

impl Started {
    /// Reads the clocks.
    pub fn now() -> Self {
        Self { tsc: tsc(), since_boot: clock(libc::CLOCK_BOOTTIME) }
    }
}

/// The time-stamp counter.
#[inline(always)]
pub fn tsc() -> u64 {
    // SAFETY: Linux lets user mode read it.
    unsafe { _rdtsc() }
}

/// CPUs that this process may use.
pub fn count() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Refuses to go on with one CPU.
///
/// # Errors
/// There is one.
pub fn demand_two() -> Result<(), String> {
    // The process itself is tied to one by now.
    // SAFETY: sysconf only answers.
    let online = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
    if online < 2 { Err("needs 2 CPUs".into()) } else { Ok(()) }
}

/// Ties the calling thread to a CPU.
///
/// # Errors
/// The kernel's.
pub fn pin(cpu: usize) -> io::Result<()> {
    let mask = [1_u64 << cpu];
    let place = mask.as_ptr() as u64;
    // SAFETY: the kernel reads the mask.
    let raw = unsafe { syscall3(libc::SYS_sched_setaffinity, 0, size_of_val(&mask) as u64, place) };
    result(raw).map(|_| ())
}

/// Makes the cheapest system call.
#[inline(always)]
pub fn getppid() {
    // SAFETY: it has no effect.
    unsafe { syscall0(libc::SYS_getppid) };
}

/// Asks for the CPU number.
#[inline(always)]
pub fn number(function: Getcpu) {
    let mut cpu = 0;
    // SAFETY: the function writes `cpu` only.
    unsafe { function(&raw mut cpu, ptr::null_mut(), ptr::null_mut()) };
}

/// Allows this process to use one port.
///
/// # Errors
/// The kernel's.
pub fn allow_port() -> io::Result<()> {
    // SAFETY: nothing listens to the port.
    let raw = unsafe { syscall3(libc::SYS_ioperm, PORT, 1, 1) };
    result(raw).map(|_| ())
}

/// Ticks that 2,000,000 instructions take; the reading itself adds four.
pub fn two_million_instructions() -> u64 {
    let (ticks, high): (u64, u64);
    // SAFETY: counts in registers.
    unsafe {
        asm!(
            "mov ecx, 1000000",
            "rdtsc",
            "shl rdx, 32",
            "or rax, rdx",
            "mov {start}, rax",
            "2:",
            "dec rcx",
            "jnz 2b",
            "rdtsc",
            "shl rdx, 32",
            "or rax, rdx",
            "sub rax, {start}",
            start = out(reg) _,
            out("rax") ticks,
            out("rdx") high,
            out("rcx") _,
            options(nomem, nostack),
        );
    }
    let _ = high;
    ticks
}

/// What [`repeat`] executes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instruction {
    /// The loop only: three instructions.
    Nothing,
    /// CPUID with EAX = ECX = 0.
    Cpuid,
    /// RDTSC.
    Rdtsc,
    /// OUT to a port that must have been allowed.
    PortOut,
}

/// Executes an instruction `n` times (at least once), in a loop of three instructions that no
/// compiler changes.
#[inline(always)]
pub fn repeat(instruction: Instruction, n: u64) {
    macro_rules! cycle {
        ($before:literal, $body:literal, $after:literal $($operands:tt)*) => {
            // SAFETY: the instructions change the registers named only.
            unsafe {
                asm!(
                    $before, "2:", $body, "add {i}, 1", "cmp {i}, {n}", "jne 2b", $after,
                    i = inout(reg) 0_u64 => _, n = in(reg) n $($operands)*,
                    options(nostack)
                )
            }
        };
    }
    if n == 0 {
        return;
    }
    match instruction {
        Instruction::Nothing => cycle!("", "", ""),
        Instruction::Rdtsc => cycle!("", "rdtsc", "", out("rax") _, out("rdx") _),
        Instruction::PortOut => cycle!("", "out 0x80, al", "", in("al") 0_u8),
        // The compiler keeps RBX for itself.
        Instruction::Cpuid => cycle!(
            "mov {rbx}, rbx", "xor eax, eax\nxor ecx, ecx\ncpuid", "mov rbx, {rbx}",
            rbx = out(reg) _, out("rax") _, out("rcx") _, out("rdx") _
        ),
    }
}
