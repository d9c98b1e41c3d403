//! When a vCPU last flushed what: where the window of an access begins.

use crate::{
    api::{Scope, Translations},
    guest::{Addresses, ROOTS},
    history::Time,
    oracle::Window,
    violation::Rule,
};

/// A flush that covers an address: when it began, and the rule that it is judged by.
type Flush = (Time, Rule);

/// The flushes of one vCPU.
#[derive(Clone, Debug)]
pub struct Windows {
    all: Flush,
    spaces: [Flush; ROOTS.len()],
    lower: [Flush; ROOTS.len()],
    /// By root and address.
    pages: Vec<Time>,
    /// By root and 2 MiB region: the last flush of any address in it.
    regions: Vec<Time>,
    /// The same by root and PML4 slot, which here is also by GiB.
    slots: Vec<Time>,
    addresses: Addresses,
}

impl Windows {
    /// Nothing was flushed yet.
    #[must_use]
    pub fn new(addresses: Addresses) -> Self {
        let never = (0, Rule::S1);
        let spaces = ROOTS.len();
        Self {
            all: never,
            spaces: [never; ROOTS.len()],
            lower: [never; ROOTS.len()],
            pages: vec![0; spaces * addresses.count()],
            regions: vec![0; spaces * addresses.regions()],
            slots: vec![0; spaces * 512],
            addresses,
        }
    }

    fn slot(&self, root: usize, address: usize) -> usize {
        512 * root + self.addresses.gva(address).index(4)
    }

    /// A full flush began at `time` while `root` was loaded.
    pub fn flushed(&mut self, root: usize, scope: Scope, time: Time) {
        match scope {
            Scope::All => self.all = (time, Rule::F2),
            Scope::Current => self.spaces[root] = (time, Rule::F2),
        }
    }

    /// A load of `root` began at `time`.
    pub fn loaded(&mut self, root: usize, translations: Translations, time: Time) {
        if translations == Translations::Flush {
            self.lower[root] = (time, Rule::F1);
        }
    }

    /// A flush of one address began at `time` while `root` was loaded.
    pub fn flushed_address(&mut self, root: usize, address: usize, time: Time) {
        let slot = self.slot(root, address);
        self.pages[root * self.addresses.count() + address] = time;
        self.regions[root * self.addresses.regions() + self.addresses.region(address)] = time;
        self.slots[slot] = time;
    }

    /// The last flush that covers `address` as a whole, by whatever means.
    fn whole(&self, root: usize, address: usize) -> Flush {
        let lower = if self.addresses.is_lower(address) { self.lower[root] } else { self.all };
        [self.spaces[root], lower]
            .into_iter()
            .fold(self.all, |last, next| if next.0 > last.0 { next } else { last })
    }

    /// The window of `address` under `root`, which ends `now`.
    #[must_use]
    pub fn of(&self, root: usize, address: usize, now: Time) -> Window {
        let (whole, _) = self.whole(root, address);
        let page = whole.max(self.pages[root * self.addresses.count() + address]);
        let region = self.addresses.regions() * root + self.addresses.region(address);
        let block = page.max(self.regions[region]);
        Window { starts: [page, block, block.max(self.slots[self.slot(root, address)])], now }
    }

    /// The rule that what is stale at `address` breaks.
    #[must_use]
    pub fn rule(&self, root: usize, address: usize) -> Rule {
        let (time, rule) = self.whole(root, address);
        let slot = self.slots[self.slot(root, address)];
        if slot > time { Rule::F6 } else { rule }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOWER: usize = 0;
    const UPPER: usize = 16;

    fn starts(windows: &Windows, root: usize, address: usize) -> [Time; 3] {
        windows.of(root, address, 99).starts
    }

    #[test]
    fn each_flush_covers_what_it_promises() {
        let mut windows = Windows::new(Addresses::new());
        windows.loaded(0, Translations::Flush, 5);
        assert_eq!(starts(&windows, 0, LOWER), [5; 3]);
        assert_eq!(starts(&windows, 0, UPPER), [0; 3], "F1 says nothing of the upper half");
        assert_eq!(starts(&windows, 1, LOWER), [0; 3], "another space");
        windows.loaded(0, Translations::Keep, 6);
        assert_eq!(starts(&windows, 0, LOWER), [5; 3]);
        windows.flushed(0, Scope::Current, 7);
        assert_eq!(starts(&windows, 0, UPPER), [7; 3]);
        assert_eq!(starts(&windows, 1, UPPER), [0; 3]);
        windows.flushed(0, Scope::All, 8);
        assert_eq!(starts(&windows, 1, UPPER), [8; 3]);
        assert_eq!(windows.rule(1, UPPER), Rule::F2);
    }

    #[test]
    fn a_flushed_address_stands_for_the_large_page_it_is_in() {
        let mut windows = Windows::new(Addresses::new());
        windows.flushed_address(0, 1, 9);
        assert_eq!(starts(&windows, 0, 1), [9; 3]);
        assert_eq!(starts(&windows, 0, 0), [0, 9, 9], "same 2 MiB");
        assert_eq!(starts(&windows, 0, 5), [0, 0, 9], "same 1 GiB");
        assert_eq!(starts(&windows, 0, 8), [0; 3]);
        assert_eq!(windows.rule(0, 1), Rule::F6);
        windows.flushed(0, Scope::Current, 10);
        assert_eq!(starts(&windows, 0, 1), [10; 3]);
        assert_eq!(windows.rule(0, 1), Rule::F2);
    }
}
