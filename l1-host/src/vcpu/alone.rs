//! Enters guests so that L1 is never on one thread of a core and a guest on another.
//! May: unsafe. Context: run-loop, irq-off.
#![expect(unsafe_code, reason = "it stands between the run loop and the switcher")]

use crate::{boot::cpus, hw::apic::vector, sched};
use switcher::{Context, enter::Enter};

/// The way in, instead of the CPU's own.
pub fn door() -> Enter {
    // SAFETY: `enter_alone` goes by the CPU's own door, once or not at all.
    unsafe { Enter::by(enter_alone) }
}

extern "C" fn enter_alone(context: &mut Context) {
    let cpu = cpus::own();
    if sched::go(cpu) {
        // SAFETY: the caller keeps the promises of `enter`: this is part of it.
        unsafe { switcher::enter::enter(cpu.enter, context) };
        sched::come(cpu);
    } else {
        // As if another CPU had interrupted the guest before its first instruction.
        context.reason = vector::KICK.into();
    }
}
