//! Runs an attack and says what came of it.
//! May: nothing. Context: any. Input: trusted.

use crate::{
    println,
    runtime::{
        abi, console,
        counters::{Counters, Reason},
        memory, second,
        trial::{self, SEEN},
        virtio,
    },
};
use core::fmt::Write;
use pv_abi::ext::call;
use suite::{
    holds,
    native::uart::Uart,
    random::Random,
    same,
    tally::{Found, Tally},
    verdict::{Verdict, Wrong},
};

/// What an attack is given: a random start and a number of rounds.
#[derive(Debug)]
pub struct Rounds {
    pub random: Random,
    /// How many are to be made.
    pub count: u64,
    made: u64,
    before: Counters,
}

impl Rounds {
    fn new(seed: u64, count: u64) -> Self {
        Self { random: Random::new(seed), count, made: 0, before: Counters::now() }
    }

    /// The number of the next round, until all are made.
    pub fn next(&mut self) -> Option<u64> {
        let number = self.made;
        (number < self.count).then(|| {
            self.made += 1;
            number
        })
    }

    /// What the hypervisor has counted since the attack began.
    pub fn counted(&self) -> Counters {
        Counters::now().since(&self.before)
    }

    /// Judges that the attack had its effect on the hypervisor: at least `least` entries for
    /// `reason`.
    pub fn entered(&self, reason: Reason, least: u64) -> Verdict {
        let found = self.counted().of(reason);
        holds!(found >= least, "{reason:?} was counted {found} times, not {least}");
        Ok(())
    }

    /// The same for trials that ended with exception `vector`.
    pub fn raised(&self, vector: u8, least: u64) -> Verdict {
        let found = SEEN.exceptions(vector);
        holds!(found >= least, "exception {vector} was seen {found} times, not {least}");
        Ok(())
    }
}

/// An attack.
#[derive(Clone, Copy, Debug)]
pub struct Attack {
    /// Its name in the group.
    pub name: &'static str,
    /// Rules of the specification that say what must come of it.
    pub rules: &'static str,
    /// Its share of all rounds, in thousandths.
    pub share: u64,
    /// Makes the rounds.
    pub run: fn(&mut Rounds) -> Verdict,
}

/// Shortens the tables of attacks.
pub const fn attack(
    name: &'static str,
    rules: &'static str,
    share: u64,
    run: fn(&mut Rounds) -> Verdict,
) -> Attack {
    Attack { name, rules, share, run }
}

/// Attacks on one thing.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    pub name: &'static str,
    pub attacks: &'static [Attack],
}

/// Makes an attack with `count` rounds, and prints what came of it.
pub fn make(tally: &mut Tally, group: &str, attack: &Attack, seed: u64, count: u64) {
    SEEN.reset();
    second::reset();
    virtio::reset_items();
    let mut rounds = Rounds::new(seed, count);
    let start = abi::tsc();
    let verdict = (attack.run)(&mut rounds);
    let ticks = abi::tsc() - start;
    let counted = rounds.counted();
    let verdict = verdict.and_then(|()| effect(&rounds, &counted));
    abi::restore();
    console::reset();
    // What an attack has printed ends here.
    println!();
    summary(group, attack.name, &rounds, &counted, ticks);
    abi::reset_unit();
    memory::reset_jail();
    trial::drain();
    print(tally, attack.rules, group, attack.name, &verdict);
}

/// An attack without an effect is none.
fn effect(rounds: &Rounds, counted: &Counters) -> Verdict {
    same!(rounds.made, rounds.count, "rounds made");
    holds!(rounds.count > 0, "no rounds");
    holds!(
        counted.exits() + counted.direct_switches() + virtio::items() >= rounds.count / 2,
        "{} rounds entered the hypervisor {} times",
        rounds.count,
        counted.exits()
    );
    Ok(())
}

fn summary(group: &str, name: &str, rounds: &Rounds, counted: &Counters, ticks: u64) {
    let out = &mut Uart;
    let _ = write!(
        out,
        "# {group}.{name}: {} rounds, {} trials, {} exits, {} events, {} direct switches, \
         {} ticks;",
        rounds.made,
        SEEN.all(),
        counted.exits(),
        counted.events(),
        counted.direct_switches(),
        ticks
    );
    for vector in 0..32 {
        let seen = SEEN.exceptions(vector);
        if seen > 0 {
            let _ = write!(out, " #{vector}:{seen}");
        }
    }
    let _ = write!(out, " syscalls:{} interrupts:{}", SEEN.syscalls(), SEEN.interrupts());
    if second::made() > 0 {
        let _ = write!(out, " rounds of the second vCPU:{}", second::made());
    }
    if virtio::items() > 0 {
        let _ = write!(out, " fuzzed items:{}", virtio::items());
    }
    println!();
    let _ = write!(out, "#  ");
    for (reason, name) in Reason::ALL.into_iter().filter(|(reason, _)| counted.of(*reason) > 0) {
        let _ = write!(out, " {name}:{}", counted.of(reason));
    }
    println!();
}

/// Judges that the guest is still what it was.
pub fn intact(tally: &mut Tally, group: &str, image: u64) {
    let verdict = look(image);
    print(tally, "XHC-12 SEL-2", group, "intact", &verdict);
}

fn look(image: u64) -> Verdict {
    same!(memory::image_hash(), image, "a sum over the guest's code");
    same!(memory::dead_canary(), None, "an overwritten canary");
    same!(abi::vcpu_index(), 0, "the vCPU's number");
    same!(abi::call(call::CHECK_ROOTS, [0; 4]), 0, "entries that no root may have");
    Ok(())
}

fn print(tally: &mut Tally, rules: &'static str, group: &str, name: &str, verdict: &Verdict) {
    let found = verdict.as_ref().map_or_else(Wrong::found, |()| Found::Fine);
    let _ = tally.line(&mut Uart, rules, group, name, found);
    if let (Found::Wrong, Err(wrong)) = (found, verdict) {
        println!("{wrong}");
    }
}
