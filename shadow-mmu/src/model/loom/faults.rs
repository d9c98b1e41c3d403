//! Faults of two vCPUs on the same address, and what they need: roots, tables, the entry.

use super::{
    machine::{Cpu, LINK, PAGE, READ, WRITE, address, check_structures, entry, explore, leaf, vm},
    world::{DATA, LEVEL1, LEVEL3, NEW_ROOT, ROOT},
};
use crate::{primitive::Ordering::Relaxed, pte::W};
use loom::thread;
use std::sync::Arc;

/// Both fill the same entry.
///
/// Fails if `install_absent` stores its token, whatever is there.
#[test]
fn two_fill_one_entry() {
    explore(3, || {
        let mmu = vm(5);
        leaf(mmu.env(), 0).store(entry(DATA[0], PAGE), Relaxed);
        leaf(mmu.env(), 1).store(entry(DATA[0], PAGE), Relaxed);
        let (mut first, mut second) = (Cpu::new(&mmu, 0), Cpu::new(&mmu, 1));
        first.fault(address(0, 1), READ);
        let faulting = thread::spawn(move || second.access(address(0, 0), WRITE));
        assert_eq!(first.access(address(0, 0), READ), DATA[0]);
        assert_eq!(faulting.join().unwrap(), DATA[0]);
        check_structures(&mmu);
    });
}

/// Both link the same table.
///
/// Fails if `claim_link` does not look whether the child is dead.
#[test]
fn two_link_one_table() {
    explore(3, || {
        let mmu = vm(10);
        leaf(mmu.env(), 0).store(entry(DATA[0], PAGE), Relaxed);
        leaf(mmu.env(), 1).store(entry(DATA[1], PAGE), Relaxed);
        let (mut first, mut second) = (Cpu::new(&mmu, 0), Cpu::new(&mmu, 1));
        first.fault(address(0, 1), READ);
        mmu.forget_table(LEVEL1);
        let faulting = thread::spawn(move || second.access(address(0, 1), READ));
        assert_eq!(first.access(address(0, 0), READ), DATA[0]);
        assert_eq!(faulting.join().unwrap(), DATA[1]);
        check_structures(&mmu);
    });
}

/// Both load the same new root; neither may run without L1's own entries in it.
///
/// Fails if they are put in after the page is in the map.
#[test]
fn two_load_one_root() {
    explore(3, || {
        let mmu = vm(4);
        let other = Arc::clone(&mmu);
        let loading = thread::spawn(move || Cpu::new(&other, 1).check_fixed());
        Cpu::new(&mmu, 0).check_fixed();
        loading.join().unwrap();
        check_structures(&mmu);
    });
}

/// A vCPU comes back to a root that has died; another vCPU makes it anew, in the same page.
///
/// Fails if `Pages::alloc` brings the page to life before it is filled.
#[test]
fn a_remembered_root_is_whole() {
    explore(3, || {
        let mmu = vm(4);
        let mut second = Cpu::new(&mmu, 1);
        let old = second.vcpu.roots().unwrap();
        mmu.load_root(&mut second.vcpu, NEW_ROOT, true).unwrap();
        for root in [old.umod, old.smod] {
            assert!(mmu.kill(root));
        }
        mmu.reclaim();
        mmu.entering(1);
        mmu.reclaim();
        let loading = thread::spawn(move || {
            second.mmu.load_root(&mut second.vcpu, ROOT, false).unwrap();
            second.check_fixed();
        });
        let first = Cpu::new(&mmu, 0);
        first.check_fixed();
        assert_eq!(first.vcpu.roots(), Some(old), "the same pages");
        loading.join().unwrap();
        check_structures(&mmu);
    });
}

/// The guest gives a permission in a root that is not pinned, where nobody announces that, and pins it on
/// another vCPU.
///
/// Fails if the root's entry is not looked at again once the root is seen to be pinned.
#[test]
fn a_refusal_is_of_links_that_are_kept_true() {
    explore(3, || {
        let mmu = vm(10);
        mmu.enable_notes();
        mmu.env().store(ROOT, 0, entry(LEVEL3, LINK & !W));
        leaf(mmu.env(), 0).store(entry(DATA[0], PAGE), Relaxed);
        let mut first = Cpu::new(&mmu, 0);
        first.fault(address(0, 0), READ);
        first.world().store(ROOT, 0, entry(LEVEL3, LINK));
        let faulting = thread::spawn(move || first.fault(address(0, 0), WRITE));
        mmu.pin_root(ROOT).unwrap();
        faulting.join().unwrap();
        check_structures(&mmu);
    });
}
