//! Attacks by instructions: any bytes, with any registers.
//! May: nothing. Context: any. Input: random.
//!
//! A periodic timer ends loops. In supervisor mode a few instructions are taken out that end the
//! VM by the rules, or the timer: `program` says which. Each is tried on its own: `single`, `die`.

use crate::{
    judge::{Group, Rounds, attack},
    runtime::{
        abi::{self, pvcs},
        counters::Reason,
        memory,
        registers::Registers,
        trial::{Interrupts, Mode, Trial, Way, stack},
    },
};
use hostile::program::Program;
use pv_abi::{
    event::{BP, GP, PF, UD},
    msr::x2apic,
    selectors::{USER_CS_SS, USER_DS, USER32_CS},
};
use suite::{holds, random::Random, verdict::Verdict};

pub const GROUP: Group = Group {
    name: "fuzz",
    attacks: &[
        attack("user_bytes", "INS-1 EVT-1", 60, |rounds| fuzz(rounds, Kind::User, 1)),
        attack("user_seeds", "INS-1 EVT-1", 80, |rounds| fuzz(rounds, Kind::User, 7)),
        attack("user_32", "EVT-1 EVT-6", 40, |rounds| fuzz(rounds, Kind::User32, 5)),
        attack("supervisor_bytes", "INS-18 EVT-2", 60, |rounds| fuzz(rounds, Kind::Supervisor, 1)),
        attack("supervisor_seeds", "INS-18 EVT-2", 80, |rounds| fuzz(rounds, Kind::Supervisor, 7)),
        attack("steps", "INS-2 EVT-1 EVT-2", 20, steps),
    ],
};

/// The timer's vector: above the rest.
const VECTOR: u64 = 0xf0;
const PERIODIC: u64 = 1 << 17;
const BY_ONE: u64 = 0b1011;
/// Ticks for which a loop may run.
const PERIOD: u64 = 200_000;

/// What runs the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    User,
    User32,
    Supervisor,
}

/// Runs `body` while a timer ends what does not end by itself.
pub fn with_timer(body: impl FnOnce()) {
    start_timer();
    body();
    abi::quiet();
}

fn start_timer() {
    abi::wrmsr(x2apic::TIMER_DIVIDE, BY_ONE);
    abi::wrmsr(x2apic::LVT_TIMER, PERIODIC | VECTOR);
    abi::wrmsr(x2apic::TIMER_INITIAL, PERIOD);
}

/// A register for any program: none names memory of the guest's, an MSR that matters, or the UART.
fn value(random: &mut Random) -> u64 {
    const VALUES: [u64; 12] = [
        0,
        1,
        2,
        0x2b,
        0x33,
        0x1000,
        0xffff_ffff,
        0x8000_0000,
        0x7fff_ffff_ffff,
        0x8000_0000_0000,
        0xffff_8000_0000_0000,
        u64::MAX,
    ];
    match random.below(4) {
        0 => random.pick(&VALUES),
        1 => 1 << random.below(64),
        2 => memory::DATA + random.below(memory::DATA_PAGES * 4096),
        _ => random.bits() | 1 << 40,
    }
}

fn fuzz(rounds: &mut Rounds, kind: Kind, seeds: u64) -> Verdict {
    let random = &mut rounds.random;
    memory::reset_pages(|| random.bits());
    let mut registers = Registers::default();
    start_timer();
    while let Some(round) = rounds.next() {
        let random = &mut rounds.random;
        if round % 4096 == 0 {
            // Whatever happened to timer and pages.
            abi::quiet();
            abi::reset_unit();
            memory::reset_pages(|| random.bits());
            start_timer();
        }
        if round % 4 == 0 {
            registers = Registers::drawn(random, value);
            registers.rsp = if random.once_in(8) { value(random) } else { stack() };
        }
        let mut program = Program::draw(random, seeds);
        program.spare_emulator();
        let mode = match kind {
            Kind::Supervisor => {
                program.spare_supervisor();
                Mode::Supervisor
            }
            _ => Mode::User,
        };
        let cs = if kind == Kind::User32 { USER32_CS.into() } else { USER_CS_SS & 0xffff };
        // Loops are to end.
        Trial::of(mode, program.bytes())
            .but(|t| {
                t.registers = registers;
                t.selectors = cs | u32::from(USER_DS) << 16;
                t.interrupts = Interrupts::Open;
                t.rflags |= random.bits() & 0xcd5;
            })
            .run();
    }
    abi::quiet();
    let few = rounds.count / 64;
    for vector in [BP, UD, GP, PF] {
        rounds.raised(vector, few)?;
    }
    if kind == Kind::Supervisor && seeds > 1 {
        rounds.entered(Reason::Emulated, few)?;
    }
    Ok(())
}

/// Programs that are stepped through: the flag stays set, and each step is an event.
fn steps(rounds: &mut Rounds) -> Verdict {
    const STEPS: u64 = 8;
    /// On a busy machine interrupts may come as fast as steps do.
    const RUNS: u64 = 4 * STEPS;
    let random = &mut rounds.random;
    memory::reset_pages(|| random.bits());
    let mut stepped = 0_u64;
    while let Some(round) = rounds.next() {
        let random = &mut rounds.random;
        let mode = if random.once_in(2) { Mode::User } else { Mode::Supervisor };
        let mut program = Program::draw(random, 6);
        program.spare_emulator();
        if mode == Mode::Supervisor {
            program.spare_supervisor();
        }
        let mut trial = Trial::of(mode, program.bytes());
        trial.registers = Registers { rsp: stack(), ..Registers::drawn(random, value) };
        trial.interrupts = Interrupts::Open;
        if round % 256 == 0 {
            abi::quiet();
            start_timer();
        }
        let mut done = 0;
        for _ in 0..RUNS {
            let left = trial.but(|t| t.rflags |= 0x100).run();
            match left.way {
                _ if left.mode != mode => break,
                Way::Event(1) => done += 1,
                Way::Interrupt(_) => {}
                _ => break,
            }
            if done == STEPS {
                break;
            }
            // Where it was, and with what it had; its segments stay the usual ones.
            trial.rip = left.rip;
            trial.registers = left.registers;
            pvcs().take_event();
        }
        stepped += done;
    }
    abi::quiet();
    holds!(stepped >= rounds.count / 4, "only {stepped} steps");
    Ok(())
}
