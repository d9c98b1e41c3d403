//! Attacks on the page that guest and hypervisor share.
//! May: nothing. Context: any. Input: random.

use crate::{
    judge::{Group, Rounds, attack},
    runtime::{
        abi::{self, pvcs},
        counters::Reason,
        memory, piece,
        trial::{Mode, Trial, Way, code},
    },
};
use core::sync::atomic::Ordering::Relaxed;
use hostile::values;
use pv_abi::{
    event::{BP, DB, DE, GP, NP, PF, RFLAGS_ALLOWED, RFLAGS_FORCED, RFLAGS_RF, SS, UD},
    msr,
    pvcs::{flags, offset},
    selectors::{USER_CS_SS, USER32_CS},
};
use suite::{
    holds, same,
    verdict::{Case, Verdict},
};

pub const GROUP: Group = Group {
    name: "pvcs",
    attacks: &[
        attack("fields", "PVCS-1 PVCS-3 RET-1 RET-2 RET-4 EVT-1", 60, fields),
        attack("events", "PVCS-4 EVT-2 EVT-8", 40, events),
        attack("written_by_users", "PVCS-3 EVT-1 EVT-5", 20, written_by_users),
        attack("moved", "PVCS-1 PVCS-2 MSR-4", 10, moved),
    ],
};

/// Words of the PVCS from user_cs on that Roost does not define, or only writes.
const UNUSED: [usize; 10] = [0x10, 0x18, 0x20, 0x28, 0x30, 0x38, 0x70, 0x78, 0x80, 0xff8];

/// One field or all of them hold garbage, then ERETU.
fn fields(rounds: &mut Rounds) -> Verdict {
    memory::reset_pages(|| 0);
    memory::write_code(piece::int3());
    let sane = Trial::new(Mode::User);
    while let Some(round) = rounds.next() {
        let random = &mut rounds.random;
        let field = if random.once_in(4) { 99 } else { round % 9 };
        let all = field == 99;
        let mut trial = sane;
        if field == 0 || all && random.once_in(3) {
            trial.rip = values::address(random);
        }
        if field == 1 || all {
            trial.registers.rcx = values::number(random);
        }
        if field == 2 || all {
            trial.registers.r11 = values::number(random);
        }
        if field == 3 || all {
            trial.rflags = values::number(random);
        }
        if field == 4 || all {
            trial.gsbase = values::address(random);
        }
        if field == 5 || all && random.once_in(3) {
            trial.selectors = random.bits() as u32;
        }
        if field == 6 || all {
            trial.word = random.bits() as u16;
        }
        if field == 7 || all {
            UNUSED.iter().for_each(|&at| pvcs().set_word(at, random.bits()));
            pvcs().set_word(offset::CR2, random.bits());
        }
        if field == 8 || all {
            pvcs().set_word(offset::EVENT_FLAGS, random.bits() & !flags::IF);
        }
        returned(&trial).case(format_args!("round {round}, {trial:x?}"))?;
    }
    rounds.raised(BP, rounds.count / 3)?;
    rounds.raised(GP, 1)?;
    rounds.raised(PF, 1)?;
    rounds.entered(Reason::FailedEntry, 1)
}

/// What ERETU of `trial`, whose code is INT3, must come to.
fn returned(trial: &Trial) -> Verdict {
    let left = trial.run();
    let (cs, ss) = (trial.selectors as u16 | 3, (trial.selectors >> 16) as u16 | 3);
    let sane = u32::from(cs) | u32::from(ss) << 16 == USER_CS_SS;
    let here = trial.rip == code(Mode::User);
    match left.way {
        Way::Event(BP) if sane && here => {}
        // 32-bit code is found where the lower half of RIP says.
        Way::Event(BP) if cs == USER32_CS && trial.rip as u32 == code(Mode::User) as u32 => {}
        Way::Event(GP | NP | SS | PF) if !sane || !here => {}
        Way::Event(DB) if trial.rflags & 0x100 != 0 && !here => {}
        way => same!(way, Way::Event(BP), "how it was left, {:#x}", left.rip),
    }
    same!(left.mode, Mode::User, "the mode that was left");
    same!(left.user_gsbase, ((trial.gsbase << 16) as i64 >> 16) as u64, "the base of GS");
    same!(left.registers.rcx, trial.registers.rcx, "RCX");
    same!(left.registers.r11, trial.registers.r11, "R11");
    same!(left.registers.rax, trial.registers.rax, "RAX");
    same!(left.registers.rsp, trial.registers.rsp, "RSP");
    let flags = trial.rflags & RFLAGS_ALLOWED & !RFLAGS_RF | RFLAGS_FORCED;
    same!(left.rflags & !RFLAGS_RF, flags, "RFLAGS");
    same!(left.word >> 8, 1, "the guard");
    if sane && here {
        same!(left.selectors, USER_CS_SS, "selectors");
    }
    Ok(())
}

/// Events of supervisor mode while the page holds garbage: they are delivered and overwrite it.
fn events(rounds: &mut Rounds) -> Verdict {
    memory::reset_pages(|| 0);
    let causes = [
        (piece::int3(), BP, 1),
        (piece::ud2(), UD, 0),
        (piece::divide(), DE, 4),
        (piece::general_protection(), GP, 5),
        (piece::load(), PF, 0),
    ];
    let mut trial = Trial::new(Mode::Supervisor);
    let mut cause = causes[0];
    while let Some(round) = rounds.next() {
        let random = &mut rounds.random;
        if round % 64 == 0 {
            cause = random.pick(&causes);
            trial = Trial::of(Mode::Supervisor, cause.0);
        }
        (8..512).filter(|at| *at < 16 || *at > 500).for_each(|at| {
            pvcs().set_word(8 * at, random.bits());
        });
        pvcs().set_word(offset::EVENT_FLAGS, random.bits() & !flags::IF);
        let vector_word = 0xff00_u64 << 48;
        pvcs().set_word(offset::USER_CS, random.bits() & !vector_word);
        let values = [values::number(random), values::number(random)];
        let at = values::address(random) & !0xfff;
        let at = if values::is_canonical(at) && at >> 30 != memory::AREA >> 30 { at } else { 0 };
        // Nothing is mapped there but the gate.
        let at = if at >> 22 == 0 { 1 << 40 } else { at };
        let selectors = pvcs().selectors();
        let left = trial.with(|r| (r.rcx, r.r11, r.rbx) = (values[0], values[1], at)).run();
        let verdict = (|| {
            same!(left.way, Way::Event(cause.1), "how it was left");
            same!(left.mode, Mode::Supervisor, "the mode that was left");
            holds!(left.rip.wrapping_sub(code(Mode::Supervisor)) <= 5, "RIP is {:#x}", left.rip);
            same!([left.registers.rcx, left.registers.r11], values, "RCX and R11");
            same!(left.word >> 8, 1, "the guard");
            same!(left.selectors, selectors, "the selectors, which are user mode's");
            if cause.1 == PF {
                same!(left.cr2, at, "CR2");
            }
            Ok(())
        })();
        verdict.case(format_args!("round {round}"))?;
    }
    holds!(rounds.counted().events() >= rounds.count, "too few events");
    Ok(())
}

/// Users write the page while they run: what they leave is overwritten, or the kernel's affair.
fn written_by_users(rounds: &mut Rounds) -> Verdict {
    memory::reset_pages(|| 0);
    let page = memory::FREE_PAGE;
    memory::leaf(page).store(memory::data_page(pvcs().address()), Relaxed);
    memory::flush();
    let trial = Trial::of(Mode::User, piece::write_words());
    let end = trial.rip + piece::write_words().len() as u64;
    while let Some(round) = rounds.next() {
        let random = &mut rounds.random;
        let at = memory::area(page) + 8 * random.below(11);
        let [a, b, c, d] = core::array::from_fn(|_| values::number(random));
        let left = trial.with(|r| (r.rbx, r.rax, r.rcx, r.rdx, r.rsi) = (at, a, b, c, d)).run();
        let verdict = (|| {
            match left.way {
                Way::Syscall => same!(left.rip, end, "RIP"),
                // It has asked for what waits, and nothing does.
                way => same!(way, Way::Syscall, "how it was left, at {:#x}", left.rip),
            }
            same!(left.selectors, USER_CS_SS, "selectors");
            Ok(())
        })();
        verdict.case(format_args!("round {round}, at {at:#x}"))?;
    }
    Ok(())
}

/// The page moves with each event: among frames, to where no RAM is, and away.
fn moved(rounds: &mut Rounds) -> Verdict {
    memory::reset_pages(|| 0);
    memory::write_code(piece::int3());
    while let Some(round) = rounds.next() {
        let random = &mut rounds.random;
        let gpa = match random.below(4) {
            0 => memory::frame(random.below(64)),
            1 => (memory::memory() + random.bits() % (1 << 40)) & !0xfff,
            2 => values::number(random) | 1 << 63,
            _ => 0,
        };
        let accepted = abi::wrmsr(msr::PVM_VCPU_STRUCT, gpa);
        same!(accepted, gpa & 0xfff == 0, "round {round}: WRMSR of {gpa:#x}");
        if accepted {
            same!(abi::rdmsr(msr::PVM_VCPU_STRUCT), gpa, "read back");
        }
        abi::call(pv_abi::hypercall::IRQ_WIN, [0; 4]);
        abi::restore();
        let mode = if random.once_in(2) { Mode::User } else { Mode::Supervisor };
        let left = Trial::new(mode).run();
        left.is(BP, code(mode) + 1).case(format_args!("round {round}, {gpa:#x}"))?;
    }
    Ok(())
}
