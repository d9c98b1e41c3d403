//! Attacks by interrupts: more than can be taken, at every moment, with the flag changing.
//! May: nothing. Context: any. Input: random.

use crate::{
    judge::{Group, Rounds, attack},
    runtime::{
        abi::{self, pvcs, tsc},
        counters::Reason,
        memory, piece,
        trial::{Interrupts, Mode, SEEN, Trial, Way, stack},
    },
};
use hostile::values;
use pv_abi::{
    event::{BP, INT80},
    ext::call,
    hypercall as nr,
    msr::{arch, x2apic},
    pvcs::offset,
};
use suite::{holds, same, verdict::Verdict};

pub const GROUP: Group = Group {
    name: "storm",
    attacks: &[
        attack("self_ipi", "DEV-6 DEV-7 EVT-9", 30, self_ipi),
        attack("timer", "DEV-5 EVT-9 HC-5", 20, timer),
        attack("window", "HC-4 EVT-9 INS-11 RET-3", 30, window),
        attack("apic", "DEV-1 MSR-21", 20, apic),
        attack("fast_timer", "DEV-5", 1, fast_timer),
        attack("log", "XHC-5", 5, log),
    ],
};

const DEADLINE: u64 = 2 << 17;
const PERIODIC: u64 = 1 << 17;
const VECTOR: u64 = 0x41;

/// The longest line for L1's log.
const LINE: u64 = 1024;

/// Requests by both registers, of every vector; as many as there are at once.
fn self_ipi(rounds: &mut Rounds) -> Verdict {
    memory::reset_pages(|| 0);
    memory::write_code(piece::int3());
    while let Some(round) = rounds.next() {
        let random = &mut rounds.random;
        for _ in 0..random.below(4) {
            let vector = random.below(256);
            if random.once_in(2) {
                abi::wrmsr(x2apic::SELF_IPI, vector);
            } else {
                // Any mode, any destination.
                let command = values::number(random) & !0xff | vector;
                abi::wrmsr(x2apic::ICR, command);
            }
        }
        let mode = if random.once_in(2) { Mode::User } else { Mode::Supervisor };
        let open = if random.once_in(4) { Interrupts::Strays } else { Interrupts::Open };
        let left = Trial::new(mode).but(|t| t.interrupts = open).run();
        let fitting = matches!(left.way, Way::Event(BP | 16..32 | INT80) | Way::Interrupt(_));
        holds!(fitting, "round {round}: {:?}", left.way);
        if let Way::Event(16..) = left.way {
            // An interrupt with the vector of an exception, or of INT 0x80.
            abi::end_of_interrupt();
        }
    }
    holds!(SEEN.interrupts() >= rounds.count / 8, "too few interrupts");
    Ok(())
}

/// Deadlines around now, at each distance, while the guest runs, waits, and goes in and out.
fn timer(rounds: &mut Rounds) -> Verdict {
    memory::reset_pages(|| 0);
    let codes = [piece::nops(), piece::halt(), piece::irq_halt(), piece::int3()];
    while let Some(round) = rounds.next() {
        let random = &mut rounds.random;
        abi::wrmsr(x2apic::LVT_TIMER, DEADLINE | VECTOR);
        let waiting = random.once_in(2);
        let code = if waiting { random.pick(&codes[1..3]) } else { random.pick(&codes) };
        let waits = code == codes[1] || code == codes[2];
        // Short and long, whatever the guest's clock counts and whoever else has the CPU.
        let reach = 1 << random.below(22);
        let distance = random.below(reach).wrapping_sub(2000);
        let deadline = if !waits && random.once_in(8) {
            values::number(random)
        } else {
            tsc().wrapping_add(distance)
        };
        abi::wrmsr(arch::TSC_DEADLINE, deadline);
        let mode = if waits || random.once_in(2) { Mode::Supervisor } else { Mode::User };
        let left = Trial::of(mode, code).but(|t| t.interrupts = Interrupts::Open).run();
        let fitting = matches!(left.way, Way::Event(BP) | Way::Interrupt(0x41));
        holds!(fitting, "round {round}: {:?}", left.way);
    }
    holds!(SEEN.interrupts() >= rounds.count / 8, "too few interrupts");
    rounds.entered(Reason::Halt, rounds.count / 16)
}

/// The flag goes on and off while something waits: by STI and CLI, in the PVCS, by IRQ_WIN.
fn window(rounds: &mut Rounds) -> Verdict {
    memory::reset_pages(|| 0);
    let codes = [piece::sti_cli(), piece::int3()];
    while let Some(round) = rounds.next() {
        let random = &mut rounds.random;
        if random.once_in(2) {
            abi::wrmsr(x2apic::SELF_IPI, 32 + random.below(96));
        }
        for _ in 0..random.below(4) {
            match random.below(3) {
                0 => pvcs().set_word(offset::EVENT_FLAGS, random.bits() & !0x200),
                1 => {
                    abi::call(nr::IRQ_WIN, [0; 4]);
                }
                _ => pvcs().disable_interrupts(),
            }
        }
        let mode = if random.once_in(2) { Mode::User } else { Mode::Supervisor };
        let code = if mode == Mode::User { codes[1] } else { random.pick(&codes) };
        let masked = random.once_in(3);
        let choice = if masked { Interrupts::Masked } else { Interrupts::Open };
        let left = Trial::of(mode, code).but(|t| t.interrupts = choice).run();
        let fitting = matches!(left.way, Way::Event(BP) | Way::Interrupt(32..128));
        holds!(fitting, "round {round}: {:?} at {:#x}", left.way, left.rip);
        if masked && mode == Mode::Supervisor && code == codes[1] {
            same!(left.way, Way::Event(BP), "round {round}: with the flag clear");
        }
    }
    holds!(SEEN.interrupts() >= rounds.count / 16, "too few interrupts");
    Ok(())
}

/// Any register of the local APIC, any value.
fn apic(rounds: &mut Rounds) -> Verdict {
    memory::reset_pages(|| 0);
    memory::write_code(piece::int3());
    while let Some(round) = rounds.next() {
        let random = &mut rounds.random;
        for _ in 0..4 {
            let index = x2apic::FIRST + random.below(64) as u32;
            abi::rdmsr(index);
            let mut value = values::number(random) >> random.pick(&[0, 32]);
            // A period that leaves time for something else: `fast_timer` has the others.
            if index == x2apic::TIMER_INITIAL && value != 0 {
                value |= 1 << 20;
            }
            abi::wrmsr(index, value);
        }
        let trial = Trial::new(Mode::User).but(|t| t.interrupts = Interrupts::Open);
        let left = trial.run();
        let fitting = matches!(left.way, Way::Event(BP | 16..32 | INT80) | Way::Interrupt(_));
        holds!(fitting, "round {round}: {:?}", left.way);
        if round % 64 == 0 {
            abi::quiet();
        }
    }
    rounds.entered(Reason::HypercallMsr, 8 * rounds.count)
}

/// A periodic timer faster than interrupts can be taken: the guest may come to nothing, but the
/// hypervisor lets it stop it.
fn fast_timer(rounds: &mut Rounds) -> Verdict {
    memory::reset_pages(|| 0);
    memory::write_code(piece::nops());
    while rounds.next().is_some() {
        let random = &mut rounds.random;
        abi::wrmsr(x2apic::TIMER_DIVIDE, 0b1011);
        abi::wrmsr(x2apic::LVT_TIMER, PERIODIC | VECTOR);
        abi::wrmsr(x2apic::TIMER_INITIAL, 1 << random.below(16));
        let mode = if random.once_in(2) { Mode::User } else { Mode::Supervisor };
        Trial::new(mode).but(|t| t.interrupts = Interrupts::Open).with(|r| r.rbx = stack()).run();
        abi::quiet();
    }
    holds!(SEEN.interrupts() >= rounds.count / 8, "too few interrupts");
    Ok(())
}

/// Long lines for L1's log, one after another, more than anybody wants to keep.
fn log(rounds: &mut Rounds) -> Verdict {
    memory::reset_pages(|| 0x6767_6767_6767_6767);
    let gpa = memory::own_pages().data_frame(0);
    while let Some(round) = rounds.next() {
        same!(abi::call(call::LOG, [gpa, LINE, 0, 0]), LINE, "round {round}: LOG");
    }
    Ok(())
}
