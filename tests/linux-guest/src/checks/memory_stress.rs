//! Changes a range of addresses at random and compares it with a model all the time.

use super::hashing::split_mix;
use crate::{
    check::{Context, Verdict},
    sys::{
        address_space::{Access, AddressSpace},
        trap,
    },
};
use anyhow::{Context as _, Result, anyhow, ensure};
use std::ops::Range;

/// Pages of the range.
const PAGES: usize = 192;
/// Longest run of pages that one operation changes.
const RUN: usize = 12;
/// 8-byte words of a page.
const WORDS: usize = 512;

/// 20,000 operations, then every page once more.
pub fn run(context: &Context) -> Result<Verdict> {
    trap::catch_faults()?;
    let mut stress = Stress {
        space: AddressSpace::reserve(PAGES)?,
        model: vec![None; PAGES],
        random: 0x726f_6f73_7400,
    };
    for index in 0..context.factor.of(20_000) {
        stress.operate().with_context(|| format!("operation {index}"))?;
    }
    (0..PAGES).try_for_each(|page| stress.compare(page))?;
    Ok(Verdict::Pass)
}

/// What a mapped page must look like.
#[derive(Clone, Copy, Debug)]
struct Page {
    access: Access,
    /// What its content is made from; `None` for zeroes.
    seed: Option<u64>,
}

struct Stress {
    space: AddressSpace,
    model: Vec<Option<Page>>,
    random: u64,
}

impl Stress {
    fn below(&mut self, bound: usize) -> usize {
        (split_mix(&mut self.random) % bound as u64) as usize
    }

    /// A run of pages that all are holes, or all are none, from a random page on.
    fn run(&mut self) -> Range<usize> {
        let (start, wish) = (self.below(PAGES), 1 + self.below(RUN));
        let hole = self.model[start].is_none();
        let same = self.model[start..].iter().take(wish);
        start..start + same.take_while(|page| page.is_none() == hole).count()
    }

    fn operate(&mut self) -> Result<()> {
        let range = self.run();
        if self.model[range.start].is_none() {
            return if self.below(4) == 0 { self.compare(range.start) } else { self.map(range) };
        }
        match self.below(16) {
            0..4 => self.fill(range.start),
            4..9 => self.compare(range.start),
            9..12 => self.protect(range),
            12 => self.unmap(range),
            13 => self.discard(range),
            _ => self.relocate(range),
        }
    }

    fn any_access(&mut self) -> Access {
        [Access::None, Access::Read, Access::Write, Access::Write][self.below(4)]
    }

    fn map(&mut self, range: Range<usize>) -> Result<()> {
        let access = self.any_access();
        self.space.map(range.clone(), access)?;
        self.model[range].fill(Some(Page { access, seed: None }));
        Ok(())
    }

    fn unmap(&mut self, range: Range<usize>) -> Result<()> {
        self.space.unmap(range.clone())?;
        self.model[range].fill(None);
        Ok(())
    }

    fn protect(&mut self, range: Range<usize>) -> Result<()> {
        let access = self.any_access();
        self.space.protect(range.clone(), access)?;
        self.model[range].iter_mut().flatten().for_each(|page| page.access = access);
        Ok(())
    }

    fn discard(&mut self, range: Range<usize>) -> Result<()> {
        self.space.discard(range.clone())?;
        self.model[range].iter_mut().flatten().for_each(|page| page.seed = None);
        Ok(())
    }

    /// Moves a run of one access (the kernel moves one mapping at a time) over other pages.
    fn relocate(&mut self, range: Range<usize>) -> Result<()> {
        let access = self.model[range.start].map(|page| page.access);
        let same = self.model[range.clone()].iter();
        let length = same.take_while(|page| page.map(|page| page.access) == access).count();
        let from = range.start..range.start + length;
        let to = self.below(PAGES - length + 1);
        let target = to..to + length;
        let apart = target.end <= from.start || from.end <= to;
        if !apart || self.model[target.clone()].iter().any(Option::is_none) {
            return Ok(());
        }
        self.space.relocate(from.clone(), to)?;
        for (source, place) in from.zip(target) {
            self.model[place] = self.model[source].take();
        }
        Ok(())
    }

    /// Writes a new content, or sees the write refused.
    fn fill(&mut self, page: usize) -> Result<()> {
        let seed = split_mix(&mut self.random);
        let Some(Page { access, .. }) = self.model[page] else { return Ok(()) };
        if access != Access::Write {
            ensure!(
                self.space.store(page, 0, seed).is_err(),
                "page {page} ({access:?}) was written"
            );
            return Ok(());
        }
        for word in 0..WORDS {
            let stored = self.space.store(page, word, content(Some(seed), word));
            stored.map_err(|trap| anyhow!("page {page} cannot be written: {trap:x?}"))?;
        }
        self.model[page] = Some(Page { access, seed: Some(seed) });
        Ok(())
    }

    /// Reads a page, or sees the read refused.
    fn compare(&self, page: usize) -> Result<()> {
        let Some(Page { access: Access::Read | Access::Write, seed }) = self.model[page] else {
            let state = self.model[page];
            ensure!(self.space.load(page, 0).is_err(), "page {page} ({state:?}) was read");
            return Ok(());
        };
        for word in 0..WORDS {
            let found = self.space.load(page, word);
            let found = found.map_err(|trap| anyhow!("page {page} cannot be read: {trap:x?}"))?;
            let expected = content(seed, word);
            ensure!(found == expected, "page {page} word {word} is {found:#x}, not {expected:#x}");
        }
        Ok(())
    }
}

fn content(seed: Option<u64>, word: usize) -> u64 {
    seed.map_or(0, |seed| seed.wrapping_add((word as u64).wrapping_mul(0x9e37_79b9)))
}
