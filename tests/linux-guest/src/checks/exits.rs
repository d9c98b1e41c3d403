//! Checks how often a guest of Roost enters L1 for what should need it rarely or never.

use crate::{
    check::{Context, Verdict},
    sys::{
        exits::{can_be_read, counter},
        mapping::{Mapping, PAGE, Sharing},
        trap::{self, Trap},
    },
};
use anyhow::{Result, anyhow, ensure};
use core::sync::atomic::Ordering::Relaxed;
use pv_abi::ext::counter::{EXITS, Reason};
use std::os::unix::process::parent_id;

/// Calls to make.
const CALLS: u64 = 100_000;
/// Pages that one page table maps.
const PAGES: usize = 512;
/// Entries that a timer tick may cost: itself, and what the kernel does because of it.
const PER_TICK: u64 = 4;
/// Entries that the first touch of a page may cost: the fault, and the return that maps the page.
const PER_TOUCH: u64 = 2;
/// Pages that L1 maps at once when the kernel reaches for one of them in its own map.
const FAULT_AROUND: usize = 16;

const SKIPPED: &str = "counters can be read in a guest of Roost only";

/// System calls do not enter L1.
pub fn getppid(context: &Context) -> Result<Verdict> {
    trap::catch_faults()?;
    if !can_be_read() {
        return Verdict::skip(SKIPPED);
    }
    let counters = [Reason::SyscallUser.counter(), Reason::Eretu.counter()];
    let before = read(counters)?;
    let spent = Spent::by(|| {
        for _ in 0..CALLS {
            std::hint::black_box(parent_id());
        }
    })?;
    let [calls, returns] = difference(before, read(counters)?);
    context.note(format!("{CALLS} calls: {} entries, {} ticks", spent.entries, spent.ticks));
    // A system call that must return by IRET costs an entry; the counters' own reads do not.
    ensure!(calls <= spent.ticks, "{calls} system calls entered L1");
    ensure!(returns <= spent.ticks, "{returns} returns to user mode entered L1");
    spent.at_most(0)?;
    Ok(Verdict::Pass)
}

/// First touches of anonymous pages enter L1 twice at most.
pub fn first_touch(context: &Context) -> Result<Verdict> {
    trap::catch_faults()?;
    if !can_be_read() {
        return Verdict::skip(SKIPPED);
    }
    let memory = Mapping::anonymous(2 * PAGES * PAGE, Sharing::Private)?;
    let start = memory.address() as usize / PAGE;
    let first = start.next_multiple_of(PAGES) - start;
    let touch = |page: usize| memory.words()[(first + page) * PAGE / 8].store(1, Relaxed);
    for (round, name) in ["frames not used before", "frames used before"].iter().enumerate() {
        // The first page brings the page table.
        touch(0);
        let filled = read([Reason::PageFaultFilled.counter()])?;
        let spent = Spent::by(|| (1..PAGES).for_each(touch))?;
        let [filled] = difference(filled, read([Reason::PageFaultFilled.counter()])?);
        context.note(format!(
            "{} pages, {name}: {} entries, {filled} of them fills, {} ticks",
            PAGES - 1,
            spent.entries,
            spent.ticks
        ));
        // The kernel clears a page through its own map, of which L1 may know nothing yet.
        let unknown = if round == 0 { PAGES / FAULT_AROUND } else { 0 };
        spent.at_most(PER_TOUCH * (PAGES as u64 - 1) + unknown as u64)?;
        memory.discard(first + 1, PAGES - 1)?;
    }
    Ok(Verdict::Pass)
}

/// Entries to L1 while something was done.
#[derive(Clone, Copy, Debug)]
struct Spent {
    entries: u64,
    ticks: u64,
}

impl Spent {
    /// Counts what `body` costs, without what counting costs.
    fn by(body: impl FnOnce()) -> Result<Self> {
        let counters = [Reason::Timer.counter(), EXITS];
        let own = (0..4).map(|_| Ok(difference(read(counters)?, read(counters)?)[1]));
        let own = own.collect::<Result<Vec<u64>>>()?.into_iter().min().unwrap_or_default();
        let before = read(counters)?;
        body();
        let [ticks, exits] = difference(before, read(counters)?);
        Ok(Self { entries: exits - own, ticks })
    }

    /// Demands that no more than `most` entries have other causes than the timer.
    fn at_most(self, most: u64) -> Result<()> {
        let Self { entries, ticks } = self;
        let allowed = most + PER_TICK * (ticks + 1);
        ensure!(entries <= allowed, "{entries} entries to L1 with {ticks} ticks, not {allowed}");
        Ok(())
    }
}

fn read<const N: usize>(counters: [u64; N]) -> Result<[u64; N]> {
    let failed = |trap: Trap| anyhow!("a counter cannot be read: {trap:x?}");
    let mut values = [0; N];
    for (value, number) in values.iter_mut().zip(counters) {
        *value = counter(number).map_err(failed)?;
    }
    Ok(values)
}

fn difference<const N: usize>(before: [u64; N], after: [u64; N]) -> [u64; N] {
    core::array::from_fn(|index| after[index] - before[index])
}
