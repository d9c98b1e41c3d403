//! CPUID of L2, and of L1's own user code (spec sections 7.1, 7.3).

use super::{Group, check};
use crate::{
    env::Env,
    holds,
    l0::{
        args::{self, List, With},
        lists,
    },
    l2::{
        code,
        guest::{Guest, control},
        layout, registers,
    },
    runtime::{cpu, ram, user},
    same, skip,
    tap::{Case, Verdict},
};
use pv_abi::l0::{
    Features, Op, Status,
    list::{CpuidLeaf, LeafFlags},
    page::offset,
    regs::{Gprs, Groups, gpr},
    run::RunControl,
};

pub const GROUP: Group = Group {
    name: "cpuid",
    checks: &[
        check("as_the_table_says", "L0-CPUID-3 L0-EXIT-6", as_the_table_says),
        check("subleaves", "L0-CPUID-2 L0-CPUID-3", subleaves),
        check("without_entry", "L0-CPUID-4", without_entry),
        check("at_cpl3", "L0-CPUID-3", at_cpl3),
        check("replaced", "L0-CPUID-1 L0-LIST-3", replaced),
        check("full_table", "L0-CPUID-1 L0-LIST-6", full_table),
        check("bad_entries", "L0-CPUID-2 L0-LIST-3", bad_entries),
        check("of_each_vcpu", "L0-CPUID-1", of_each_vcpu),
        check("empty_table", "L0-LIST-5 L0-CPUID-4", empty_table),
        check("follows_the_state", "L0-CPUID-3", follows_the_state),
        check("no_exit", "L0-EXIT-6 L0-CPUID-3", no_exit),
        check("tables_of_user_code", "L0-ACT-1 L0-ACT-2 L0-ACT-3 L0-ACT-4", tables_of_user_code),
        check("refused_tables_of_user_code", "L0-ACT-1", refused_tables_of_user_code),
    ],
};

/// An entry for all subleaves.
const fn leaf(leaf: u32, answer: [u32; 4]) -> CpuidLeaf {
    CpuidLeaf { leaf, subleaf: 0, flags: 0, reserved: 0, answer }
}

/// An entry for one subleaf.
const fn subleaf(leaf: u32, subleaf: u32, answer: [u32; 4]) -> CpuidLeaf {
    CpuidLeaf { leaf, subleaf, flags: LeafFlags::SUBLEAF.bits(), reserved: 0, answer }
}

/// What a program of vCPU 0 finds.
fn asks(guest: &Guest, leaf: u32, subleaf: u32) -> Verdict<[u32; 4]> {
    let set = [(gpr::RAX, leaf.into()), (gpr::RCX, subleaf.into()), (gpr::RDI, layout::DATA)];
    guest.does(code::cpuids(), &set)?;
    Ok(ram::read(guest.at(layout::DATA)))
}

fn set_table(guest: &Guest, vcpu: u32, table: &[CpuidLeaf]) -> Verdict {
    guest.l0.ok(Op::SetCpuid, &args::vcpu(guest.vm, vcpu).list(lists::of(table)))?;
    Ok(())
}

/// Values that no CPU gives, for leaves that every CPU has, and some that none has.
const ODD: [CpuidLeaf; 7] = [
    leaf(0, [0x16, 0x6f6f_5274, 0x6c2d_7473, 0x304c_2032]),
    leaf(2, [0x1111_1111, 0x2222_2222, 0x3333_3333, 0x4444_4444]),
    leaf(3, [5, 6, 7, 8]),
    leaf(0x16, [9, 10, 11, 12]),
    leaf(0x4000_0000, [0x4000_0001, 0x1234_5678, 0x9abc_def0, 0x0fed_cba9]),
    leaf(0x4000_0001, [0xffff_ffff, 0, 1, 2]),
    leaf(0x8000_0000, [0x8000_0002, 0xa, 0xb, 0xc]),
];

fn as_the_table_says(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    let mut table = env.cpuid_table(0);
    table.retain(|entry| ODD.iter().all(|odd| odd.leaf != entry.leaf));
    table.try_extend_from_slice(&ODD).map_err(|_| crate::tap::Wrong::new(format_args!("room")))?;
    set_table(&guest, 0, &table)?;
    for odd in ODD {
        same!(asks(&guest, odd.leaf, 0)?, odd.answer, "leaf {:#x}", odd.leaf);
        same!(asks(&guest, odd.leaf, 7)?, odd.answer, "leaf {:#x}, subleaf 7", odd.leaf);
        holds!(
            cpu::cpuid(odd.leaf, 0) != odd.answer,
            "L1 itself sees the answer of leaf {:#x}",
            odd.leaf
        );
    }
    Ok(())
}

fn subleaves(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    let mut table = env.cpuid_table(0);
    table.retain(|entry| entry.leaf != 4 && entry.leaf != 0xb);
    for number in 0..3 {
        table.push(subleaf(4, number, [100 + number, 1, 2, 3]));
    }
    table.push(subleaf(0xb, 1, [7, 7, 7, 7]));
    set_table(&guest, 0, &table)?;
    for number in 0..3 {
        same!(asks(&guest, 4, number)?, [100 + number, 1, 2, 3], "leaf 4, subleaf {number}");
    }
    same!(asks(&guest, 4, 3)?, [0; 4], "leaf 4, subleaf 3");
    same!(asks(&guest, 0xb, 1)?, [7; 4], "leaf 0xb, subleaf 1");
    // For this leaf, CPUs give ECX and EDX whatever the subleaf, and stock KVM does so too.
    let found = asks(&guest, 0xb, 2)?;
    holds!(found == [0; 4] || found == [0, 0, 2, 7], "leaf 0xb, subleaf 2: {found:x?}");
    Ok(())
}

fn without_entry(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    let table = [leaf(0, [4, 1, 2, 3]), leaf(2, [9; 4])];
    set_table(&guest, 0, &table)?;
    for question in [1, 3, 4] {
        let [a, b, c, d] = asks_32(&guest, question)?;
        // Leaf 1 has bits that follow the CPU's state.
        let state = if question == 1 { (c & 1 << 27, d & 1 << 9) } else { (0, 0) };
        same!([a, b, c & !state.0, d & !state.1], [0; 4], "leaf {question:#x}");
    }
    for question in [0x4000_0000, 0x8000_0000, 0x8000_0001, 0xc000_0000, 5, 0xd, u32::MAX] {
        let found = asks_32(&guest, question)?;
        // Above the highest basic leaf, as that one; it has no entry either.
        holds!(found == [0; 4], "leaf {question:#x} gives {found:x?}");
    }
    Ok(())
}

/// As `asks`, by 32-bit code, which no table need offer.
fn asks_32(guest: &Guest, leaf: u32) -> Verdict<[u32; 4]> {
    let set = [(gpr::RAX, leaf.into()), (gpr::RDI, layout::DATA)];
    guest.start_in(0, code::cpuids(), &registers::general(0, &set), &registers::protected())?;
    guest.done()?;
    Ok(ram::read(guest.at(layout::DATA)))
}

fn at_cpl3(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    let mut table = env.cpuid_table(0);
    table.push(leaf(0x4000_0000, [1, 2, 3, 4]));
    set_table(&guest, 0, &table)?;
    let set = [(gpr::RAX, 0x4000_0000), (gpr::RDI, layout::DATA)];
    let general = registers::general(0, &set);
    let general = Gprs { rflags: registers::FLAGS | registers::IOPL_3, ..general };
    guest.start_in(0, code::cpuids(), &general, &registers::user())?;
    guest.done()?;
    same!(ram::read::<[u32; 4]>(guest.at(layout::DATA)), [1, 2, 3, 4], "the answer at CPL3");
    Ok(())
}

/// The last table before the first RUN counts, whole.
fn replaced(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    let mut table = env.cpuid_table(0);
    table.push(leaf(0x4000_0000, [1; 4]));
    table.push(leaf(0x4000_0001, [1; 4]));
    set_table(&guest, 0, &table)?;
    table.truncate(table.len() - 2);
    table.push(leaf(0x4000_0000, [2; 4]));
    set_table(&guest, 0, &table)?;
    // One that is refused changes nothing.
    let bad = [leaf(0x4000_0000, [3; 4]), leaf(0x4000_0000, [4; 4])];
    let with = args::vcpu(0, 0).list(lists::of(&bad));
    env.l0.fails_at(1, Status::BadArg, Op::SetCpuid, &with)?;
    same!(asks(&guest, 0x4000_0000, 0)?, [2; 4], "a leaf of both tables");
    same!(asks(&guest, 0x4000_0001, 0)?, [0; 4], "a leaf of the first table");
    let with = args::vcpu(0, 0).list(lists::of(&table));
    env.l0.refuses(Status::Sealed, Op::SetCpuid, &with)?;
    same!(asks(&guest, 0x4000_0000, 0)?, [2; 4], "after a SET_CPUID that came too late");
    Ok(())
}

/// As many entries as the limit says (1024 are tried at most).
fn full_table(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    let base = env.cpuid_table(0);
    let most = env.info.limits.cpuid_leaves.min(1024);
    let list = lists::made(most, |index| {
        let own = base.get(index as usize).copied();
        own.unwrap_or(leaf(0x4000_0000 + index, [index; 4]))
    });
    env.l0.ok(Op::SetCpuid, &args::vcpu(0, 0).list(list)).case(format_args!("{most} entries"))?;
    for index in [base.len() as u32, most / 2 + 16, most - 1] {
        same!(asks(&guest, 0x4000_0000 + index, 0)?, [index; 4], "entry {index}");
    }
    Ok(())
}

fn bad_entries(env: &mut Env<'_>) -> Verdict {
    Guest::new(env)?;
    let good = leaf(0x4000_0000, [1; 4]);
    let one = subleaf(0x4000_0001, 3, [1; 4]);
    let cases = [
        ("the same leaf again", good),
        ("a subleaf of a leaf with one answer", subleaf(0x4000_0000, 0, [1; 4])),
        ("the same subleaf again", one),
        ("one answer for a leaf with subleaves", leaf(0x4000_0001, [1; 4])),
        ("flag 1", CpuidLeaf { flags: 2, ..leaf(5, [1; 4]) }),
        ("flag 31", CpuidLeaf { flags: 1 << 31, ..leaf(5, [1; 4]) }),
        ("a subleaf without its flag", CpuidLeaf { subleaf: 1, ..leaf(5, [1; 4]) }),
        ("the reserved word", CpuidLeaf { reserved: 1, ..leaf(5, [1; 4]) }),
    ];
    for (name, bad) in cases {
        let with = args::vcpu(0, 0).list(lists::of(&[good, one, bad]));
        env.l0.fails_at(2, Status::BadArg, Op::SetCpuid, &with).case(format_args!("{name}"))?;
    }
    Ok(())
}

fn of_each_vcpu(env: &mut Env<'_>) -> Verdict {
    if env.info.limits.vcpus < 2 {
        return skip!("one vCPU at most");
    }
    let guest = Guest::new(env)?;
    guest.add_vcpu(env, 1)?;
    for vcpu in 0..2 {
        let mut table = env.cpuid_table(vcpu);
        table.push(leaf(0x4000_0000, [50 + vcpu; 4]));
        set_table(&guest, vcpu, &table)?;
        let set = [(gpr::RAX, 0x4000_0000), (gpr::RDI, layout::DATA + 64 * u64::from(vcpu))];
        guest.start(vcpu, code::cpuids(), &set)?;
    }
    for _ in 0..2 {
        for vcpu in [1, 0] {
            let at = guest.at(layout::DATA) + 64 * u64::from(vcpu);
            ram::store(at, 0);
            guest.start(
                vcpu,
                code::cpuids(),
                &[(gpr::RAX, 0x4000_0000), (gpr::RDI, layout::DATA + 64 * u64::from(vcpu))],
            )?;
            let (exit, _) = guest.exit_of(&guest.l0, vcpu, &control())?;
            guest.said(exit)?;
            same!(ram::read::<[u32; 4]>(at), [50 + vcpu; 4], "what vCPU {vcpu} sees");
        }
    }
    Ok(())
}

fn empty_table(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    let list = List { address: ram::pages(1), count: 0 };
    env.l0.ok(Op::SetCpuid, &args::vcpu(0, 0).list(list))?;
    for question in [0, 4, 7, 0x4000_0000, 0x8000_0000] {
        let [a, b, c, d] = asks_32(&guest, question)?;
        let c = if question == 7 { c & !(1 << 4) } else { c };
        same!([a, b, c, d], [0; 4], "leaf {question:#x}");
    }
    Ok(())
}

/// OSXSAVE of leaf 1 follows CR4, whatever the table says.
fn follows_the_state(env: &mut Env<'_>) -> Verdict {
    const XSAVE: u32 = 1 << 26;
    const OSXSAVE: u32 = 1 << 27;
    const CR4_OSXSAVE: u64 = 1 << 18;
    if cpu::cpuid(1, 0)[2] & XSAVE == 0 {
        return skip!("L1 has no XSAVE");
    }
    let guest = Guest::new(env)?;
    let mut table = env.cpuid_table(0);
    table.iter_mut().filter(|entry| entry.leaf == 1).for_each(|entry| entry.answer[2] |= OSXSAVE);
    set_table(&guest, 0, &table)?;
    for on in [false, true, false] {
        let mut special = registers::long();
        special.cr4 |= if on { CR4_OSXSAVE } else { 0 };
        let set = [(gpr::RAX, 1), (gpr::RDI, layout::DATA)];
        guest.start_in(0, code::cpuids(), &registers::general(0, &set), &special)?;
        guest.done()?;
        let ecx = ram::read::<[u32; 4]>(guest.at(layout::DATA))[2];
        same!(ecx & OSXSAVE != 0, on, "OSXSAVE of leaf 1 when CR4's bit is {on}");
    }
    Ok(())
}

/// 1,000 CPUIDs and the end of the program: one RUN, one exit.
fn no_exit(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    guest.does(code::cpuid_loop(), &[(gpr::RCX, 1000), (8, 1)])?;
    let (exit, _) = {
        guest.start(0, code::cpuid_loop(), &[(gpr::RCX, 1000), (8, 0x8000_0000)])?;
        guest.exit(&RunControl { read: Groups::GPRS.bits(), ..control() })?
    };
    guest.said(exit)?;
    same!(env.l0.get::<Gprs>(offset::GPRS).gpr[9], 0, "CPUIDs that were left at the exit");
    Ok(())
}

const CPUID: [u8; 2] = [0x0f, 0xa2];

fn user_cpuid(question: u32) -> Verdict<[u32; 4]> {
    let left = user::execute(&CPUID, question, 0);
    same!(left.vector, 3, "the vector behind CPUID at CPL3");
    Ok(left.registers.map(|register| register as u32))
}

fn tables_of_user_code(env: &mut Env<'_>) -> Verdict {
    env.needs(Features::ACTIVE_CPUID_TABLE, "ACTIVE_CPUID_TABLE")?;
    let define =
        |id: u64, list| env.l0.ok(Op::DefineCpuidTable, &args::none().arg(0, id).list(list));
    let active = |id: u32| env.l0.put(offset::ACTIVE_CPUID_TABLE, &id);
    let question = 0x4000_0000;
    let native = cpu::cpuid(question, 0);
    define(1, lists::of(&[leaf(question, [11; 4])]))?;
    same!(user_cpuid(question)?, native, "before a table is active");
    active(1);
    same!(user_cpuid(question)?, [11; 4], "with table 1");
    same!(user_cpuid(3)?, [0; 4], "a leaf that the table lacks");
    same!(cpu::cpuid(question, 0), native, "at CPL0");
    if env.info.limits.cpuid_tables > 1 {
        define(2, lists::of(&[leaf(question, [22; 4])]))?;
        active(2);
        same!(user_cpuid(question)?, [22; 4], "with table 2");
        active(1);
        same!(user_cpuid(question)?, [11; 4], "with table 1 again");
    }
    define(1, lists::of(&[leaf(question, [33; 4])]))?;
    same!(user_cpuid(question)?, [33; 4], "with the new table 1");
    define(1, List { address: ram::pages(1), count: 0 })?;
    same!(user_cpuid(question)?, native, "with a table that is gone");
    active(0);
    Ok(())
}

fn refused_tables_of_user_code(env: &mut Env<'_>) -> Verdict {
    env.needs(Features::ACTIVE_CPUID_TABLE, "ACTIVE_CPUID_TABLE")?;
    let list = lists::of(&[leaf(0, [1; 4])]);
    let with = |id: u64| args::none().arg(0, id).list(list);
    let limit = u64::from(env.info.limits.cpuid_tables);
    env.l0.refuses(Status::BadArg, Op::DefineCpuidTable, &with(0))?;
    for id in [limit + 1, u64::MAX, 1 << 32 | 1] {
        env.l0.refuses(Status::Limit, Op::DefineCpuidTable, &with(id))?;
    }
    let twice = lists::of(&[leaf(0, [1; 4]), leaf(0, [1; 4])]);
    env.l0.fails_at(
        1,
        Status::BadArg,
        Op::DefineCpuidTable,
        &args::none().arg(0, 1).list(twice),
    )?;
    Ok(())
}
