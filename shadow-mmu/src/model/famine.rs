//! Allocations fail, one by one and at random, and everything stays right.

use super::{
    machine::Machine,
    random::{Op, check_on, op},
};
use crate::{
    failing::{Failures, Supply},
    fault::Access,
    pte::{A, D, P, U, W},
};
use proptest::prelude::*;
use std::vec;

const SUPPLIES: [Supply; 2] = [Supply::Pages, Supply::Chunks];

/// Runs `ops` with failures; how many allocations there were.
fn check(ops: &[Op], notes: bool, supply: Supply, failures: Failures) -> u64 {
    let mut machine = Machine::new(64, notes, false);
    machine.mmu.fail(supply, failures);
    check_on(&mut machine, ops, notes);
    machine.mmu.allocations(supply)
}

/// Steps that map two frames at many places, so that references need chunks, among all others.
fn step() -> impl Strategy<Value = Op> {
    let index = prop::sample::select(vec![0usize, 1, 2, 3, 5, 511]);
    let frame = 32u64..34;
    prop_oneof![
        2 => op(),
        3 => (0..4usize, index, frame, any::<bool>()).prop_map(|(table, index, frame, noted)| {
            Op::Leaf { table, index, value: frame << 12 | P | W | U | A | D, noted }
        }),
        2 => (0..12usize, any::<bool>()).prop_map(|(address, write)| {
            let access = if write { Access::WRITE } else { Access::READ };
            Op::Access { address, access: access | Access::USER }
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn any_one_allocation_may_fail(
        ops in prop::collection::vec(step(), 1..200), notes in any::<bool>(),
    ) {
        for supply in SUPPLIES {
            let allocations = check(&ops, notes, supply, Failures::Never);
            for number in 1..=allocations {
                check(&ops, notes, supply, Failures::Only(number));
            }
        }
    }

    #[test]
    fn many_allocations_may_fail(
        ops in prop::collection::vec(step(), 1..200), notes in any::<bool>(), one_in in 2u32..8,
    ) {
        for supply in SUPPLIES {
            check(&ops, notes, supply, Failures::OneIn(one_in));
        }
    }
}
