//! Checks that forked processes do not see each other's stores, and that dropped pages are zero.

use crate::{
    check::{Context, Verdict},
    sys::{
        child::Child,
        mapping::{Mapping, PAGE, Sharing},
    },
};
use anyhow::{Context as _, Result, ensure};
use core::sync::atomic::Ordering::Relaxed;

/// Bytes that parent and child share at first.
const BYTES: usize = 64 << 20;
/// Words between two that are used: 8 per page.
const STRIDE: usize = 64;
/// Words of a page.
const PAGE_WORDS: usize = PAGE / 8;

fn fill(memory: &Mapping, value: u64) {
    for (index, word) in memory.words().iter().enumerate().step_by(STRIDE) {
        word.store(value ^ index as u64, Relaxed);
    }
}

fn holds(memory: &Mapping, value: u64) -> bool {
    let mut words = memory.words().iter().enumerate().step_by(STRIDE);
    words.all(|(index, word)| word.load(Relaxed) == value ^ index as u64)
}

/// The child overwrites everything; the parent's memory stays, also while it writes itself.
pub fn run(_: &Context) -> Result<Verdict> {
    let memory = Mapping::anonymous(BYTES, Sharing::Private)?;
    fill(&memory, 0xaaaa_0000_0000);
    let child = Child::spawn(|| {
        if !holds(&memory, 0xaaaa_0000_0000) {
            return 1;
        }
        fill(&memory, 0xbbbb_0000_0000);
        if holds(&memory, 0xbbbb_0000_0000) { 0 } else { 2 }
    })?;
    child.expect_exit(0).context("1: it got other memory; 2: its stores were lost")?;
    ensure!(holds(&memory, 0xaaaa_0000_0000), "the child's stores reached its parent");

    let late = Child::spawn(|| {
        // Long enough for the parent to write.
        std::thread::sleep(std::time::Duration::from_millis(100));
        u8::from(!holds(&memory, 0xaaaa_0000_0000))
    })?;
    fill(&memory, 0xcccc_0000_0000);
    late.expect_exit(0).context("the parent's stores reached its child")?;
    Ok(Verdict::Pass)
}

/// `MADV_DONTNEED` gives zeroes back, and leaves other pages alone.
pub fn discard(context: &Context) -> Result<Verdict> {
    const PAGES: usize = 64;
    let memory = Mapping::anonymous(PAGES * PAGE, Sharing::Private)?;
    for round in 0..context.factor.of(200) {
        fill(&memory, round << 32);
        let first = round as usize % (PAGES - 8);
        memory.discard(first, 8)?;
        for (index, word) in memory.words().iter().enumerate().step_by(STRIDE) {
            let dropped = (first..first + 8).contains(&(index / PAGE_WORDS));
            let expected = if dropped { 0 } else { round << 32 ^ index as u64 };
            let found = word.load(Relaxed);
            ensure!(found == expected, "word {index} is {found:#x}, not {expected:#x}");
        }
    }
    Ok(Verdict::Pass)
}
