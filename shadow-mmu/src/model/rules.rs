//! Single rules, each with the shortest program that would break it.

use super::machine::{LEVEL1, LEVEL2, LEVEL3, Machine, ROOTS};
use crate::{
    fault::Access,
    pte::{A, D, P, U, W},
};
use pv_abi::addr::{Gfn, Gva};

const READ: Access = Access::USER;
const WRITE: Access = Access::WRITE.union(Access::USER);

/// Rule I4: a write finds an entry that may not be written, and maps a frame that is none of the
/// guest's any more.
#[test]
fn an_entry_for_another_frame_goes_first() {
    let mut machine = Machine::new(64, false, false);
    machine.kernel_store(LEVEL1[0].gpa(), 33 << 12 | P | U | A);
    assert_eq!(machine.access(Gva(0), READ), Some(Gfn(33)));
    machine.kernel_store(LEVEL1[0].gpa(), 34 << 12 | P | W | U | A | D);
    assert_eq!(machine.access(Gva(0), WRITE), Some(Gfn(34)));
    machine.check_structures();
}

/// Rule N2: the guest may do as it likes with the tables of a root that it has unpinned.
#[test]
fn an_unpinned_root_gives_its_tables_back() {
    let mut machine = Machine::new(64, true, false);
    machine.noted_store(LEVEL1[0].gpa(), 33 << 12 | P | W | U | A | D);
    assert_eq!(machine.access(Gva(0), READ), Some(Gfn(33)));
    machine.mmu.unpin_root(ROOTS[0]);
    machine.flush_requests();
    for table in [LEVEL3[0], LEVEL2[0], LEVEL1[0]] {
        assert!(machine.live_pages().all(|page| page.gfn() != table), "{table:?} is shadowed");
    }
    machine.check_structures();
}
