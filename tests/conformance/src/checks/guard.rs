//! The guard in the high byte of event_vector: who owns the event fields.

use super::{Group, Setting, check};
use crate::{
    abi, kernel,
    probe::Probe,
    tap::{Verdict, equal},
    user::{Start, code},
};
use pv_abi::{
    event::UD,
    pvcs::{offset, vector},
};

pub const GROUP: Group = Group {
    name: "guard",
    setting: Setting::Anywhere,
    checks: &[
        check("events_take_it", "EVT-3 PVCS-5", events_take_it),
        check("eretu_takes_it", "RET-1 PVCS-5", eretu_takes_it),
        check("user_events_ignore_it", "EVT-3", user_events_ignore_it),
    ],
};

/// Every event leaves STD and its vector; once it is taken the next one may come.
fn events_take_it() -> Verdict {
    for _ in 0..3 {
        let event = Probe::of(kernel::code::undefined()).run().event();
        equal("word", event.word.into(), (vector::STANDARD | u16::from(UD)).into())?;
        equal("taken", abi::pvcs().event_word().into(), 0)?;
        let event = Start::of(code::undefined()).run().event;
        equal("word", event.word.into(), (vector::STANDARD | u16::from(UD)).into())?;
    }
    Ok(())
}

/// ERETU leaves STD alone in the word, whatever was there: directly, and through L1.
fn eretu_takes_it() -> Verdict {
    // A selector with another RPL is the same to the ABI, but no direct switch takes it.
    for selectors in [0x002b_0033, 0x0028_0030] {
        let start = Start { selectors, ..Start::of(code::syscall()) };
        let event = start.with_word(0x7fe).run().event;
        equal("word", event.word.into(), vector::STANDARD.into())?;
    }
    Ok(())
}

/// In user mode the word holds ERETU's STD, and events come all the same.
fn user_events_ignore_it() -> Verdict {
    for word in [vector::STANDARD, 0, vector::NMI, vector::OWNED | 0xff] {
        let trap = Start::of(code::undefined()).with_word(word).run();
        trap.is(UD, 0, code::undefined().start)?;
    }
    equal("pkru", abi::pvcs().word(offset::EFLAGS) >> 32, 0)
}
