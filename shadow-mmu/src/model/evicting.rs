//! What goes when shadow pages run out, and what stays.

use super::machine::{LEVEL1, Machine};
use crate::{
    fault::Access,
    pte::{A, D, P, U, W},
};
use pv_abi::addr::{Gfn, Gva};

const READ: Access = Access::USER;

/// Maps two pages whose leaf tables are different, and uses both.
fn machine() -> Machine {
    let mut machine = Machine::new(64, false, false);
    for (table, frame) in [(LEVEL1[0], 33), (LEVEL1[1], 34)] {
        machine.kernel_store(table.gpa(), frame << 12 | P | W | U | A | D);
        machine.kernel_store(table.gpa().offset(8), frame << 12 | P | W | U | A | D);
    }
    assert_eq!(machine.access(Gva(0), READ), Some(Gfn(33)));
    assert_eq!(machine.access(Gva(0x20_0000), READ), Some(Gfn(34)));
    machine
}

#[test]
fn a_table_in_use_gets_a_second_chance() {
    for kept in [Gva(0), Gva(0x20_0000)] {
        let mut machine = machine();
        for page in machine.live_pages() {
            machine.mmu.used_lately(page);
        }
        machine.flush();
        assert!(machine.access(kept, READ).is_some());
        let (before, mapped) = (machine.live_pages().count(), machine.vcpu.stats.mapped);
        machine.mmu.shrink();
        machine.flush_requests();
        assert!(machine.live_pages().count() < before, "something goes");
        assert!(machine.access(kept, READ).is_some());
        assert_eq!(machine.vcpu.stats.mapped, mapped, "{kept:?} is mapped still");
        machine.check_structures();
    }
}

/// However often the hardware uses everything, pages become free.
#[test]
fn room_is_made_in_any_case() {
    let mut machine = machine();
    for _ in 0..20 {
        assert!(machine.access(Gva(0), READ).is_some());
        assert!(machine.access(Gva(0x20_0000), READ).is_some());
        let before = machine.live_pages().count();
        machine.mmu.shrink();
        machine.flush_requests();
        assert!(machine.live_pages().count() < before);
    }
    machine.check_structures();
}
