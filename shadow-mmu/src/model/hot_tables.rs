//! Tables that are watched by D bits, and tables that are protected.

use super::machine::{LEVEL1, Machine};
use crate::{
    fault::Access,
    pte::{A, D, P, U, W},
};
use pv_abi::addr::{Gfn, Gva};

const FRAME: u64 = P | W | U | A | D;

/// What was written before a table is protected is found by the last look at it; what is written
/// afterwards faults, whatever a TLB has cached of the time before.
#[test]
fn a_table_that_cools_down_misses_no_store() {
    let read = Access::USER;
    let mut machine = Machine::new(64, false, false);
    let table = LEVEL1[0];
    machine.kernel_store(table.gpa().offset(8), 33 << 12 | FRAME);
    assert_eq!(machine.access(Gva(0x1000), read), Some(Gfn(33)));
    // The TLB holds the table, writable and dirty.
    machine.kernel_store(table.gpa().offset(8), 34 << 12 | FRAME);
    let before = machine.vcpu.stats.unprotected;
    machine.mmu.cool(table);
    machine.flush_requests();
    assert!(machine.mmu.protected.get(table));
    machine.kernel_store(table.gpa().offset(8), 35 << 12 | FRAME);
    assert_eq!(machine.vcpu.stats.unprotected, before + 1);
    machine.flush();
    assert_eq!(machine.access(Gva(0x1000), read), Some(Gfn(35)));
    machine.check_structures();
}
