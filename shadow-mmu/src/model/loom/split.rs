//! Large pages against the tables that come to lie in them.

use super::{
    machine::{Cpu, LINK, PAGE, READ, address, entry, explore, vm_with_block},
    world::{BLOCK, DATA, LEVEL2},
};
use crate::pte::PS;
use loom::thread;

/// A fault that maps a large page against one that shadows a table in it.
///
/// Fails if `add_table` removes the large entries before it counts the table, or if
/// `permitted` does not look at the count again.
#[test]
fn a_block_with_a_table_is_not_mapped_large() {
    explore(1, || {
        let mmu = vm_with_block(10);
        mmu.env().store(LEVEL2, 0, entry(BLOCK, LINK));
        mmu.env().store(LEVEL2, 1, entry(BLOCK, PAGE | PS));
        mmu.env().store(BLOCK, 0, entry(DATA[0], PAGE));
        let (mut first, mut second) = (Cpu::new(&mmu, 0), Cpu::new(&mmu, 1));
        let faulting = thread::spawn(move || second.fault(address(1, 0), READ));
        first.fault(address(0, 0), READ);
        faulting.join().unwrap();
        let large = mmu.blocks.mappings(2, BLOCK).lock(&mmu.chunks);
        assert!(large.is_empty(), "a large entry maps a table");
    });
}
