//! The dirty log: a write that one look does not show, the next one does.

use super::{
    machine::{Cpu, PAGE, READ, WRITE, address, check_structures, entry, explore, leaf, vm},
    world::{DATA, World},
};
use crate::{mmu::Mmu, primitive::Ordering::Relaxed, pte::W};
use loom::thread;
use pv_abi::addr::{Gfn, Gva};
use std::sync::Arc;

/// What entry 0 of the level-1 table maps for writing.
const GVA: Gva = address(0, 0);

/// vCPUs of a guest with the log on.
fn guest() -> (Arc<Mmu<World>>, Cpu, Cpu) {
    let mmu = vm(5);
    leaf(mmu.env(), 0).store(entry(DATA[0], PAGE), Relaxed);
    leaf(mmu.env(), 1).store(entry(DATA[1], PAGE), Relaxed);
    let (mut first, second) = (Cpu::new(&mmu, 0), Cpu::new(&mmu, 1));
    mmu.start_dirty_log();
    first.fault(address(0, 1), READ);
    (mmu, first, second)
}

/// Takes the log; whether the frame was written, and what is in it after that.
fn look(mmu: &Mmu<World>) -> (bool, u64) {
    let mut word = [0];
    mmu.take_dirty_log(Gfn(0), &mut word);
    (word[0] >> DATA[0].0 & 1 == 1, mmu.env().entry(DATA[0], 0).load(Relaxed))
}

/// The last look shows what was written since the copy that followed the one before.
fn check(mmu: &Mmu<World>, copied: u64) {
    let (written, now) = look(mmu);
    assert!(written || now == copied, "a write was lost");
    check_structures(mmu);
}

/// A look against the first write to a frame.
///
/// Fails if `tame` is asked before the lock is held, or does not ask the log.
#[test]
fn a_look_and_a_write() {
    explore(3, || {
        let (mmu, _first, mut second) = guest();
        let writing = thread::spawn(move || second.store(GVA, 0, 1));
        let (_, copied) = look(&mmu);
        writing.join().unwrap();
        check(&mmu, copied);
    });
}

/// A look against a second write through the same entry, and TLB.
///
/// Fails if `take_dirty_log` does not flush.
#[test]
fn a_look_and_a_write_through_the_tlb() {
    explore(3, || {
        let (mmu, _first, mut second) = guest();
        second.store(GVA, 0, 1);
        let writing = thread::spawn(move || second.store(GVA, 0, 2));
        let (_, copied) = look(&mmu);
        writing.join().unwrap();
        check(&mmu, copied);
    });
}

/// The same while somebody else takes the write permission away, and has not flushed every TLB.
///
/// Fails if `take_dirty_log` flushes only where an entry had W.
#[test]
fn a_look_and_a_write_through_a_tlb_that_is_behind() {
    explore(3, || {
        let (mmu, mut first, mut second) = guest();
        second.store(GVA, 0, 1);
        leaf(mmu.env(), 0).fetch_and(!W, Relaxed);
        first.flush_address(GVA);
        let writing = thread::spawn(move || {
            let _ = second.attempt(GVA, WRITE, |world, gfn| world.store(gfn, 0, 2));
        });
        let (_, copied) = look(&mmu);
        writing.join().unwrap();
        check(&mmu, copied);
    });
}

/// The start of the log against a write.
///
/// Fails if `start_dirty_log` does not flush.
#[test]
fn a_start_and_a_write() {
    explore(3, || {
        let mmu = vm(5);
        leaf(mmu.env(), 0).store(entry(DATA[0], PAGE), Relaxed);
        let mut cpu = Cpu::new(&mmu, 1);
        cpu.fault(GVA, READ);
        let writing = thread::spawn(move || cpu.store(GVA, 0, 1));
        mmu.start_dirty_log();
        let copied = mmu.env().entry(DATA[0], 0).load(Relaxed);
        writing.join().unwrap();
        check(&mmu, copied);
    });
}
