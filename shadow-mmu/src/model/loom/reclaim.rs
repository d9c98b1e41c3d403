//! Ends of pages: nothing enters a dead one, and none is reused while somebody may walk it.

use super::{
    machine::{Cpu, LINK, PAGE, READ, address, check_structures, entry, explore, leaf, vm},
    world::{DATA, LEVEL1, LEVEL2, LEVEL3, OTHER_LEVEL1},
};
use crate::{
    page::EntryRef,
    primitive::Ordering::Relaxed,
    pte::{GuestPte, Spte},
};
use loom::thread;

/// A fault that fills an entry against the end of the table it is in.
///
/// Fails if `install_absent` does not look whether the page is dead once its token is in.
#[test]
fn a_dead_table_gets_no_mapping() {
    explore(3, || {
        let mmu = vm(10);
        leaf(mmu.env(), 0).store(entry(DATA[0], PAGE), Relaxed);
        leaf(mmu.env(), 1).store(entry(DATA[1], PAGE), Relaxed);
        let (mut first, mut second) = (Cpu::new(&mmu, 0), Cpu::new(&mmu, 1));
        first.fault(address(0, 0), READ);
        let faulting = thread::spawn(move || second.fault(address(0, 1), READ));
        mmu.forget_table(LEVEL1);
        faulting.join().unwrap();
        check_structures(&mmu);
    });
}

/// A fault that links a table against the end of the table it is linked in.
///
/// Fails if `link_claimed` does not look whether the parent is dead once its token is in.
#[test]
fn a_dead_table_gets_no_link() {
    explore(3, || {
        let mmu = vm(10);
        leaf(mmu.env(), 0).store(entry(DATA[0], PAGE), Relaxed);
        mmu.env().store(LEVEL2, 1, entry(OTHER_LEVEL1, LINK));
        mmu.env().store(OTHER_LEVEL1, 0, entry(DATA[1], PAGE));
        let (mut first, mut second) = (Cpu::new(&mmu, 0), Cpu::new(&mmu, 1));
        first.fault(address(0, 0), READ);
        let faulting = thread::spawn(move || second.fault(address(1, 0), READ));
        mmu.forget_table(LEVEL2);
        faulting.join().unwrap();
        check_structures(&mmu);
    });
}

/// A fault that is on its way through a table, against the end of the table and the reuse of its
/// frame for another one.
///
/// Fails if `reclaim` frees without waiting for quiescent points.
#[test]
fn a_frame_is_not_reused_under_a_walk() {
    explore(2, || {
        let mmu = vm(5);
        leaf(mmu.env(), 0).store(entry(DATA[0], PAGE), Relaxed);
        mmu.env().store(LEVEL2, 1, entry(OTHER_LEVEL1, LINK));
        mmu.env().store(OTHER_LEVEL1, 0, entry(DATA[1], PAGE));
        let (mut first, mut second) = (Cpu::new(&mmu, 0), Cpu::new(&mmu, 1));
        first.fault(address(0, 0), READ);
        mmu.zap_frame(DATA[0]);
        let faulting = thread::spawn(move || {
            let _ = second.mmu.prefault(&mut second.vcpu, address(0, 0), READ);
            second.attempt(address(1, 0), READ, |_, _| ())
        });
        mmu.forget_table(LEVEL1);
        mmu.entering(0);
        mmu.reclaim();
        let _ = first.mmu.prefault(&mut first.vcpu, address(1, 0), READ);
        let reached = faulting.join().unwrap();
        assert!(reached.is_none_or(|gfn| gfn == DATA[1]), "an entry of the table before");
        check_structures(&mmu);
    });
}

/// A link that is being made against the look whether the table was used lately.
///
/// Fails if `used_lately` clears A in whatever the entry is by then, for that damages the token.
#[test]
fn a_look_at_the_age_of_a_table_damages_no_token() {
    explore(3, || {
        let mmu = vm(5);
        leaf(mmu.env(), 0).store(entry(DATA[0], PAGE), Relaxed);
        leaf(mmu.env(), 1).store(entry(DATA[1], PAGE), Relaxed);
        mmu.env().store(LEVEL2, 1, entry(LEVEL1, LINK));
        let (mut first, mut second) = (Cpu::new(&mmu, 0), Cpu::new(&mmu, 1));
        first.fault(address(0, 0), READ);
        let faulting = thread::spawn(move || second.access(address(1, 1), READ));
        for id in mmu.map.chain(&mmu.pages, LEVEL1) {
            mmu.used_lately(mmu.pages.get(id));
        }
        assert_eq!(faulting.join().unwrap(), DATA[1]);
        check_structures(&mmu);
    });
}

/// The end of a table that has two links against a third link that fails because of it, and a fourth
/// one in its place: the list of links looks as before, but does not name the third any more.
///
/// Fails if `zap_links` waits until the list looks otherwise, however long.
#[test]
fn the_end_of_a_table_waits_for_no_other_link() {
    explore(3, || {
        let mmu = vm(10);
        mmu.env().store(LEVEL2, 1, entry(LEVEL1, LINK));
        for index in 0..2 {
            leaf(mmu.env(), index).store(entry(DATA[index], PAGE), Relaxed);
        }
        let (mut first, mut second) = (Cpu::new(&mmu, 0), Cpu::new(&mmu, 1));
        first.fault(address(0, 0), READ);
        first.fault(address(1, 1), READ);
        let [child, two, three] =
            [LEVEL1, LEVEL2, LEVEL3].map(|gfn| mmu.map.chain(&mmu.pages, gfn).next().unwrap());
        let link = Spte::link(crate::env::TablePool::hpa(mmu.env(), child), GuestPte(LINK));
        let linking = thread::spawn(move || {
            let Cpu { mmu, vcpu, .. } = &mut second;
            let mut make = |at| {
                let claim = mmu.claim_link(at, child, vcpu.token(), link)?;
                mmu.link_claimed(claim, || true)
            };
            make(EntryRef::new(two, 256)).or_else(|_| make(EntryRef::new(three, 256)))
        });
        mmu.forget_table(LEVEL1);
        let _ = linking.join().unwrap();
        check_structures(&mmu);
    });
}
