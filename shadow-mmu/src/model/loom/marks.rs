//! Rules I5 and F5: A and D are set in the entries that were walked, and before they are used.

use super::{
    machine::{Cpu, PAGE, READ, WRITE, address, check_structures, entry, explore, leaf, vm},
    world::DATA,
};
use crate::{
    primitive::Ordering::{Acquire, Relaxed},
    pte::{A, D},
};
use loom::thread;
use pv_abi::addr::Gva;

const GVA: Gva = address(0, 0);

/// A fault that sets A and D in an entry that the guest takes away.
///
/// Fails if `path` or `mark` set the bits whatever the entry is.
#[test]
fn an_entry_that_is_gone_stays_zero() {
    for linked in [false, true] {
        explore(3, move || {
            let mmu = vm(5);
            leaf(mmu.env(), 0).store(entry(DATA[0], PAGE & !(A | D)), Relaxed);
            leaf(mmu.env(), 1).store(entry(DATA[1], PAGE), Relaxed);
            let (mut first, mut second) = (Cpu::new(&mmu, 0), Cpu::new(&mmu, 1));
            if linked {
                first.fault(address(0, 1), READ);
            }
            let faulting = thread::spawn(move || {
                let _ = second.mmu.prefault(&mut second.vcpu, GVA, WRITE);
            });
            // A plain store and a compare-exchange side by side are not well modelled.
            leaf(mmu.env(), 0).swap(0, Relaxed);
            faulting.join().unwrap();
            assert_eq!(leaf(mmu.env(), 0).load(Relaxed), 0);
        });
    }
}

/// A fault that maps an entry whose A bit is cleared, and flushed.
///
/// Fails if `still_true` passes over bits that were lost.
#[test]
fn what_was_aged_is_marked_again() {
    explore(3, || {
        let mmu = vm(5);
        leaf(mmu.env(), 0).store(entry(DATA[0], PAGE), Relaxed);
        leaf(mmu.env(), 1).store(entry(DATA[1], PAGE), Relaxed);
        let (mut first, mut second) = (Cpu::new(&mmu, 0), Cpu::new(&mmu, 1));
        first.fault(address(0, 1), READ);
        let faulting = thread::spawn(move || second.fault(GVA, READ));
        leaf(mmu.env(), 0).fetch_and(!A, Relaxed);
        first.flush_address(GVA);
        faulting.join().unwrap();
        let accessed = leaf(mmu.env(), 0).load(Acquire) & A != 0;
        assert!(accessed || first.mapped(GVA).is_none(), "mapped though A is clear");
        check_structures(&mmu);
    });
}
