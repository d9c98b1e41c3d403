//! Rule I3: a table that is linked is what the guest's entry stands for, and as new as the guest's.

use super::{
    machine::{Cpu, LINK, PAGE, READ, address, check_structures, entry, explore, leaf, vm},
    world::{DATA, LEVEL1, LEVEL2, LEVEL3, NEW_ROOT, OTHER_LEVEL1, ROOT, World},
};
use crate::{fault::Access, mmu::Mmu, primitive::Ordering::Relaxed};
use loom::thread;
use pv_abi::addr::Gva;
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

/// A new root takes over the kernel's half, and another vCPU, which has the new root loaded too, stores
/// to it and flushes there.
///
/// Fails if `copy_upper_half` does not compare what it takes over.
#[test]
fn a_copied_table_is_compared() {
    explore(3, || {
        let mmu = vm(10);
        for root in [ROOT, NEW_ROOT] {
            mmu.env().store(root, 256, entry(LEVEL3, LINK));
        }
        leaf(mmu.env(), 0).store(entry(DATA[0], PAGE), Relaxed);
        let (mut first, mut second) = (Cpu::new(&mmu, 0), Cpu::new(&mmu, 1));
        let kernel = Gva(0xffff_8000_0000_0000);
        first.fault(kernel, Access::READ);
        let load = |cpu: &mut Cpu| cpu.mmu.load_root(&mut cpu.vcpu, NEW_ROOT, false).unwrap();
        let loading = thread::spawn(move || load(&mut second));
        first.world().store(LEVEL3, 0, 0);
        load(&mut first);
        first.flush_address(kernel);
        let stale = |cpu: &Cpu| cpu.mapped_for(kernel, Access::READ).is_some();
        assert!(!stale(&first));
        loading.join().unwrap();
        assert!(!stale(&first));
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
/// Fails if `link_claimed` does not read the guest's entries again.
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

/// A leaf is changed and flushed while somebody links its table, which was compared before that.
///
/// Fails if a flush of one address, trusting links, leaves one alone that is being made.
#[test]
fn a_flushed_leaf_is_not_linked_with_its_table() {
    explore(3, || {
        let mmu = vm(6);
        mmu.enable_notes();
        mmu.pin_root(ROOT).unwrap();
        let (mut first, mut second) = guest(&mmu);
        let faulting = thread::spawn(move || second.fault(address(0, 0), READ));
        first.world().store(LEVEL1, 0, entry(DATA[1], PAGE));
        first.flush_address(address(0, 0));
        assert!(first.mapped(address(0, 0)).is_none_or(|(gfn, _)| gfn == DATA[1]));
        faulting.join().unwrap();
        assert_eq!(first.access(address(0, 0), READ), DATA[1]);
        check_structures(&mmu);
    });
}
