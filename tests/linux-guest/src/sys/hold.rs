//! Keeps a known pattern in all vector registers over system calls, and says how often it broke.
#![expect(unsafe_code, reason = "code that owns every vector register")]

use super::mapping::Mapping;
use core::{arch::global_asm, mem::offset_of, sync::atomic::AtomicU64};

/// Bytes of the vector registers in a [`Pattern`]: 32 of 64 bytes.
const VECTORS: usize = 32 * 64;
/// 8-byte words of a [`Pattern`].
const WORDS: usize = VECTORS / 8 + 10;
/// Where the mask registers, MXCSR and the x87 control word are.
const MASKS: usize = VECTORS;
const MXCSR: usize = MASKS + 64;
const CONTROL: usize = MXCSR + 8;

/// Which registers there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// XMM0..15.
    Sse,
    /// YMM0..15.
    Avx,
    /// ZMM0..31 and the mask registers.
    Avx512,
}

impl Width {
    /// The widest registers of this CPU.
    pub fn detect() -> Self {
        if std::is_x86_feature_detected!("avx512f") {
            Self::Avx512
        } else if std::is_x86_feature_detected!("avx") {
            Self::Avx
        } else {
            Self::Sse
        }
    }
}

/// Content of the vector registers, MXCSR and the x87 control word.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct Pattern([u64; WORDS]);

impl Pattern {
    /// A pattern that differs from those of other seeds in every register.
    pub fn new(seed: u64) -> Self {
        let mut words = [0; WORDS];
        for (index, word) in words.iter_mut().enumerate() {
            *word = (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (seed << 48);
        }
        for mask in &mut words[MASKS / 8..MXCSR / 8] {
            *mask &= 0xffff;
        }
        // All exceptions masked; the seed picks one of four rounding modes.
        words[MXCSR / 8] = 0x1f80 | (seed & 3) << 13;
        words[CONTROL / 8] = 0x037f | (seed & 3) << 10;
        Self(words)
    }
}

/// Whose turn it is, when several processes hold patterns on one CPU.
#[derive(Clone, Copy, Debug)]
pub struct Turn<'a> {
    /// The word that they share.
    pub word: &'a AtomicU64,
    /// Its value when it is our turn.
    pub own: u64,
    /// Its value when we have had our turn.
    pub next: u64,
}

/// A system call to make while the pattern is held.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Call {
    number: u64,
    arguments: [u64; 3],
}

impl Call {
    /// Lets others run.
    pub const YIELD: Self = Self { number: libc::SYS_sched_yield as u64, arguments: [0; 3] };

    /// Sends `signal` to this thread.
    pub fn signal(signal: i32) -> Self {
        let (process, thread) = (std::process::id(), nix::unistd::gettid().as_raw() as u64);
        Self {
            number: libc::SYS_tgkill as u64,
            arguments: [u64::from(process), thread, signal as u64],
        }
    }
}

#[repr(C)]
struct Job {
    pattern: *const Pattern,
    found: *mut Pattern,
    turn: *const AtomicU64,
    own: u64,
    next: u64,
    rounds: u64,
    call: Call,
}

/// Holds `pattern`; `rounds` times: makes `call` until it is our turn, compares, gives the turn
/// away. Returns how many comparisons failed.
pub fn hold(width: Width, pattern: &Pattern, call: Call, turn: Turn<'_>, rounds: u64) -> u64 {
    if rounds == 0 {
        return 0;
    }
    let mut found = pattern.clone();
    let job = Job {
        pattern,
        found: &raw mut found,
        turn: turn.word,
        own: turn.own,
        next: turn.next,
        rounds,
        call,
    };
    // SAFETY: the functions read `job` and write `found` and the turn word, which outlive the
    // call; the two possible system calls touch no memory of the program. The CPU has the
    // registers, as `Width::detect` found.
    unsafe {
        match width {
            Width::Sse => roost_hold_sse(&raw const job),
            Width::Avx => roost_hold_avx(&raw const job),
            Width::Avx512 => roost_hold_avx512(&raw const job),
        }
    }
}

/// Holds a pattern alone; see [`hold`].
pub fn hold_alone(width: Width, pattern: &Pattern, call: Call, rounds: u64) -> u64 {
    let word = AtomicU64::new(0);
    hold(width, pattern, call, Turn { word: &word, own: 0, next: 0 }, rounds)
}

/// Holds changing patterns in turn with others, `rounds` times in all; see [`hold`].
pub fn hold_in_turn(shared: &Mapping, seed: u64, turn: (u64, u64), rounds: u64) -> u64 {
    let width = Width::detect();
    let turn = Turn { word: &shared.words()[0], own: turn.0, next: turn.1 };
    let mut broken = 0;
    for (index, done) in (0..rounds).step_by(256).enumerate() {
        let pattern = Pattern::new(seed + 4 * index as u64);
        broken += hold(width, &pattern, Call::YIELD, turn, 256.min(rounds - done));
    }
    broken
}

unsafe extern "C" {
    fn roost_hold_sse(job: *const Job) -> u64;
    fn roost_hold_avx(job: *const Job) -> u64;
    fn roost_hold_avx512(job: *const Job) -> u64;
}

// In: RDI = job. Out: RAX = failed comparisons. Changes every register the C ABI lets it change;
// RBX = job, R12 = rounds left, R13 = failed comparisons, [RSP] = old MXCSR and control word.
macro_rules! define {
    ($name:literal, $load:literal, $store:literal, $leave:literal) => {
        global_asm!(
            concat!(".globl ", $name),
            concat!($name, ":"),
            "push rbx",
            "push r12",
            "push r13",
            "sub rsp, 16",
            "stmxcsr [rsp]",
            "fnstcw [rsp + 8]",
            "mov rbx, rdi",
            "mov r12, [rbx + {rounds}]",
            "xor r13d, r13d",
            "mov rax, [rbx + {pattern}]",
            "ldmxcsr [rax + {mxcsr}]",
            "fldcw [rax + {control}]",
            $load,
            "2:",
            "mov rax, [rbx + {call}]",
            "mov rdi, [rbx + {call} + 8]",
            "mov rsi, [rbx + {call} + 16]",
            "mov rdx, [rbx + {call} + 24]",
            "syscall",
            "mov rcx, [rbx + {turn}]",
            "mov rax, [rbx + {own}]",
            "cmp [rcx], rax",
            "jne 2b",
            "mov rax, [rbx + {found}]",
            $store,
            "stmxcsr [rax + {mxcsr}]",
            "fnstcw [rax + {control}]",
            "mov rdi, rax",
            "mov rax, [rbx + {next}]",
            "mov [rcx], rax",
            "mov rsi, [rbx + {pattern}]",
            "mov ecx, {words}",
            "repe cmpsq",
            "je 3f",
            "inc r13",
            "3:",
            "dec r12",
            "jnz 2b",
            $leave,
            "ldmxcsr [rsp]",
            "fldcw [rsp + 8]",
            "mov rax, r13",
            "add rsp, 16",
            "pop r13",
            "pop r12",
            "pop rbx",
            "ret",
            pattern = const offset_of!(Job, pattern),
            found = const offset_of!(Job, found),
            turn = const offset_of!(Job, turn),
            own = const offset_of!(Job, own),
            next = const offset_of!(Job, next),
            rounds = const offset_of!(Job, rounds),
            call = const offset_of!(Job, call),
            mxcsr = const MXCSR,
            control = const CONTROL,
            words = const WORDS,
        );
    };
}

define!(
    "roost_hold_sse",
    r".irp i, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
      movups xmm\i, [rax + 64*\i]
      .endr",
    r".irp i, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
      movups [rax + 64*\i], xmm\i
      .endr",
    ""
);

define!(
    "roost_hold_avx",
    r".irp i, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
      vmovups ymm\i, [rax + 64*\i]
      .endr",
    r".irp i, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
      vmovups [rax + 64*\i], ymm\i
      .endr",
    "vzeroupper"
);

define!(
    "roost_hold_avx512",
    r".irp i, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
      vmovups zmm\i, [rax + 64*\i]
      .endr
      .irp i, 0,1,2,3,4,5,6,7
      kmovw k\i, [rax + 2048 + 8*\i]
      .endr",
    r".irp i, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
      vmovups [rax + 64*\i], zmm\i
      .endr
      .irp i, 0,1,2,3,4,5,6,7
      kmovw [rax + 2048 + 8*\i], k\i
      .endr",
    "vzeroupper"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_of_different_seeds_share_no_register() {
        let (a, b) = (Pattern::new(1), Pattern::new(2));
        assert!(a.0[..MASKS / 8].iter().zip(&b.0).all(|(a, b)| a != b));
        assert_ne!(a.0[MXCSR / 8], b.0[MXCSR / 8]);
        assert_ne!(a.0[CONTROL / 8], b.0[CONTROL / 8]);
    }

    #[test]
    fn every_width_below_the_cpus_holds() {
        let widths = [Width::Sse, Width::Avx, Width::Avx512];
        let top = Width::detect();
        for width in widths.into_iter().take_while(|width| *width != top).chain([top]) {
            assert_eq!(hold_alone(width, &Pattern::new(3), Call::YIELD, 10), 0, "{width:?}");
        }
    }
}
