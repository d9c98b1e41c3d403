//! Attacks by software interrupts, breakpoints, and instructions that delay them.
//! May: nothing. Context: any. Input: random.

use crate::{
    judge::{Group, Rounds, attack},
    runtime::{
        counters::Reason,
        memory::{self, STACK_OFFSET},
        piece,
        trial::{Left, Mode, Trial, Way, code, stack},
    },
};
use hostile::values;
use pv_abi::{
    event::{BP, DB, GP, INT80, OF, UD},
    selectors::USER_DS,
};
use suite::{
    holds,
    verdict::{Case, Verdict},
};

pub const GROUP: Group = Group {
    name: "interrupts",
    attacks: &[
        attack("int_n", "SEL-3 INS-18", 20, int_n),
        attack("delayed", "INS-10 EVT-1 EVT-2 EVT-5", 20, delayed),
        attack("breakpoints", "INS-10 EVT-8", 20, breakpoints),
    ],
};

/// INT n, every vector in both modes.
fn int_n(rounds: &mut Rounds) -> Verdict {
    memory::reset_pages(|| 0);
    while let Some(round) = rounds.next() {
        let vector = round as u8;
        let mode = if round >> 8 & 1 == 0 { Mode::User } else { Mode::Supervisor };
        let left = Trial::of(mode, &[0xcd, vector]).run();
        let verdict = match vector {
            BP | OF | INT80 => left.is(vector, code(mode) + 2),
            _ => left.is(GP, code(mode)).and_then(|()| {
                // The one of interrupt descriptors: index, and the bit that says so.
                // QEMU's emulator shifts by one more.
                let index = u16::from(vector) << 3;
                let fitting = [index | 2, index << 1 | 2].contains(&left.error);
                holds!(fitting, "the error code is {:#x}", left.error);
                Ok(())
            }),
        };
        verdict.case(format_args!("int {vector:#x}, {mode:?}"))?;
    }
    rounds.raised(GP, rounds.count * 9 / 10)
}

/// Loads of SS, which put off a breakpoint on the stack segment's new value until after the next
/// instruction, which enters the hypervisor; with single steps as well.
fn delayed(rounds: &mut Rounds) -> Verdict {
    memory::reset_pages(|| 0);
    memory::set_data(STACK_OFFSET, USER_DS.into());
    let pieces = [
        piece::mov_ss_syscall(),
        piece::mov_ss_int3(),
        piece::mov_ss_int80(),
        piece::mov_ss_icebp(),
        piece::mov_ss_ud2(),
        piece::mov_ss_mov_ss(),
        piece::icebp(),
        piece::sti_syscall(),
    ];
    while let Some(round) = rounds.next() {
        let random = &mut rounds.random;
        if round % 64 == 0 {
            // A breakpoint on the word that SS is loaded from, of any kind.
            let control = 0x400 | 1 << random.below(2) | random.below(16) << 16;
            let [a, b] = [stack(), code(Mode::User)];
            arm([a, b, stack(), 0], control | random.below(256))?;
        }
        let mode = if random.once_in(2) { Mode::User } else { Mode::Supervisor };
        let code = random.pick(&pieces);
        let step = if random.once_in(2) { 0x100 } else { 0 };
        let left = Trial::of(mode, code).but(|t| t.rflags |= step).with(|r| r.rbx = stack()).run();
        let fitting = match left.way {
            Way::Event(DB | BP | UD | INT80) | Way::Syscall => true,
            Way::Event(GP) => code == piece::sti_syscall() && mode == Mode::User,
            _ => false,
        };
        holds!(fitting, "round {round}: {:?} at {:#x}", left.way, left.rip);
        holds!(near(&left, mode), "round {round}: left at {:#x}", left.rip);
    }
    disarm()?;
    rounds.raised(DB, rounds.count / 4)
}

fn near(left: &Left, mode: Mode) -> bool {
    left.mode == mode && left.rip.wrapping_sub(code(mode)) < 32
}

/// Loads the debug registers.
fn arm(addresses: [u64; 4], control: u64) -> Verdict {
    let trial = Trial::of(Mode::Supervisor, piece::set_debug());
    let [a, b, c, d] = addresses;
    let left = trial.with(|r| (r.rbx, r.rbp, r.rsi, r.rdi, r.rax) = (a, b, c, d, control)).run();
    // A breakpoint may be on the code that sets them.
    let fitting = matches!(left.way, Way::Event(BP | DB));
    holds!(fitting || control >> 32 != 0, "MOV to DR: {:?}", left.way);
    Ok(())
}

fn disarm() -> Verdict {
    arm([0; 4], 0x400)
}

/// Breakpoints on the guest's code and data, on L1's, and on anything, while code runs that enters
/// the hypervisor in every way.
fn breakpoints(rounds: &mut Rounds) -> Verdict {
    memory::reset_pages(|| 0);
    let pieces = [
        piece::touch(),
        piece::touch_and_call(),
        piece::touch_and_emulate(),
        piece::touch_string(),
    ];
    while let Some(round) = rounds.next() {
        let random = &mut rounds.random;
        if round % 8 == 0 {
            let addresses = core::array::from_fn(|_| match random.below(4) {
                0 => stack() + random.below(16),
                1 => code(Mode::User) + random.below(16),
                // L1's window, and what lies in it.
                2 => 0xffff_8000_0000_0000 | random.below(16) << 39 | random.below(1 << 22),
                _ => values::address(random),
            });
            let control = match random.below(4) {
                0 => values::number(random),
                _ => 0x400 | random.bits() & 0xffff_00ff,
            };
            arm(addresses, control)?;
        }
        let mode = if random.once_in(2) { Mode::User } else { Mode::Supervisor };
        let left = Trial::of(mode, random.pick(&pieces)).with(|r| r.rbx = stack()).run();
        let fitting = match left.way {
            Way::Event(DB | BP) => true,
            // SYSCALL and IN of user mode.
            Way::Syscall | Way::Event(GP) => mode == Mode::User,
            _ => false,
        };
        holds!(fitting, "round {round}: {:?} at {:#x}", left.way, left.rip);
    }
    disarm()?;
    rounds.raised(DB, rounds.count / 20)?;
    rounds.entered(Reason::Emulated, rounds.count / 16)
}
