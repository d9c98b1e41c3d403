//! Rule I3: a table that is linked is what the guest's entry stands for, and as new as the guest's.

use super::{
    machine::{Cpu, LINK, PAGE, READ, address, check_structures, entry, explore, leaf, vm},
    world::{DATA, LEVEL1, LEVEL2, OTHER_LEVEL1, ROOT, World},
};
use crate::{mmu::Mmu, primitive::Ordering::Relaxed};
use loom::thread;
use std::sync::Arc;

/// A table is changed and linked a second time, without a flush, for neither makes a present
/// entry another; somebody else fills entries of the old state.
///
/// Fails if `link` does not compare a table that was found.
#[test]
fn a_found_table_is_compared() {
    explore(2, || {
        let mmu = vm(5);
        leaf(mmu.env(), 0).store(entry(DATA[0], PAGE), Relaxed);
        leaf(mmu.env(), 1).store(entry(DATA[0], PAGE), Relaxed);
        let (mut first, mut second) = (Cpu::new(&mmu, 0), Cpu::new(&mmu, 1));
        first.fault(address(0, 1), READ);
        let faulting = thread::spawn(move || second.fault(address(0, 0), READ));
        first.world().store(LEVEL1, 0, entry(DATA[1], PAGE));
        first.world().store(LEVEL2, 1, entry(LEVEL1, LINK));
        first.access(address(1, 1), READ);
        assert_eq!(first.access(address(1, 0), READ), DATA[1]);
        faulting.join().unwrap();
        assert_eq!(first.access(address(1, 0), READ), DATA[1]);
        check_structures(&mmu);
    });
}

/// A guest that has a level-1 table mapped at one place, and shadowed nowhere else yet; another
/// such table is to take its other place.
fn guest(mmu: &Arc<Mmu<World>>) -> (Cpu, Cpu) {
    leaf(mmu.env(), 0).store(entry(DATA[0], PAGE), Relaxed);
    mmu.env().store(LEVEL2, 1, entry(LEVEL1, LINK));
    mmu.env().store(OTHER_LEVEL1, 0, entry(DATA[1], PAGE));
    let (mut first, second) = (Cpu::new(mmu, 0), Cpu::new(mmu, 1));
    first.fault(address(1, 0), READ);
    (first, second)
}

/// A fault that links a table against the flush of another link in its place.
///
/// Fails if `link_child` does not read the guest's entries again.
#[test]
fn a_flushed_link_stays_away() {
    explore(3, || {
        let mmu = vm(6);
        let (mut first, mut second) = guest(&mmu);
        let faulting = thread::spawn(move || second.fault(address(0, 0), READ));
        first.world().store(LEVEL2, 0, entry(OTHER_LEVEL1, LINK));
        first.flush_address(address(0, 0));
        assert!(first.mapped(address(0, 0)).is_none_or(|(gfn, _)| gfn == DATA[1]));
        faulting.join().unwrap();
        assert_eq!(first.access(address(0, 0), READ), DATA[1]);
        check_structures(&mmu);
    });
}

/// The same where the guest notes its store, and the flush looks at leaves only.
///
/// Fails for the same reason.
#[test]
fn a_noted_link_stays_away() {
    explore(3, || {
        let mmu = vm(6);
        mmu.enable_notes();
        mmu.pin_root(ROOT).unwrap();
        let (mut first, mut second) = guest(&mmu);
        let faulting = thread::spawn(move || second.fault(address(0, 0), READ));
        first.world().store(LEVEL2, 0, entry(OTHER_LEVEL1, LINK));
        first.note(LEVEL2, 0);
        first.flush_address(address(0, 0));
        assert!(first.mapped(address(0, 0)).is_none_or(|(gfn, _)| gfn == DATA[1]));
        faulting.join().unwrap();
        assert_eq!(first.access(address(0, 0), READ), DATA[1]);
        check_structures(&mmu);
    });
}
