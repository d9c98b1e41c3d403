//! Every combination of entry bits, access and mode, one by one, against the oracle.

use super::machine::{LEVEL1, LEVEL2, LEVEL3, Machine, ROOTS};
use crate::{
    fault::Access,
    pte::{A, D, NX, P, U, W},
};
use pv_abi::addr::Gva;

/// Bits of the leaf entry that are tried in all combinations.
const LEAF: [u64; 7] = [P, W, U, A, D, NX, 1 << 51];
/// Bits of the entry above it.
const ABOVE: [u64; 4] = [W, U, A, NX];

fn combine(bits: &[u64], choice: usize) -> u64 {
    bits.iter().enumerate().filter(|&(n, _)| choice >> n & 1 == 1).map(|(_, bit)| bit).sum()
}

fn accesses() -> impl Iterator<Item = Access> {
    [Access::READ, Access::WRITE, Access::FETCH]
        .into_iter()
        .flat_map(|access| [access, access | Access::USER])
}

/// For each table state a fresh machine; for each access, in both orders of a pair, the outcome
/// is judged by [`Machine::access`] and the A and D bits by what the hardware would have set.
fn sweep(smep: bool, level: u8) {
    for above in 0..1 << ABOVE.len() {
        for leaf in 0..1 << LEAF.len() {
            for first in accesses() {
                let mut machine = Machine::new(24, false, smep);
                let above = combine(&ABOVE, above) | P;
                let (table, child) = match level {
                    2 => (LEVEL2[0], LEVEL1[0]),
                    3 => (LEVEL3[0], LEVEL2[0]),
                    _ => (ROOTS[0], LEVEL3[0]),
                };
                machine.kernel_store(table.gpa(), child.gpa().0 | above);
                machine.kernel_store(LEVEL1[0].gpa(), 33 << 12 | combine(&LEAF, leaf));
                machine.flush();
                for access in [first, first ^ Access::USER] {
                    machine.access(Gva(0), access);
                    machine.access(Gva(0), access);
                }
                machine.check_structures();
            }
        }
    }
}

#[test]
fn leaf_bits_under_every_directory_entry() {
    sweep(false, 2);
}

#[test]
fn leaf_bits_under_every_root_entry_with_smep() {
    sweep(true, 4);
}
