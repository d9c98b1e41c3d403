//! Keeps guests off a core while one of its threads is in L1, if the user wants that.
//! May: nothing. Context: irq-off.
//!
//! A CPU that comes out of its guest has those on the other threads come out as well, and waits until
//! they have. One that is about to enter its guest waits until no other thread is in L1; while it waits,
//! it does not count as being there itself. A CPU that halts is nowhere.

use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// Where CPUs are, as bits.
#[derive(Debug)]
pub struct Whereabouts {
    in_l1: AtomicU64,
    in_guest: AtomicU64,
}

/// Whether a CPU may enter its guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// It is there now.
    Yes,
    /// The others take long: it is back in L1, and looks whether there is something to do.
    No,
}

impl Whereabouts {
    /// Nobody is anywhere.
    #[must_use]
    pub const fn new() -> Self {
        Self { in_l1: AtomicU64::new(0), in_guest: AtomicU64::new(0) }
    }

    /// `cpu` is in L1, and returns when none of its `siblings` is in a guest; `ask` has one leave it.
    pub fn come(&self, cpu: usize, siblings: u64, mut ask: impl FnMut(usize)) {
        self.in_guest.fetch_and(!(1 << cpu), SeqCst);
        self.in_l1.fetch_or(1 << cpu, SeqCst);
        let mut asked = 0;
        loop {
            let there = self.in_guest.load(SeqCst) & siblings;
            if there == 0 {
                return;
            }
            let mut new = there & !asked;
            while new != 0 {
                ask(new.trailing_zeros() as usize);
                new &= new - 1;
            }
            asked |= there;
            pause();
        }
    }

    /// `cpu` is about to enter its guest, and does if none of its `siblings` is in L1; it looks so many
    /// `times`.
    pub fn go(&self, cpu: usize, siblings: u64, times: u32, ask: impl FnMut(usize)) -> Gone {
        self.rest(cpu);
        let alone = || self.in_l1.load(SeqCst) & siblings == 0;
        for _ in 0..times {
            if alone() {
                self.in_guest.fetch_or(1 << cpu, SeqCst);
                // Who came meanwhile may not have seen it.
                if alone() {
                    return Gone::Yes;
                }
                self.in_guest.fetch_and(!(1 << cpu), SeqCst);
            }
            pause();
        }
        self.come(cpu, siblings, ask);
        Gone::No
    }

    /// `cpu` is not in L1, nor in a guest.
    pub fn rest(&self, cpu: usize) {
        self.in_l1.fetch_and(!(1 << cpu), SeqCst);
    }
}

impl Default for Whereabouts {
    fn default() -> Self {
        Self::new()
    }
}

/// Lets the others go on: on a host, threads may have to wait for a processor.
fn pause() {
    #[cfg(test)]
    std::thread::yield_now();
    #[cfg(not(test))]
    core::hint::spin_loop();
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{sync::atomic::AtomicBool, thread};

    #[test]
    fn nobody_enters_beside_l1() {
        let whereabouts = Whereabouts::new();
        let nobody = |_| panic!("nobody is in a guest");
        whereabouts.come(0, 0b10, nobody);
        assert_eq!(whereabouts.go(1, 0b01, 3, nobody), Gone::No);
        whereabouts.rest(1);
        assert_eq!(whereabouts.go(0, 0b10, 3, nobody), Gone::Yes);
        assert_eq!(whereabouts.go(1, 0b01, 3, nobody), Gone::Yes, "both in guests");
        whereabouts.come(5, 0, nobody);
        let mut asked = Vec::new();
        whereabouts.come(0, 0b10, |cpu| {
            asked.push(cpu);
            whereabouts.come(cpu, 0, nobody);
        });
        assert_eq!(asked, [1]);
    }

    /// Three threads of a core come and go: none is ever in its guest while another is in L1, and all
    /// get there.
    #[test]
    fn guests_and_l1_take_turns() {
        const ROUNDS: u32 = 100;
        let whereabouts = Whereabouts::new();
        let asked = [const { AtomicBool::new(false) }; 3];
        // Seen from outside the type under test.
        let (guests, host) = (AtomicU64::new(0), AtomicU64::new(0));
        let cpu = |own: usize| {
            let siblings = 0b111 & !(1 << own);
            let ask = |other: usize| asked[other].store(true, SeqCst);
            let mut random = 7 * own as u64 + 1;
            let mut entered = 0;
            whereabouts.come(own, siblings, ask);
            while entered < ROUNDS {
                host.fetch_or(1 << own, SeqCst);
                assert_eq!(guests.load(SeqCst) & siblings, 0, "in L1 beside a guest");
                host.fetch_and(!(1 << own), SeqCst);
                if whereabouts.go(own, siblings, 50, ask) == Gone::No {
                    thread::yield_now();
                    continue;
                }
                entered += 1;
                guests.fetch_or(1 << own, SeqCst);
                assert_eq!(host.load(SeqCst) & siblings, 0, "a guest beside L1");
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                for _ in 0..random >> 54 {
                    if asked[own].swap(false, SeqCst) {
                        break;
                    }
                    pause();
                }
                guests.fetch_and(!(1 << own), SeqCst);
                whereabouts.come(own, siblings, ask);
            }
            whereabouts.rest(own);
        };
        thread::scope(|scope| {
            for own in 0..3 {
                scope.spawn(move || cpu(own));
            }
        });
    }
}
