//! When L1 looks at the timer's word of a guest that is busy.
//! May: nothing. Context: irq-off. Input: guest-controlled deadlines.
//!
//! The guest says nothing when it sets a deadline that L1 sees in time. A kernel that is busy has a tick: L1 looks
//! when the next one is due, which fires it as well, so that a tick costs one exit.

/// After the timer has fired L1 looks again, for the guest has set it anew by then and is perhaps busy: when the
/// next tick is to be expected, if there were no more than this part of a second between the last two deadlines.
const LONGEST: u64 = 50;
/// Otherwise so many parts of a second later: a guest that has slept sets the timer for its tick, and once more
/// before it sleeps again.
const SOON: u64 = 1000;
/// Ticks are not quite even. L1 looks this part of a second after the one that it expects, and says that it looks as
/// much before it: a tick between the two costs one exit, and is late by the difference at most.
const SLACK: u64 = 40_000;

/// When L1 looks at the word although the guest has told nothing, in ticks of the TSC.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// What it says.
    pub told: u64,
    /// What it does.
    pub at: u64,
}

impl Look {
    /// The timer was set for `fired`, and for `before` before that.
    #[must_use]
    pub fn after(fired: u64, before: u64, now: u64, tsc_hz: u64) -> Self {
        let soon = tsc_hz / SOON;
        let period = fired.saturating_sub(before);
        let period = if (soon..=tsc_hz / LONGEST).contains(&period) { period } else { soon };
        let slack = tsc_hz / SLACK;
        let expected = fired.saturating_add(period).max(now.saturating_add(soon));
        Self { told: expected.saturating_sub(slack), at: expected.saturating_add(slack) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HZ: u64 = 2_000_000_000;
    const TICK: u64 = HZ / 250;

    #[test]
    fn a_tick_is_between_what_is_said_and_what_is_done() {
        let look = Look::after(10 * TICK, 9 * TICK, 10 * TICK + 500, HZ);
        assert_eq!((look.told, look.at), (11 * TICK - HZ / SLACK, 11 * TICK + HZ / SLACK));
    }

    #[test]
    fn what_is_no_tick_is_looked_for_within_the_limits() {
        let fired = 1000 * TICK;
        let at = |before, now| Look::after(fired, before, now, HZ).at - HZ / SLACK;
        assert_eq!(at(0, fired), fired + HZ / SOON, "the first one");
        assert_eq!(at(fired - HZ / LONGEST - 1, fired), fired + HZ / SOON, "one after a sleep");
        assert_eq!(at(fired - 5, fired), fired + HZ / SOON, "two at once");
        assert_eq!(at(fired + 5, fired), fired + HZ / SOON, "one that was set back");
        assert_eq!(at(fired - TICK, fired + 8 * TICK), fired + 8 * TICK + HZ / SOON, "long over");
    }

    #[test]
    fn no_deadline_is_too_far() {
        let look = Look::after(u64::MAX, 0, u64::MAX, HZ);
        assert_eq!((look.told, look.at), (u64::MAX - HZ / SLACK, u64::MAX));
    }
}
