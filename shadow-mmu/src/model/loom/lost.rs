//! Notes, lost or on their way.

use super::{
    machine::{Cpu, LINK, PAGE, READ, address, check_structures, entry, explore, leaf, vm},
    world::{DATA, LEVEL1, LEVEL2, LEVEL3, ROOT},
};
use crate::{
    map::PageMap,
    page::{Pages, Role},
    primitive::{
        AtomicU64,
        Ordering::{Acquire, Relaxed},
    },
};
use loom::thread;
use pv_abi::addr::{Gfn, Gva};
use std::sync::Arc;

/// The map alone: a note against a fault that makes the shadow of the table whose entry was stored. The
/// store has no barrier of its own.
///
/// Fails if a chain is looked at without an exchange.
#[test]
fn a_note_finds_the_table_or_is_seen() {
    explore(3, || {
        let shared = Arc::new((Pages::new(2), PageMap::new(1), AtomicU64::new(0)));
        let other = Arc::clone(&shared);
        let faulting = thread::spawn(move || {
            let (pages, map, entry) = &*other;
            let made = map.find_or_make(pages, Gfn(0), Role::at(1, Role::empty()), || (), |_| ());
            made.unwrap();
            entry.load(Acquire)
        });
        let (pages, map, entry) = &*shared;
        entry.store(1, Relaxed);
        let found = map.chain(pages, Gfn(0)).next();
        assert!(faulting.join().unwrap() == 1 || found.is_some(), "a store was missed");
    });
}

/// Notes are lost while another vCPU links a table below again, so that it stays.
///
/// Fails if `notes_lost` empties the roots only.
#[test]
fn lost_notes_reach_the_tables_below() {
    explore(1, || {
        let mmu = vm(12);
        mmu.enable_notes();
        mmu.pin_root(ROOT).unwrap();
        mmu.env().store(LEVEL3, 1, entry(LEVEL2, LINK));
        leaf(mmu.env(), 0).store(entry(DATA[0], PAGE), Relaxed);
        leaf(mmu.env(), 1).store(entry(DATA[0], PAGE), Relaxed);
        let (mut first, mut second) = (Cpu::new(&mmu, 0), Cpu::new(&mmu, 1));
        // The table of level 2 is linked twice.
        let neighbours = [Gva(1 << 30), Gva(1 << 30 | 1 << 12)];
        first.fault(address(0, 0), READ);
        first.fault(neighbours[1], READ);
        // Nobody is told of it.
        mmu.env().store(LEVEL1, 0, entry(DATA[1], PAGE));
        let linking = thread::spawn(move || second.fault(neighbours[1], READ));
        first.mmu.notes_lost();
        linking.join().unwrap();
        first.access(neighbours[1], READ);
        assert_eq!(first.access(neighbours[0], READ), DATA[1], "a lost note is missed");
        check_structures(&mmu);
    });
}
