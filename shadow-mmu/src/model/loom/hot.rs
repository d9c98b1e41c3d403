//! Hot tables: no flush misses what was stored before it.

use super::{
    machine::{Cpu, LINK, PAGE, READ, WRITE, address, check_structures, entry, explore, leaf, vm},
    world::{DATA, LEVEL1, LEVEL2, OTHER_LEVEL1, World},
};
use crate::{mmu::Mmu, primitive::Ordering::Relaxed};
use loom::thread;
use pv_abi::addr::Gva;
use std::sync::Arc;

/// What entry 0 of the level-1 table maps, and entry 1: the table itself.
const GVA: Gva = address(0, 0);
const TABLE: Gva = address(0, 1);

/// vCPUs of a guest that has its level-1 table mapped, and the table hot.
fn guest() -> (Arc<Mmu<World>>, Cpu, Cpu) {
    let mmu = vm(5);
    leaf(mmu.env(), 0).store(entry(DATA[0], PAGE), Relaxed);
    leaf(mmu.env(), 1).store(entry(LEVEL1, PAGE), Relaxed);
    let (mut first, second) = (Cpu::new(&mmu, 0), Cpu::new(&mmu, 1));
    first.fault(GVA, READ);
    mmu.make_hot(LEVEL1);
    (mmu, first, second)
}

/// The guest changes an entry, flushes, and must see the change.
fn store_and_flush(cpu: &mut Cpu) {
    cpu.store(TABLE, 0, entry(DATA[1], PAGE));
    cpu.flush();
    assert_eq!(cpu.access(GVA, READ), DATA[1], "a store before the flush was missed");
}

/// The first vCPU does `before`, then `act` while the second one stores and flushes.
fn while_another_stores(before: fn(&mut Cpu), act: fn(&mut Cpu)) {
    explore(3, move || {
        let (mmu, mut first, mut second) = guest();
        before(&mut first);
        let storing = thread::spawn(move || store_and_flush(&mut second));
        act(&mut first);
        storing.join().unwrap();
        check_structures(&mmu);
    });
}

fn map_table(cpu: &mut Cpu) {
    cpu.fault(TABLE, READ);
}

/// Two flushes: one finds the D bit that the other needs.
///
/// Fails if `HotList::look` does not heed `pending`, or `sync_hot` does not flush before it compares.
#[test]
fn a_flush_waits_for_nobody_elses_compare() {
    while_another_stores(map_table, Cpu::flush);
}

/// A flush against the removal of the mapping that has the D bit.
///
/// Fails if `zap` takes the entry before it has the lock, or drops its D bit.
#[test]
fn a_mapping_that_goes_takes_no_dirt_along() {
    while_another_stores(map_table, |cpu| cpu.mmu.zap_frame(LEVEL1));
}

/// A flush against the protection of a table that is mapped.
///
/// Fails if `cool` takes the table off the list before it has compared it, or does not flush
/// between `take_dirty` and the comparison.
#[test]
fn a_mapped_table_is_protected() {
    while_another_stores(map_table, |cpu| cpu.mmu.cool(LEVEL1));
}

/// The protection of a table against a fault that maps it.
///
/// Fails if `install_absent` asks `tame` before it has the lock.
#[test]
fn a_table_is_protected_while_it_is_mapped() {
    while_another_stores(|_| (), |cpu| cpu.mmu.cool(LEVEL1));
}

/// The protection of a table against a fault that widens its mapping.
///
/// Fails if `change` asks `tame` before it has the lock.
#[test]
fn a_table_is_protected_while_its_mapping_is_widened() {
    let map_clean = |cpu: &mut Cpu| {
        let clean = PAGE & !crate::pte::D;
        leaf(cpu.world(), 1).store(entry(LEVEL1, clean), Relaxed);
        map_table(cpu);
    };
    while_another_stores(map_clean, |cpu| cpu.mmu.cool(LEVEL1));
}

/// One vCPU has taken the D bit and not compared yet, while another one protects the table and
/// would take it off the list: the flush that follows must find it still.
///
/// Fails if `HotList::remove_if` does not heed `pending`.
#[test]
fn a_table_stays_listed_until_it_was_compared() {
    explore(3, || {
        let (mmu, mut first, mut second) = guest();
        first.fault(TABLE, READ);
        second.store(TABLE, 0, entry(DATA[1], PAGE));
        let flushing = thread::spawn(move || first.flush());
        mmu.cool(LEVEL1);
        second.flush();
        assert_eq!(second.access(GVA, READ), DATA[1], "a store before the flush was missed");
        flushing.join().unwrap();
        check_structures(&mmu);
    });
}

/// Two vCPUs protect the same table while a third one writes it.
///
/// Fails for the reasons of the three models above.
#[test]
fn two_protect_one_table() {
    explore(1, || {
        let (mmu, mut first, mut second) = guest();
        first.fault(TABLE, READ);
        let storing = thread::spawn(move || store_and_flush(&mut second));
        let other = Arc::clone(&mmu);
        let cooling = thread::spawn(move || other.cool(LEVEL1));
        mmu.cool(LEVEL1);
        storing.join().unwrap();
        cooling.join().unwrap();
        check_structures(&mmu);
    });
}

/// A frame becomes a table while a TLB has it dirty, by an entry that is gone.
///
/// Fails if `find_or_make` does not flush when a frame becomes a table.
#[test]
fn a_new_table_is_watched_from_the_start() {
    explore(2, || {
        let mmu = vm(6);
        leaf(mmu.env(), 0).store(entry(DATA[0], PAGE), Relaxed);
        leaf(mmu.env(), 1).store(entry(OTHER_LEVEL1, PAGE), Relaxed);
        let (mut first, mut second) = (Cpu::new(&mmu, 0), Cpu::new(&mmu, 1));
        second.store(TABLE, 0, entry(DATA[0], PAGE));
        // Unmapped, and flushed by one of the two.
        mmu.env().store(LEVEL1, 1, 0);
        first.flush_address(TABLE);
        mmu.env().store(LEVEL2, 1, entry(OTHER_LEVEL1, LINK));
        let linking = thread::spawn(move || first.fault(address(1, 0), READ));
        let store = |world: &World, gfn| world.store(gfn, 0, entry(DATA[1], PAGE));
        let stored = second.attempt(TABLE, WRITE, store).is_some();
        linking.join().unwrap();
        second.flush();
        let expected = DATA[usize::from(stored)];
        assert_eq!(second.access(address(1, 0), READ), expected, "a store was missed");
        check_structures(&mmu);
    });
}
