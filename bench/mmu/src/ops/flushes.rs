//! Flushes, with nothing, little and much to find.

use super::Runner;
use crate::{
    bed::{BITS, Bed, Page, STRIDE},
    design::{Design, READ, guest_store},
    guest::{READ_ONLY, slot},
};
use pv_abi::addr::{Gpa, Gva};
use shadow_mmu::Outcome;
use std::time::Instant;

/// Tables of the address space.
const TABLES: u64 = 64;
/// Where the table lies that is written.
const WRITTEN: Gva = Gva(1 << 32);

/// A VM with `TABLES` shadowed leaf tables, and one more that is full; its entries.
fn bed<M: Design>() -> (Bed<M>, Vec<Page>, Vec<Gpa>) {
    let mut bed = Bed::<M>::new();
    let pages = bed.map(Gva(0), TABLES * 512 / STRIDE, STRIDE, BITS);
    let (host, root) = (bed.mmu.host(), bed.root);
    let table = bed.tables.leaf(host, root, WRITTEN);
    let dense = bed.map(WRITTEN, 512, 1, BITS);
    for page in pages.iter().chain(&dense) {
        bed.fault(page.gva, READ, Outcome::Mapped);
    }
    (bed, dense, (0..512).map(|index| slot(table, index)).collect())
}

pub(super) fn address<M: Design + 'static>() -> Runner
where
    M::Vcpu: 'static,
{
    let (mut bed, pages, _) = bed::<M>();
    Box::new(move |n| {
        let start = Instant::now();
        for page in pages.iter().cycle().take(n as usize) {
            bed.mmu.flush_address(&mut bed.vcpu, page.gva);
            bed.mmu.entering(&bed.vcpu);
        }
        start.elapsed()
    })
}

pub(super) fn changed<M: Design + 'static, const COUNT: usize>() -> Runner
where
    M::Vcpu: 'static,
{
    let (mut bed, pages, entries) = bed::<M>();
    let mut bits = BITS;
    Box::new(move |n| {
        let start = Instant::now();
        for _ in 0..n {
            // Back and forth between two rights of the same page.
            bits ^= BITS ^ READ_ONLY;
            for (page, &at) in pages.iter().zip(&entries).take(COUNT) {
                guest_store(&bed.mmu, &mut bed.vcpu, at, page.gfn.gpa().0 | bits);
            }
            bed.mmu.flush(&mut bed.vcpu);
            bed.mmu.entering(&bed.vcpu);
        }
        start.elapsed()
    })
}
