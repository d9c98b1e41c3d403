//! Faults, and the removal of what they mapped.

use super::Runner;
use crate::{
    bed::{BITS, Bed, Page, SIZE, STRIDE},
    design::{Design, READ},
    guest::READ_ONLY,
};
use pv_abi::addr::{Gfn, Gpa, Gva};
use shadow_mmu::Outcome;
use std::time::{Duration, Instant};

/// Pages that are filled between two sweeps.
const PAGES: u64 = 2048;
/// Tables that are made between two sweeps.
const NEW_TABLES: u64 = 256;
/// Bytes that a leaf table maps.
const LEAF_SPAN: u64 = 1 << 21;

/// Fills `first`; then clears `all`.
fn fill_and_zap<M: Design>(bed: &mut Bed<M>, first: &[Page], all: &[Page]) -> [Duration; 2] {
    let start = Instant::now();
    for page in first {
        bed.fault(page.gva, READ, Outcome::Mapped);
    }
    let filled = Instant::now();
    for page in all {
        bed.mmu.zap_frame(page.gfn);
    }
    [filled - start, filled.elapsed()]
}

/// A VM with `PAGES` pages, far apart, whose tables are shadowed and empty.
fn sparse<M: Design>() -> (Bed<M>, Vec<Page>) {
    let mut bed = Bed::<M>::new();
    let pages = bed.map(Gva(0), PAGES, STRIDE, BITS);
    fill_and_zap(&mut bed, &pages, &pages);
    (bed, pages)
}

/// Runs `n` operations in batches of at most `most`; `batch` times some.
fn batches(n: u64, most: u64, mut batch: impl FnMut(u64) -> Duration) -> Duration {
    let (mut left, mut total) = (n, Duration::ZERO);
    while left > 0 {
        let count = left.min(most);
        total += batch(count);
        left -= count;
    }
    total
}

pub(super) fn fill<M: Design + 'static>() -> Runner
where
    M::Vcpu: 'static,
{
    let (mut bed, pages) = sparse::<M>();
    Box::new(move |n| {
        batches(n, PAGES, |count| {
            let some = &pages[..count as usize];
            fill_and_zap(&mut bed, some, some)[0]
        })
    })
}

pub(super) fn zap_frame<M: Design + 'static>() -> Runner
where
    M::Vcpu: 'static,
{
    let (mut bed, pages) = sparse::<M>();
    Box::new(move |n| {
        batches(n, PAGES, |count| {
            let some = &pages[..count as usize];
            fill_and_zap(&mut bed, some, some)[1]
        })
    })
}

pub(super) fn fill_around<M: Design + 'static>() -> Runner
where
    M::Vcpu: 'static,
{
    let mut bed = Bed::<M>::new();
    let pages = bed.map(Gva(0), PAGES, 1, BITS);
    let faults: Vec<Page> = pages.iter().copied().step_by(16).collect();
    fill_and_zap(&mut bed, &faults, &pages);
    Box::new(move |n| {
        batches(n, faults.len() as u64, |count| {
            let count = count as usize;
            fill_and_zap(&mut bed, &faults[..count], &pages[..16 * count])[0]
        })
    })
}

pub(super) fn fill_new_table<M: Design + 'static>() -> Runner
where
    M::Vcpu: 'static,
{
    let mut bed = Bed::<M>::new();
    let pages = bed.map(Gva(0), NEW_TABLES, LEAF_SPAN >> 12, BITS);
    let (own, mut tables) = (bed.root, NEW_TABLES);
    let other = bed.tables.root(bed.mmu.host());
    Box::new(move |n| {
        batches(n, NEW_TABLES - 1, |count| {
            assert!(bed.mmu.load_root(&mut bed.vcpu, own));
            // The first page brings the upper tables.
            bed.fault(pages[0].gva, READ, Outcome::Mapped);
            let start = Instant::now();
            for page in &pages[1..=count as usize] {
                bed.fault(page.gva, READ, Outcome::Mapped);
            }
            let elapsed = start.elapsed();
            tables = bed.mmu.free_pages().into();
            assert!(bed.mmu.load_root(&mut bed.vcpu, other));
            bed.mmu.drop_root(own);
            bed.mmu.reclaim();
            bed.mmu.entering(&bed.vcpu);
            bed.mmu.reclaim();
            assert!(u64::from(bed.mmu.free_pages()) >= tables + count, "the tables are free again");
            elapsed
        })
    })
}

pub(super) fn spurious<M: Design + 'static>() -> Runner
where
    M::Vcpu: 'static,
{
    let (mut bed, pages) = sparse::<M>();
    for page in &pages {
        bed.fault(page.gva, READ, Outcome::Mapped);
    }
    Box::new(move |n| {
        let start = Instant::now();
        for page in pages.iter().cycle().take(n as usize) {
            bed.fault(page.gva, READ, Outcome::Mapped);
        }
        start.elapsed()
    })
}

pub(super) fn mmio<M: Design + 'static>() -> Runner
where
    M::Vcpu: 'static,
{
    let mut bed = Bed::<M>::new();
    let (gva, beyond) = (Gva(0x1000), Gfn(SIZE.frames + 7));
    let (root, host) = (bed.root, bed.mmu.host());
    bed.tables.map(host, root, gva, beyond, BITS);
    repeat(bed, gva, Outcome::Mmio(Gpa(beyond.gpa().0)))
}

pub(super) fn reflected<M: Design + 'static>() -> Runner
where
    M::Vcpu: 'static,
{
    let mut bed = Bed::<M>::new();
    bed.map(Gva(0), 1, 1, READ_ONLY);
    repeat(bed, Gva(0x1000), Outcome::Reflect(READ.bits()))
}

/// The same fault `n` times.
fn repeat<M: Design + 'static>(mut bed: Bed<M>, gva: Gva, outcome: Outcome) -> Runner
where
    M::Vcpu: 'static,
{
    Box::new(move |n| {
        let start = Instant::now();
        for _ in 0..n {
            bed.fault(gva, READ, outcome);
        }
        start.elapsed()
    })
}
