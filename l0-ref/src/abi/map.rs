//! Keeps which page of an L2 is which frame, in runs.
//! May: nothing. Input: page ranges that were checked.

use pv_abi::l0::list::Access;
use std::{collections::BTreeMap, ops::Range};

/// Pages that lie side by side in L2 and in L1's memory, with the same access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First page of L2.
    pub page: u64,
    /// How many.
    pub pages: u64,
    /// First frame.
    pub frame: u64,
    /// What L2 may do.
    pub access: Access,
}

impl Run {
    const fn end(&self) -> u64 {
        self.page + self.pages
    }

    /// The part that lies in `range`, which it meets.
    fn clip(&self, range: &Range<u64>) -> Self {
        let page = self.page.max(range.start);
        let pages = self.end().min(range.end) - page;
        Self { page, pages, frame: self.frame + (page - self.page), ..*self }
    }

    /// Whether `next` goes on where this ends.
    fn continues_in(&self, next: &Self) -> bool {
        self.end() == next.page
            && self.frame + self.pages == next.frame
            && self.access == next.access
    }
}

/// The mappings of a VM, by page number. Runs that continue each other are one.
#[derive(Clone, Debug, Default)]
pub struct Map {
    runs: BTreeMap<u64, Run>,
}

impl Map {
    /// The mapped parts of `range`, in order.
    pub fn runs(&self, range: Range<u64>) -> impl Iterator<Item = Run> + '_ {
        let before = self.runs.range(..range.start).next_back().map(|(_, run)| run);
        let reaches_in = |run: &&Run| run.end() > range.start && !range.is_empty();
        let from = before.filter(reaches_in).map_or(range.start, |run| run.page);
        self.runs.range(from..range.end.max(from)).map(move |(_, run)| run.clip(&range))
    }

    /// Whether nothing of `range` is mapped.
    #[must_use]
    pub fn is_free(&self, range: &Range<u64>) -> bool {
        let last = self.runs.range(..range.end).next_back();
        last.is_none_or(|(_, run)| run.end() <= range.start) || range.is_empty()
    }

    /// The parts of `range` that are not mapped, in order.
    #[must_use]
    pub fn gaps(&self, range: Range<u64>) -> Vec<Range<u64>> {
        if self.is_free(&range) && !range.is_empty() {
            return vec![range];
        }
        let (mut gaps, mut at) = (Vec::new(), range.start);
        for run in self.runs(range.clone()) {
            if run.page > at {
                gaps.push(at..run.page);
            }
            at = run.end();
        }
        if at < range.end {
            gaps.push(at..range.end);
        }
        gaps
    }

    /// How many runs there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.runs.len()
    }

    /// Whether nothing is mapped.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// At how many of the two ends of `range` a run would be cut in two.
    #[must_use]
    pub fn cuts(&self, range: &Range<u64>) -> u64 {
        let cut = |at: u64| {
            let before = self.runs.range(..at).next_back();
            u64::from(before.is_some_and(|(_, run)| run.end() > at))
        };
        cut(range.start) + cut(range.end)
    }

    /// How many runs more there will be once `wanted` is mapped, which conflicts with nothing.
    #[must_use]
    pub fn growth_with(&self, wanted: &Run) -> u64 {
        let joins = !self.is_free(&(wanted.page..wanted.end()))
            || self.before(wanted).is_some()
            || self.after(wanted).is_some();
        u64::from(!joins)
    }

    /// The run that goes on in `run`.
    fn before(&self, run: &Run) -> Option<Run> {
        let before = self.runs.range(..run.page).next_back().map(|(_, before)| *before);
        before.filter(|before| before.continues_in(run))
    }

    /// The run in which `run` goes on.
    fn after(&self, run: &Run) -> Option<Run> {
        self.runs.get(&run.end()).copied().filter(|after| run.continues_in(after))
    }

    /// How many runs more there will be, at most, once `range` is not mapped.
    #[must_use]
    pub fn growth_without(&self, range: &Range<u64>) -> u64 {
        let touched = self.runs(range.clone()).take(2).count() as u64;
        self.cuts(range).saturating_sub(touched)
    }

    /// The first page of `wanted` that is mapped to something else.
    #[must_use]
    pub fn conflict(&self, wanted: &Run) -> Option<u64> {
        self.runs(wanted.page..wanted.end()).find_map(|run| {
            let same =
                run.frame == wanted.frame + (run.page - wanted.page) && run.access == wanted.access;
            (!same).then_some(run.page)
        })
    }

    /// Maps pages that are not mapped.
    pub fn insert(&mut self, mut run: Run) {
        if let Some(before) = self.before(&run) {
            run = Run { pages: before.pages + run.pages, ..before };
        }
        if let Some(after) = self.after(&run) {
            self.runs.remove(&after.page);
            run.pages += after.pages;
        }
        self.runs.insert(run.page, run);
    }

    /// Unmaps what is mapped of `range`.
    pub fn remove(&mut self, range: Range<u64>) {
        let inside: Vec<Run> = self.runs(range.clone()).collect();
        for part in inside {
            let Some((_, whole)) = self.runs.range(..=part.page).next_back() else { continue };
            let whole = *whole;
            self.runs.remove(&whole.page);
            if whole.page < part.page {
                let pages = part.page - whole.page;
                self.runs.insert(whole.page, Run { pages, ..whole });
            }
            if part.end() < whole.end() {
                let skipped = part.end() - whole.page;
                let rest = Run {
                    page: part.end(),
                    pages: whole.pages - skipped,
                    frame: whole.frame + skipped,
                    ..whole
                };
                self.runs.insert(rest.page, rest);
            }
        }
    }

    /// Changes the access of what is mapped of `range`.
    pub fn protect(&mut self, range: Range<u64>, access: Access) {
        let inside: Vec<Run> = self.runs(range.clone()).collect();
        self.remove(range);
        for run in inside {
            self.insert(Run { access, ..run });
        }
    }

    /// All mappings.
    pub fn all(&self) -> impl Iterator<Item = Run> + '_ {
        self.runs.values().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{
        Just, Strategy, any, prop, prop_assert, prop_assert_eq, prop_oneof, proptest,
    };

    /// The obviously right map: a page at a time.
    type Model = BTreeMap<u64, (u64, Access)>;

    #[derive(Clone, Debug)]
    enum Step {
        Map(Run),
        Remove(Range<u64>),
        Protect(Range<u64>, Access),
    }

    const PAGES: u64 = 32;

    fn ranges() -> impl Strategy<Value = Range<u64>> {
        (0..PAGES, 0..8u64).prop_map(|(start, pages)| start..(start + pages).min(PAGES))
    }

    fn access() -> impl Strategy<Value = Access> {
        any::<bool>()
            .prop_map(|write| if write { Access::READ | Access::WRITE } else { Access::READ })
    }

    fn steps() -> impl Strategy<Value = Step> {
        let frames = prop_oneof![Just(100u64), 100..104u64];
        prop_oneof![
            (ranges(), frames, access()).prop_map(|(range, base, access)| Step::Map(Run {
                page: range.start,
                pages: range.end - range.start,
                frame: base + range.start,
                access,
            })),
            ranges().prop_map(Step::Remove),
            (ranges(), access()).prop_map(|(range, access)| Step::Protect(range, access)),
        ]
    }

    fn pages(map: &Map) -> Model {
        let page =
            |run: Run| (0..run.pages).map(move |n| (run.page + n, (run.frame + n, run.access)));
        map.all().flat_map(page).collect()
    }

    proptest! {
        #[test]
        fn runs_say_what_pages_say(steps in prop::collection::vec(steps(), 1..40)) {
            let (mut map, mut model) = (Map::default(), Model::new());
            for step in steps {
                let (before, mut growth) = (map.len() as u64, 0);
                match step {
                    Step::Map(run) if run.pages > 0 => {
                        let wanted = |n| (run.frame + n, run.access);
                        let other = (0..run.pages)
                            .find(|n| model.get(&(run.page + n)).is_some_and(|is| *is != wanted(*n)))
                            .map(|n| run.page + n);
                        prop_assert_eq!(map.conflict(&run), other);
                        if other.is_none() {
                            growth = map.growth_with(&run);
                            for gap in map.gaps(run.page..run.end()) {
                                map.insert(run.clip(&gap));
                            }
                            model.extend((0..run.pages).map(|n| (run.page + n, wanted(n))));
                        }
                    }
                    Step::Map(_) => {}
                    Step::Remove(range) => {
                        growth = map.growth_without(&range);
                        map.remove(range.clone());
                        model.retain(|page, _| !range.contains(page));
                    }
                    Step::Protect(range, access) => {
                        growth = map.cuts(&range);
                        map.protect(range.clone(), access);
                        for (_, entry) in model.range_mut(range) {
                            entry.1 = access;
                        }
                    }
                }
                prop_assert_eq!(pages(&map), model.clone());
                prop_assert!(map.len() as u64 <= before + growth, "grew by more than was said");
                let runs: Vec<Run> = map.all().collect();
                for pair in runs.windows(2) {
                    prop_assert_eq!(pair[0].continues_in(&pair[1]), false, "not merged");
                }
            }
        }

        #[test]
        fn gaps_are_what_runs_leave(
            steps in prop::collection::vec(steps(), 1..10), range in ranges(),
        ) {
            let mut map = Map::default();
            for step in steps {
                if let Step::Map(run) = step && run.pages > 0 && map.conflict(&run).is_none() {
                    map.gaps(run.page..run.end()).into_iter().for_each(|gap| map.insert(run.clip(&gap)));
                }
            }
            let mapped: Vec<u64> = map.runs(range.clone()).flat_map(|run| run.page..run.end()).collect();
            let free: Vec<u64> = map.gaps(range.clone()).into_iter().flatten().collect();
            prop_assert_eq!(map.is_free(&range), mapped.is_empty());
            let mut all = [mapped, free].concat();
            all.sort_unstable();
            prop_assert_eq!(all, range.collect::<Vec<_>>());
        }
    }
}
