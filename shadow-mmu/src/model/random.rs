//! Random programs against the oracle.

use super::{
    machine::{LEVEL1, LEVEL2, LEVEL3, Machine, ROOTS},
    world::BLOCK,
};
use crate::{
    fault::Access,
    pte::{A, D, NX, P, PS, U, W},
};
use proptest::prelude::*;
use pv_abi::addr::{Gfn, Gva};
use std::{vec, vec::Vec};

#[derive(Clone, Debug)]
pub enum Op {
    Access {
        address: usize,
        access: Access,
    },
    /// Store to a leaf table: by the kernel itself, or by the shim.
    Leaf {
        table: usize,
        index: usize,
        value: u64,
        noted: bool,
    },
    Upper {
        level2: bool,
        table: usize,
        index: usize,
        value: u64,
    },
    Root {
        root: usize,
        slot: usize,
        value: u64,
    },
    Load {
        root: usize,
    },
    Flush,
    FlushAddress {
        address: usize,
    },
    Unpin {
        root: usize,
    },
    ForgetTable {
        table: usize,
    },
    ZapFrame {
        frame: u64,
    },
    NotesLost,
    Shrink,
    StartLog,
    StopLog,
    TakeLog,
}

fn access() -> impl Strategy<Value = Access> {
    let kind = prop_oneof![Just(Access::READ), Just(Access::WRITE), Just(Access::FETCH)];
    (kind, any::<bool>()).prop_map(|(kind, user)| if user { kind | Access::USER } else { kind })
}

/// Entries that are mostly sensible: data frames, tables, holes, MMIO, reserved bits.
fn entry(targets: Vec<u64>) -> impl Strategy<Value = u64> {
    let flags = (any::<[bool; 6]>()).prop_map(|[p, w, u, a, d, nx]| {
        let bit = |on, bit| if on { bit } else { 0 };
        // Present, accessed and user more often than not.
        bit(p || w, P) | bit(w, W) | bit(u || nx, U) | bit(a || d, A) | bit(d, D) | bit(nx, NX)
    });
    let target = prop_oneof![
        12 => prop::sample::select(targets),
        1 => Just(63u64),
        1 => Just(1 << 20),
        1 => Just(1 << 30),
    ];
    let small = (flags.clone(), target, prop::bool::weighted(0.06))
        .prop_map(|(flags, target, large)| flags | target << 12 | if large { PS } else { 0 });
    let large = flags.prop_map(|flags| flags | BLOCK << 12 | PS);
    prop_oneof![5 => small, 1 => large]
}

pub fn op() -> impl Strategy<Value = Op> {
    let data: Vec<u64> = (32..40).chain([8, 9, 12, 15, BLOCK + 3]).collect();
    let tables: Vec<u64> = LEVEL1
        .iter()
        .chain(&LEVEL2)
        .chain(&LEVEL3)
        .map(|gfn| gfn.0)
        .chain([32, 0, BLOCK + 3])
        .collect();
    let index = prop::sample::select(vec![0usize, 1, 2, 3, 5, 511]);
    prop_oneof![
        12 => (0..20usize, access()).prop_map(|(address, access)| Op::Access { address, access }),
        8 => (0..4usize, index.clone(), entry(data), any::<bool>())
            .prop_map(|(table, index, value, noted)| Op::Leaf { table, index, value, noted }),
        2 => (any::<bool>(), 0..3usize, index, entry(tables.clone()))
            .prop_map(|(level2, table, index, value)| Op::Upper { level2, table, index, value }),
        1 => (0..2usize, prop::sample::select(vec![0usize, 1, 402]), entry(tables))
            .prop_map(|(root, slot, value)| Op::Root { root, slot, value }),
        3 => (0..2usize).prop_map(|root| Op::Load { root }),
        3 => Just(Op::Flush),
        4 => (0..20usize).prop_map(|address| Op::FlushAddress { address }),
        1 => (0..2usize).prop_map(|root| Op::Unpin { root }),
        1 => (0..10usize).prop_map(|table| Op::ForgetTable { table }),
        1 => (0..66u64).prop_map(|frame| if frame < 64 { frame } else { frame + BLOCK - 62 }).prop_map(|frame| Op::ZapFrame { frame }),
        1 => Just(Op::NotesLost),
        1 => Just(Op::Shrink),
        1 => Just(Op::StartLog),
        1 => Just(Op::StopLog),
        3 => Just(Op::TakeLog),
    ]
}

fn run(machine: &mut Machine, notes: bool, op: &Op) {
    // Mostly the addresses the tables are about; sometimes the direct map of some table.
    let address = |index: usize| machine.addresses[index];
    match *op {
        Op::Access { address: index, access } => {
            let gva = address(index);
            machine.access(gva, access);
        }
        Op::Leaf { table, index, value, noted } => {
            let at = LEVEL1[table].gpa().offset(8 * index as u64);
            if noted && notes {
                machine.noted_store(at, value);
            } else {
                machine.kernel_store(at, value);
            }
        }
        Op::Upper { level2, table, index, value } => {
            let gfn = if level2 { LEVEL2[table] } else { LEVEL3[table] };
            store_upper(machine, notes, gfn, index, value);
        }
        Op::Root { root, slot, value } => store_upper(machine, notes, ROOTS[root], slot, value),
        Op::Load { root } => machine.load_root(ROOTS[root]),
        Op::Flush => machine.flush(),
        Op::FlushAddress { address: index } => {
            let gva = address(index);
            machine.flush_address(gva);
        }
        Op::Unpin { root } if notes => {
            machine.mmu.unpin_root(ROOTS[root]);
            machine.mmu.pin_root(ROOTS[root]).unwrap();
        }
        Op::ForgetTable { table } if notes => {
            let all: Vec<Gfn> = LEVEL1.into_iter().chain(LEVEL2).chain(LEVEL3).collect();
            machine.mmu.forget_table(all[table]);
        }
        Op::NotesLost if notes => machine.mmu.notes_lost(),
        Op::Unpin { .. } | Op::ForgetTable { .. } | Op::NotesLost => {}
        Op::ZapFrame { frame } => machine.zap_frame(Gfn(frame)),
        Op::Shrink => machine.mmu.shrink(),
        Op::StartLog => machine.start_log(),
        Op::StopLog => machine.stop_log(),
        Op::TakeLog => machine.take_log(),
    }
}

fn store_upper(machine: &mut Machine, notes: bool, table: Gfn, index: usize, value: u64) {
    let at = table.gpa().offset(8 * index as u64);
    if notes {
        machine.noted_store(at, value);
    } else {
        machine.kernel_store(at, value);
    }
}

fn check(ops: &[Op], pool: u32, notes: bool, smep: bool) {
    check_on(&mut Machine::new(pool, notes, smep), ops, notes);
}

/// Runs `ops` on a fresh machine, and checks everything.
pub fn check_on(machine: &mut Machine, ops: &[Op], notes: bool) {
    for op in ops {
        run(machine, notes, op);
        machine.flush_requests();
    }
    machine.take_log();
    machine.check_structures();
    machine.flush();
    machine.check_structures();
}

proptest! {
    #[test]
    fn unsync_mode_never_maps_what_the_guest_does_not(
        ops in prop::collection::vec(op(), 1..120), smep in any::<bool>(),
    ) {
        check(&ops, 64, false, smep);
    }

    #[test]
    fn notes_mode_never_maps_what_the_guest_does_not(ops in prop::collection::vec(op(), 1..120)) {
        check(&ops, 64, true, false);
    }

    /// With hardly any pages every other fault has to shrink first.
    #[test]
    fn memory_pressure_changes_nothing(
        ops in prop::collection::vec(op(), 1..80), notes in any::<bool>(), pool in 12u32..16,
    ) {
        check(&ops, pool, notes, false);
    }
}

/// Rule I3: a leaf table with a store that no flush has covered yet is linked a second time. The
/// new address was never translated before, so it must see the store.
#[test]
fn a_found_table_is_compared_before_it_is_linked() {
    let read = Access::USER;
    let frame = |gfn: u64| gfn << 12 | P | W | U | A | D;
    let mut machine = Machine::new(64, false, false);
    machine.kernel_store(LEVEL1[0].gpa(), frame(33));
    machine.kernel_store(LEVEL1[0].gpa().offset(8), frame(34));
    assert_eq!(machine.access(Gva(0x1000), read), Some(Gfn(34)));
    machine.flush();
    machine.kernel_store(LEVEL1[0].gpa().offset(8), frame(35));
    // The second entry of the directory now leads to the same table.
    machine.kernel_store(LEVEL2[0].gpa().offset(8), LEVEL1[0].gpa().0 | P | W | U | A);
    assert_eq!(machine.access(Gva(0x20_0000), read), Some(Gfn(33)), "links the table");
    assert_eq!(machine.access(Gva(0x20_1000), read), Some(Gfn(35)), "needs no fault");
}

/// The addresses `run` uses by number are those the rewritten tables translate, then the first
/// few of the direct map.
#[test]
fn the_first_addresses_are_the_interesting_ones() {
    let machine = Machine::new(64, false, false);
    assert_eq!(machine.addresses[0], Gva(0));
    assert_eq!(machine.addresses[13], Gva(super::machine::DIRECT_MAP));
}
