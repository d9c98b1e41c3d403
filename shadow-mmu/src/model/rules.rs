//! Single rules, each with the shortest program that would break it.

use super::machine::{LEVEL1, LEVEL2, LEVEL3, Machine, ROOTS};
use crate::{
    fault::{Access, Next, Outcome},
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

/// What a prefault and a look say of a page is what the guest's table has.
#[test]
fn absent_pages_are_told() {
    let mut machine = Machine::new(64, true, false);
    let entry = |frame: u64| frame << 12 | P | U | A;
    let page = |index: u64| Gva(index << 12);
    machine.noted_store(LEVEL1[0].gpa(), entry(33));
    machine.noted_store(LEVEL1[0].gpa().offset(8 * 2), entry(35));
    // The first time tables are missing, and the walk goes another way.
    assert_eq!(machine.mmu.prefault(&mut machine.vcpu, page(0), READ).1, Next::Unknown);
    let mut prefault = |index| machine.mmu.prefault(&mut machine.vcpu, page(index), READ);
    assert_eq!(prefault(0), (Outcome::Mapped, Next::Absent));
    assert_eq!(prefault(2), (Outcome::Mapped, Next::Absent));
    assert_eq!(prefault(1), (Outcome::Reflect(READ.bits()), Next::Unknown));
    let absent = |machine: &Machine, index| machine.mmu.is_absent(&machine.vcpu, page(index));
    assert_eq!([0, 1, 2, 3].map(|index| absent(&machine, index)), [false, true, false, true]);
    machine.noted_store(LEVEL1[0].gpa().offset(8), entry(34));
    assert!(!absent(&machine, 1));
    assert_eq!(machine.mmu.prefault(&mut machine.vcpu, page(0), READ).1, Next::Unknown);
    assert!(!machine.mmu.is_absent(&machine.vcpu, Gva(1 << 30)), "no table is there");
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

/// A note gives what the guest's store gives: the access that it was for does not fault.
#[test]
fn a_note_gives_what_the_store_gives() {
    let mut machine = Machine::new(64, true, false);
    let entry = 33 << 12 | P | U | A | D;
    machine.noted_store(LEVEL1[0].gpa(), entry);
    assert_eq!(machine.access(Gva(0), READ), Some(Gfn(33)));
    let faults = machine.vcpu.stats.mapped;
    machine.noted_store(LEVEL1[0].gpa(), entry | W);
    machine.flush_address(Gva(0));
    assert_eq!(machine.access(Gva(0), WRITE), Some(Gfn(33)));
    assert_eq!(machine.vcpu.stats.mapped, faults, "faults");
    machine.check_structures();
}

/// The same store where the guest's D is clear: the write has to fault, so that D is set (rule I5).
#[test]
fn a_note_gives_no_write_to_a_clean_page() {
    let mut machine = Machine::new(64, true, false);
    let entry = 33 << 12 | P | U | A;
    machine.noted_store(LEVEL1[0].gpa(), entry);
    assert_eq!(machine.access(Gva(0), READ), Some(Gfn(33)));
    let faults = machine.vcpu.stats.mapped;
    machine.noted_store(LEVEL1[0].gpa(), entry | W);
    machine.flush_address(Gva(0));
    assert_eq!(machine.access(Gva(0), WRITE), Some(Gfn(33)));
    assert_eq!(machine.vcpu.stats.mapped, faults + 1, "faults");
    assert_eq!(machine.load(LEVEL1[0].gpa()) & D, D);
}

/// Rule F6, where the flush follows a note: of the noted entry, and of another.
#[test]
fn a_flush_behind_a_note_holds() {
    let mut machine = Machine::new(64, true, false);
    let [noted, other] = [LEVEL1[0].gpa(), LEVEL1[0].gpa().offset(8)];
    let entry = 33 << 12 | P | W | U | A | D;
    machine.noted_store(noted, entry);
    machine.noted_store(other, entry);
    assert_eq!(machine.access(Gva(0), WRITE), Some(Gfn(33)));
    assert_eq!(machine.access(Gva(0x1000), WRITE), Some(Gfn(33)));
    machine.kernel_store(other, 0);
    machine.noted_store(noted, entry & !W);
    machine.flush_address(Gva(0x1000));
    assert_eq!(machine.access(Gva(0x1000), READ), None);
    machine.noted_store(noted, entry);
    machine.noted_store(noted, entry & !W);
    machine.flush_address(Gva(0));
    assert_eq!(machine.access(Gva(0), WRITE), None);
    machine.check_structures();
}
