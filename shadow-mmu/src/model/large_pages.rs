//! Large pages: one entry where that is possible, small ones where it is not.

use super::{
    machine::{LARGE, LEVEL1, LEVEL2, Machine},
    world::BLOCK,
};
use crate::{
    fault::Access,
    page::Role,
    pte::{A, D, P, PS, U, W},
};
use pv_abi::addr::{Gfn, Gva};

const READ: Access = Access::USER;
const WRITE: Access = Access::WRITE.union(Access::USER);
const LINK: u64 = P | W | U | A;

fn touch_all(machine: &mut Machine, access: Access) {
    for page in [0, 3, 100, 511] {
        let gva = Gva(LARGE + 4096 * page);
        machine.watch(gva);
        assert_eq!(machine.access(gva, access), Some(Gfn(BLOCK + page)));
    }
}

/// Large pages that are taken apart.
fn taken_apart(machine: &Machine) -> usize {
    machine.live_pages().filter(|page| page.role().contains(Role::DIRECT)).count()
}

#[test]
fn a_large_page_is_one_entry() {
    let mut machine = Machine::new(64, false, false);
    let before = machine.vcpu.stats.fills;
    touch_all(&mut machine, WRITE);
    assert_eq!(machine.vcpu.stats.large_fills, 1);
    assert_eq!((machine.vcpu.stats.fills, taken_apart(&machine)), (before, 0));
    machine.check_structures();
}

#[test]
fn a_table_inside_takes_it_apart_until_it_is_gone() {
    let mut machine = Machine::new(64, false, false);
    touch_all(&mut machine, WRITE);
    // Frame 3 of the block becomes the leaf table of entry 1.
    let table = Gfn(BLOCK + 3);
    machine.mmu.env().store(table.gpa(), 33 << 12 | LINK);
    machine.kernel_store(LEVEL2[0].gpa().offset(8), table.gpa().0 | LINK);
    machine.flush();
    let fills = machine.vcpu.stats.fills;
    assert_eq!(machine.access(Gva(0x20_0000), READ), Some(Gfn(33)));
    // One of these writes is to the table.
    touch_all(&mut machine, WRITE);
    assert_eq!(taken_apart(&machine), 1);
    assert!(machine.vcpu.stats.fills > fills + 3);
    assert_eq!(machine.vcpu.stats.large_fills, 1);
    machine.check_structures();

    // The table goes; the next fault puts the page together.
    machine.kernel_store(LEVEL2[0].gpa().offset(8), LEVEL1[1].gpa().0 | LINK);
    machine.flush();
    let gva = Gva(LARGE + 0x9000);
    machine.watch(gva);
    assert_eq!(machine.access(gva, READ), Some(Gfn(BLOCK + 9)));
    assert_eq!((machine.vcpu.stats.large_fills, taken_apart(&machine)), (2, 0));
    touch_all(&mut machine, WRITE);
    machine.check_structures();
}

/// The D bit of the one guest entry counts: until it is set, a first write must fault.
#[test]
fn a_clean_large_page_is_not_writable() {
    let mut machine = Machine::new(64, false, false);
    machine.kernel_store(LEVEL2[0].gpa().offset(16), BLOCK << 12 | P | W | U | A | PS);
    machine.flush();
    touch_all(&mut machine, READ);
    let mapped = machine.vcpu.stats.mapped;
    touch_all(&mut machine, WRITE);
    assert!(machine.vcpu.stats.mapped > mapped);
    assert_eq!(machine.load(LEVEL2[0].gpa().offset(16)) & D, D);
    assert_eq!(taken_apart(&machine), 0);
}
