//! Attacks by hypercalls: any number, any arguments.
//! May: nothing. Context: any. Input: random.

use crate::{
    judge::{Group, Rounds, attack},
    runtime::{abi, console, counters::Reason, memory, second},
};
use hostile::values;
use pv_abi::{
    ext::{Features, call},
    hypercall::{self as nr, EINVAL, ENOSYS, EPERM},
};
use suite::{holds, random::Random, same, verdict::Verdict};

pub const GROUP: Group = Group {
    name: "calls",
    attacks: &[
        attack("unknown", "HC-2 EXT-3", 20, unknown),
        attack("enable", "EXT-2 XHC-0 FEAT-2 FEAT-6", 10, enable),
        attack("known", "HC-1 EXT-3", 60, known),
        attack("known_enabled", "XHC-1 XHC-2 XHC-9 XHC-14 XHC-15", 60, known_enabled),
    ],
};

/// Frames that calls with addresses may name.
const SCRATCH: u64 = 64;

/// A number of a call: each that there is, their neighbours, and any.
pub fn number(random: &mut Random) -> u64 {
    match random.below(8) {
        0..3 => nr::PVM_BASE + random.below(12),
        3..6 => call::BASE + random.below(20),
        6 => random.pick(&[nr::PVM_BASE, call::BASE]).wrapping_sub(8) + random.below(300),
        _ => values::number(random),
    }
}

fn exists(number: u64) -> bool {
    (nr::LOAD_PGTBL..=nr::LOAD_TLS).contains(&number) || (call::BASE..=call::LAST).contains(&number)
}

/// Numbers that do not exist, with upper halves that make others of them.
fn unknown(rounds: &mut Rounds) -> Verdict {
    while rounds.next().is_some() {
        let random = &mut rounds.random;
        let mut number = number(random);
        if exists(number) {
            number |= 1 << (32 + random.below(32));
        }
        let arguments = core::array::from_fn(|_| values::number(random));
        same!(abi::call(number, arguments), ENOSYS, "{number:#x}");
    }
    rounds.entered(Reason::Hypercall, rounds.count)
}

/// Features that a guest can have and go on as it did: the others change what SYSCALL and the GS
/// base mean.
const HARMLESS: Features = Features::all()
    .difference(Features::SYSCALL_REFLECTION)
    .difference(Features::NATIVE_GS)
    .difference(Features::NOTES)
    .difference(Features::VM_WINDOW)
    .difference(Features::TIMER_WORD);

/// The first bit that has no meaning.
const UNKNOWN: u64 = 64 - (Features::all().bits() as u64).leading_zeros() as u64;

/// Bits that are not offered are refused, with whatever comes with them.
fn enable(rounds: &mut Rounds) -> Verdict {
    while rounds.next().is_some() {
        let random = &mut rounds.random;
        let mut bits = values::number(random);
        if bits & !u64::from(Features::all().bits()) == 0 {
            bits |= match random.below(3) {
                0 => Features::NOTES.bits().into(),
                1 => Features::VM_WINDOW.bits().into(),
                _ => 1 << (UNKNOWN + random.below(64 - UNKNOWN)),
            };
        }
        same!(abi::call1(call::ENABLE, bits), EINVAL, "ENABLE {bits:#x}");
    }
    rounds.entered(Reason::Hypercall, rounds.count)
}

/// Every call, as it is at first.
fn known(rounds: &mut Rounds) -> Verdict {
    memory::reset_pages(|| 0);
    fuzz(rounds)
}

/// Every call, with all features that a guest can have and go on.
fn known_enabled(rounds: &mut Rounds) -> Verdict {
    let answer = abi::call1(call::ENABLE, HARMLESS.bits().into());
    same!(answer, 0, "ENABLE");
    fuzz(rounds)
}

fn fuzz(rounds: &mut Rounds) -> Verdict {
    super::msrs::clear_pages();
    while let Some(round) = rounds.next() {
        let random = &mut rounds.random;
        let number = match random.below(24) {
            choice @ 0..10 => nr::PVM_BASE + choice,
            _ => call::BASE + random.below(call::LAST - call::BASE + 1),
        };
        let arguments = arguments(random, number);
        let Some(arguments) = arguments else { continue };
        let answer = abi::call(number, arguments);
        let sane = fitting(number, answer);
        holds!(sane, "round {round}: {number:#x} {arguments:x?} answers {answer:#x}");
        if number == nr::WRMSR {
            abi::restore();
        }
        if round % 4096 == 0 {
            abi::quiet();
        }
    }
    console::reset();
    rounds.entered(Reason::Hypercall, rounds.count / 3)
}

/// Arguments that the guest survives; `None` for a call that it does not, or that is of no use
/// here.
fn arguments(random: &mut Random, number: u64) -> Option<[u64; 4]> {
    let mut arguments: [u64; 4] = core::array::from_fn(|_| values::number(random));
    // Memory that may be written, printed and converted; else none at all.
    let gpa = |random: &mut Random, drawn: u64| match random.below(2) {
        0 => memory::frame(random.below(SCRATCH)) + drawn % 4096,
        _ => drawn | random.pick(&[1 << 40, 1 << 52, 1 << 63]),
    };
    match number {
        // A root that is one, or no memory.
        nr::LOAD_PGTBL => {
            arguments[1] = match random.below(2) {
                0 => memory::kernel_root() | arguments[1] & !0x000f_ffff_ffff_f000,
                _ => arguments[1] | 1 << 51,
            };
        }
        // Nothing may come that would end the waiting: a timer that is armed.
        nr::IRQ_HALT | call::WAIT_IRQ | call::VCPU_STOP | call::SHUTDOWN => return None,
        nr::WRMSR => {
            let (index, value) = super::msrs::write(random);
            [arguments[0], arguments[1]] = [index, value];
        }
        call::ENABLE => arguments[0] |= 1 << 63,
        call::LOG | call::CONSOLE_WRITE => {
            // Nothing is printed: what is no memory, or no bytes.
            arguments[0] |= 1 << 52;
            arguments[1] = arguments[1].max(1);
        }
        call::CONSOLE_READ => arguments[0] = gpa(random, arguments[0]),
        // One that raises something.
        call::CONSOLE_VECTOR => arguments[0] &= !0xff,
        call::SHARE | call::UNSHARE => {
            arguments[0] = gpa(random, arguments[0]);
            if random.once_in(2) {
                arguments[0] &= !0xfff;
            }
            if arguments[0] < memory::memory() {
                arguments[1] = random.pick(&[0, 1, 1, 2, 8, SCRATCH, u64::MAX, 1 << 52]);
            }
            arguments[2] = random.pick(&[0, 1, 1, 2, arguments[2]]);
        }
        // `smp.starts` has those.
        call::VCPU_START if arguments[0] == second::INDEX => arguments[0] = 0,
        // It prints a line for each call.
        call::CHECK_ROOTS if !random.once_in(200) => return None,
        _ => {}
    }
    Some(arguments)
}

/// Whether a call may answer so.
fn fitting(number: u64, answer: u64) -> bool {
    match number {
        nr::LOAD_PGTBL | nr::IRQ_WIN | nr::TLB_FLUSH..=nr::TLB_INVLPG | nr::LOAD_TLS => answer == 0,
        nr::WRMSR => answer == 0 || answer == nr::EIO,
        call::ENABLE => answer == EINVAL,
        call::PIN_ROOT | call::UNPIN_ROOT | call::UNPIN_TABLE => answer == EPERM,
        call::CHECK_ROOTS => answer == 0,
        _ => answer != ENOSYS,
    }
}
