//! Rules I1 and I2: what a flush has returned for is not installed afterwards.

use super::{
    machine::{Cpu, LINK, PAGE, READ, WRITE, address, check_structures, entry, explore, leaf, vm},
    world::{DATA, LEVEL1},
};
use crate::{
    primitive::Ordering::{Acquire, Relaxed},
    pte::{A, D, P, U, W},
};
use loom::thread;

const GVA: pv_abi::addr::Gva = address(0, 0);

/// A fault against a remap of the same address, which is flushed.
///
/// Fails if `install_absent` does not read the guest's entries again, if `sync_entry` passes over
/// tokens, or if `cancel` does not take what has become of one.
#[test]
fn a_flushed_mapping_stays_away() {
    explore(3, || {
        let mmu = vm(5);
        leaf(mmu.env(), 0).store(entry(DATA[0], PAGE), Relaxed);
        let (mut first, mut second) = (Cpu::new(&mmu, 0), Cpu::new(&mmu, 1));
        first.fault(address(0, 0), READ);
        mmu.zap_frame(DATA[0]);
        let faulting = thread::spawn(move || second.fault(GVA, READ));
        first.world().store(LEVEL1, 0, entry(DATA[1], PAGE));
        first.flush_address(GVA);
        assert_eq!(first.access(GVA, READ), DATA[1]);
        faulting.join().unwrap();
        assert_eq!(first.access(GVA, READ), DATA[1]);
        check_structures(&mmu);
    });
}

/// A write fault, which widens an entry, against a downgrade that is flushed.
///
/// Fails if `change` exchanges the permissions in place, or does not read the guest's entries again.
#[test]
fn a_flushed_permission_stays_away() {
    explore(3, || {
        let mmu = vm(5);
        leaf(mmu.env(), 0).store(entry(DATA[0], LINK), Relaxed);
        let (mut first, mut second) = (Cpu::new(&mmu, 0), Cpu::new(&mmu, 1));
        first.fault(GVA, READ);
        let faulting = thread::spawn(move || {
            let _ = second.mmu.prefault(&mut second.vcpu, GVA, WRITE);
        });
        let _ = leaf(first.world(), 0).fetch_and(!W, Relaxed);
        first.flush_address(GVA);
        assert!(first.mapped(GVA).is_none_or(|(_, write)| !write), "W is back");
        faulting.join().unwrap();
        assert!(first.mapped(GVA).is_none_or(|(_, write)| !write), "W is back");
        check_structures(&mmu);
    });
}

/// Somebody else's sync, which finds an entry that could be widened, against a downgrade that is flushed.
///
/// Fails if `sync_leaf` gives permissions, rather than only taking them away.
#[test]
fn a_sync_does_not_bring_a_permission_back() {
    explore(3, || {
        let mmu = vm(5);
        leaf(mmu.env(), 0).store(entry(DATA[0], P | U | A), Relaxed);
        let (mut first, mut second) = (Cpu::new(&mmu, 0), Cpu::new(&mmu, 1));
        first.fault(GVA, READ);
        leaf(mmu.env(), 0).store(entry(DATA[0], P | W | U | A | D), Relaxed);
        let syncing = thread::spawn(move || second.flush_address(GVA));
        let _ = leaf(first.world(), 0).fetch_and(!W, Acquire);
        first.flush_address(GVA);
        assert!(first.mapped(GVA).is_none_or(|(_, write)| !write), "W is back");
        syncing.join().unwrap();
        assert!(first.mapped(GVA).is_none_or(|(_, write)| !write), "W is back");
        check_structures(&mmu);
    });
}

/// A flush of an address whose mapping the hardware makes dirty at that moment.
///
/// Fails if `take` gives up when the entry is not what it was.
#[test]
fn a_mapping_goes_though_it_becomes_dirty() {
    explore(3, || {
        let mmu = vm(5);
        // Only the entries of tables start out clean.
        leaf(mmu.env(), 0).store(entry(LEVEL1, PAGE), Relaxed);
        let (mut first, mut second) = (Cpu::new(&mmu, 0), Cpu::new(&mmu, 1));
        first.fault(GVA, WRITE);
        let storing = thread::spawn(move || {
            let _ = second.attempt(GVA, WRITE, |_, _| ());
        });
        first.world().store(LEVEL1, 0, entry(DATA[1], PAGE));
        first.flush_address(GVA);
        assert!(first.mapped(GVA).is_none_or(|(gfn, _)| gfn == DATA[1]));
        storing.join().unwrap();
        check_structures(&mmu);
    });
}
