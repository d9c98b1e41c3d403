//! Keeps known values in all general registers and the flags while signals arrive.
//!
//! The state is static, since no register is left to point to it: one thread uses this at a time.
#![expect(unsafe_code, reason = "code that owns every general register, and a signal handler")]

use anyhow::{Result, bail};
use core::{
    arch::{asm, global_asm},
    sync::atomic::{
        AtomicI64, AtomicU64,
        Ordering::{Relaxed, SeqCst},
    },
};
use std::{process, ptr};

/// The registers, in the order of the tables below.
const NAMES: [&str; 16] = [
    "RAX", "RCX", "RDX", "RBX", "RBP", "RSI", "RDI", "R8", "R9", "R10", "R11", "R12", "R13", "R14",
    "R15", "RFLAGS",
];
const RAX: usize = 0;
const RDX: usize = 2;
const RSI: usize = 5;
const RDI: usize = 6;
const FLAGS: usize = 15;

/// CF, PF, AF, ZF, SF, DF and OF: all flags that user code sets and no debugger cares for.
const ALL_FLAGS: u64 = 0xcd5;

/// What the registers hold.
static HELD: [AtomicU64; 16] = [const { AtomicU64::new(0) }; 16];
/// What they held when the comparison failed.
static FOUND: [AtomicU64; 16] = [const { AtomicU64::new(0) }; 16];
/// Signals still to come; the handler counts down.
static AWAITED: AtomicI64 = AtomicI64::new(0);
/// Rounds still allowed.
static BUDGET: AtomicI64 = AtomicI64::new(0);

unsafe extern "C" {
    /// Spins until all signals have come.
    fn roost_spin_registers() -> u64;
    /// Makes the system call in RAX, RDI, RSI and RDX until all signals have come.
    fn roost_call_registers() -> u64;
}

/// Holds the registers and spins until `signals` signals came from elsewhere.
///
/// # Errors
/// A register changed, or the signals did not come within `rounds` rounds.
pub fn spin(signals: u64, rounds: u64) -> Result<()> {
    let pattern = |index: usize| 0x0101_0101_0101_0101 * (index as u64 + 1);
    run(pattern, signals, rounds, roost_spin_registers)
}

/// Holds the registers and sends `count` times `signal` to this thread. RCX and R11 belong to
/// the system call and are not compared.
///
/// # Errors
/// A register changed or a signal did not arrive.
pub fn send_to_self(signal: i32, count: u64) -> Result<()> {
    let pattern = |index: usize| match index {
        RAX => libc::SYS_tgkill as u64,
        RDI => u64::from(process::id()),
        RSI => nix::unistd::gettid().as_raw() as u64,
        RDX => signal as u64,
        other => 0x1111_1111_1111_1111_u64.wrapping_mul(other as u64 + 1),
    };
    run(pattern, count, count, roost_call_registers)
}

fn run(
    pattern: impl Fn(usize) -> u64,
    signals: u64,
    rounds: u64,
    hold: unsafe extern "C" fn() -> u64,
) -> Result<()> {
    for (half, flags) in [(signals / 2, ALL_FLAGS), (signals - signals / 2, 0)] {
        for (index, word) in HELD.iter().enumerate() {
            word.store(if index == FLAGS { flags } else { pattern(index) }, Relaxed);
        }
        AWAITED.store(half as i64, SeqCst);
        BUDGET.store(rounds as i64 + 1, SeqCst);
        // SAFETY: the function saves what the C ABI demands and touches the tables only.
        match unsafe { hold() } {
            0 => {}
            1 => bail!("{}", difference()),
            _ => bail!("{} of {half} signals did not come", AWAITED.load(SeqCst)),
        }
    }
    Ok(())
}

fn difference() -> String {
    let changed = (0..NAMES.len()).filter(|&index| {
        let mask = if index == FLAGS { ALL_FLAGS } else { u64::MAX };
        (HELD[index].load(Relaxed) ^ FOUND[index].load(Relaxed)) & mask != 0
    });
    let text = changed.map(|index| {
        let (held, found) = (HELD[index].load(Relaxed), FOUND[index].load(Relaxed));
        format!("{} was {held:#x} and is {found:#x}", NAMES[index])
    });
    text.collect::<Vec<_>>().join(", ")
}

/// Takes `signal` with a handler that counts it and leaves no caller-saved register as it was.
///
/// # Errors
/// The kernel refuses the handler.
pub fn catch(signal: i32) -> std::io::Result<()> {
    // SAFETY: an all-zero sigaction is valid: default action, empty mask.
    let mut action: libc::sigaction = unsafe { core::mem::zeroed() };
    action.sa_sigaction = on_signal as *const () as usize;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: the handler touches one counter and registers.
    let result = unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// Signals that came since the counter was last set, as a negative number or zero once all
/// awaited ones came.
pub fn awaited() -> i64 {
    AWAITED.load(SeqCst)
}

/// Sets the number of signals to wait for.
pub fn await_signals(count: i64) {
    AWAITED.store(count, SeqCst);
}

extern "C" fn on_signal(_: i32) {
    AWAITED.fetch_sub(1, SeqCst);
    // SAFETY: changes registers that a C function may change.
    unsafe {
        asm!(
            "mov rax, -1",
            "mov rcx, rax",
            "mov rdx, rax",
            "mov rsi, rax",
            "mov rdi, rax",
            "mov r8, rax",
            "mov r9, rax",
            "mov r10, rax",
            "mov r11, rax",
            "add rax, 1",
            "pcmpeqd xmm0, xmm0",
            ".irp i, 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
            r"movaps xmm\i, xmm0",
            ".endr",
            clobber_abi("C"),
            options(nomem, nostack),
        );
    }
}

// Out: RAX = 0 all signals came, 1 a register changed (FOUND holds all), 2 rounds used up.
// `$middle` runs with everything held and pushes the flags.
macro_rules! define {
    ($name:literal, $($middle:literal),*) => {
        global_asm!(
            concat!(".globl ", $name),
            concat!($name, ":"),
            "push rbx",
            "push rbp",
            "push r12",
            "push r13",
            "push r14",
            "push r15",
            "mov rax, [rip + {held}]",
            "mov rcx, [rip + {held} + 8]",
            "mov rdx, [rip + {held} + 16]",
            "mov rbx, [rip + {held} + 24]",
            "mov rbp, [rip + {held} + 32]",
            "mov rsi, [rip + {held} + 40]",
            "mov rdi, [rip + {held} + 48]",
            "mov r8, [rip + {held} + 56]",
            "mov r9, [rip + {held} + 64]",
            "mov r10, [rip + {held} + 72]",
            "mov r11, [rip + {held} + 80]",
            "mov r12, [rip + {held} + 88]",
            "mov r13, [rip + {held} + 96]",
            "mov r14, [rip + {held} + 104]",
            "mov r15, [rip + {held} + 112]",
            "2:",
            "push qword ptr [rip + {held} + 120]",
            "popfq",
            $($middle,)*
            "cmp rax, [rip + {held}]",
            "jne 4f",
            "cmp rcx, [rip + {held} + 8]",
            "jne 4f",
            "cmp rdx, [rip + {held} + 16]",
            "jne 4f",
            "cmp rbx, [rip + {held} + 24]",
            "jne 4f",
            "cmp rbp, [rip + {held} + 32]",
            "jne 4f",
            "cmp rsi, [rip + {held} + 40]",
            "jne 4f",
            "cmp rdi, [rip + {held} + 48]",
            "jne 4f",
            "cmp r8, [rip + {held} + 56]",
            "jne 4f",
            "cmp r9, [rip + {held} + 64]",
            "jne 4f",
            "cmp r10, [rip + {held} + 72]",
            "jne 4f",
            "cmp r11, [rip + {held} + 80]",
            "jne 4f",
            "cmp r12, [rip + {held} + 88]",
            "jne 4f",
            "cmp r13, [rip + {held} + 96]",
            "jne 4f",
            "cmp r14, [rip + {held} + 104]",
            "jne 4f",
            "cmp r15, [rip + {held} + 112]",
            "jne 4f",
            "mov rax, [rsp]",
            "and eax, {flags}",
            "cmp rax, [rip + {held} + 120]",
            "mov rax, [rip + {held}]",
            "jne 4f",
            "lea rsp, [rsp + 8]",
            "cmp qword ptr [rip + {awaited}], 0",
            "jle 3f",
            "dec qword ptr [rip + {budget}]",
            "jnz 2b",
            "mov eax, 2",
            "jmp 5f",
            "3:",
            "xor eax, eax",
            "jmp 5f",
            "4:",
            "mov [rip + {found}], rax",
            "mov [rip + {found} + 8], rcx",
            "mov [rip + {found} + 16], rdx",
            "mov [rip + {found} + 24], rbx",
            "mov [rip + {found} + 32], rbp",
            "mov [rip + {found} + 40], rsi",
            "mov [rip + {found} + 48], rdi",
            "mov [rip + {found} + 56], r8",
            "mov [rip + {found} + 64], r9",
            "mov [rip + {found} + 72], r10",
            "mov [rip + {found} + 80], r11",
            "mov [rip + {found} + 88], r12",
            "mov [rip + {found} + 96], r13",
            "mov [rip + {found} + 104], r14",
            "mov [rip + {found} + 112], r15",
            "pop qword ptr [rip + {found} + 120]",
            "mov eax, 1",
            "5:",
            "cld",
            "pop r15",
            "pop r14",
            "pop r13",
            "pop r12",
            "pop rbp",
            "pop rbx",
            "ret",
            held = sym HELD,
            found = sym FOUND,
            awaited = sym AWAITED,
            budget = sym BUDGET,
            flags = const ALL_FLAGS,
        );
    };
}

define!("roost_spin_registers", ".rept 64", "nop", ".endr", "pushfq");
// A call that succeeded gives RAX, RCX and R11 back their values; one that failed leaves RAX
// for the comparison to find.
define!(
    "roost_call_registers",
    "syscall",
    "pushfq",
    "test rax, rax",
    "jne 6f",
    "mov rax, [rip + {held}]",
    "6:",
    "mov rcx, [rip + {held} + 8]",
    "mov r11, [rip + {held} + 80]"
);
