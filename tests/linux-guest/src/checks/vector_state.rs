//! Checks that vector registers survive context switches and signals.

use crate::{
    check::{Context, Verdict},
    pinning,
    sys::{
        child::Child,
        hold::{Call, Pattern, Width, hold_alone, hold_in_turn},
        mapping::{Mapping, PAGE, Sharing},
        registers,
    },
};
use anyhow::{Context as _, Result, ensure};
use nix::sys::resource::{UsageWho, getrusage};

/// Two processes on one CPU hold different patterns over a million switches between them.
pub fn switches(context: &Context) -> Result<Verdict> {
    pinning::to_one_cpu()?;
    let rounds = context.factor.of(1_000_000) / 2;
    let shared = Mapping::anonymous(PAGE, Sharing::Shared)?;
    let holder = |seed, turn| Child::spawn(|| hold_and_count(&shared, seed, turn, rounds));
    let first = holder(1, (0, 1))?;
    let second = holder(2, (1, 0))?;
    context.note(format!("{:?}, {} switches", Width::detect(), 2 * rounds));
    let meaning = "1: registers changed over a switch; 2: there were too few switches";
    first.expect_exit(0).context(meaning)?;
    second.expect_exit(0).context(meaning)?;
    Ok(Verdict::Pass)
}

fn hold_and_count(shared: &Mapping, seed: u64, turn: (u64, u64), rounds: u64) -> u8 {
    if hold_in_turn(shared, seed, turn, rounds) != 0 {
        return 1;
    }
    // Between two turns of ours the other process had the CPU.
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else { return 2 };
    let switches = usage.voluntary_context_switches() + usage.involuntary_context_switches();
    if (switches as u64) + 1 < rounds { 2 } else { 0 }
}

/// A handler that overwrites vector registers leaves none changed behind.
pub fn signals(context: &Context) -> Result<Verdict> {
    let count = context.factor.of(10_000);
    registers::catch(libc::SIGUSR1)?;
    registers::await_signals(count as i64);
    let call = Call::signal(libc::SIGUSR1);
    let broken = hold_alone(Width::detect(), &Pattern::new(5), call, count);
    ensure!(broken == 0, "registers changed over {broken} of {count} signals");
    ensure!(registers::awaited() == 0, "{} of {count} signals did not come", registers::awaited());
    Ok(Verdict::Pass)
}
