//! The MSR policy: what each action does, what rules are refused (spec section 7.2).

use super::{Group, check};
use crate::{
    env::Env,
    l0::{
        args::{self, List, With},
        lists,
    },
    l2::{
        code,
        guest::{Guest, control},
        layout,
    },
    runtime::ram,
    same, skip,
    tap::{Case, Verdict},
};
use pv_abi::l0::{
    Exit, Op, Status,
    list::{MsrAction, MsrFlags, MsrRange, MsrValue},
    regs::gpr,
    run::{ReplyFlags, RunControl},
};

pub const GROUP: Group = Group {
    name: "policy",
    checks: &[
        check("deny_without_a_rule", "L0-MSR-2 L0-MSR-4 L0-EXIT-6", deny_without_a_rule),
        check("deny", "L0-MSR-4", deny),
        check("exit_read", "L0-MSR-4 L0-EXIT-3", exit_read),
        check("exit_write", "L0-MSR-4 L0-EXIT-3", exit_write),
        check("value", "L0-MSR-4 L0-EXIT-6", value),
        check("ignored_writes", "L0-MSR-4", ignored_writes),
        check("shadow", "L0-MSR-4 L0-MSR-6 L0-EXIT-6", shadow),
        check("shadow_mask", "L0-MSR-4", shadow_mask),
        check("shadow_by_get_and_set", "L0-MSR-5", shadow_by_get_and_set),
        check("cells_of_each_vcpu", "L0-MSR-6", cells_of_each_vcpu),
        check("held", "L0-MSR-1 L0-MSR-4", held),
        check("edges_of_ranges", "L0-MSR-3 L0-MSR-4", edges_of_ranges),
        check("x2apic_range", "L0-APIC-5 L0-MSR-4", x2apic_range),
        check("bad_rules", "L0-MSR-3 L0-LIST-3", bad_rules),
        check("rules_for_what_is_held", "L0-MSR-1 L0-MSR-3", rules_for_what_is_held),
        check("limits", "L0-MSR-3", limits),
        check("replaced", "L0-MSR-3 L0-LIST-3", replaced),
        check("user_code", "L0-MSR-4", user_code),
    ],
};

/// An MSR that nobody has.
const MSR: u32 = 0x4000_0200;
const GP: u8 = 13;

const fn rule(first: u32, count: u32, action: MsrAction) -> MsrRange {
    MsrRange { first, count, action: action.raw(), flags: 0, value: 0, mask: 0 }
}

/// A VM with these rules.
fn with_rules(env: &Env<'_>, rules: &[MsrRange]) -> Verdict<Guest> {
    let guest = Guest::new(env)?;
    env.l0.ok(Op::SetMsrPolicy, &args::vm(0).list(lists::of(rules)))?;
    Ok(guest)
}

fn start_read(guest: &Guest, msr: u32) -> Verdict {
    guest.start(0, code::rdmsrs(), &[(gpr::RCX, msr.into()), (gpr::RDI, layout::DATA)])
}

fn start_write(guest: &Guest, msr: u32, value: u64) -> Verdict {
    let set = [(gpr::RCX, msr.into()), (gpr::RAX, value & 0xffff_ffff), (gpr::RDX, value >> 32)];
    guest.start(0, code::wrmsrs(), &set)
}

/// What RDMSR gives, without an exit to L1.
fn reads(guest: &Guest, msr: u32) -> Verdict<u64> {
    start_read(guest, msr)?;
    guest.done()?;
    Ok(ram::load(guest.at(layout::DATA)))
}

fn read_faults(guest: &Guest, msr: u32) -> Verdict {
    start_read(guest, msr)?;
    guest.takes(GP).case(format_args!("RDMSR of {msr:#x}"))
}

fn writes(guest: &Guest, msr: u32, value: u64) -> Verdict {
    start_write(guest, msr, value)?;
    guest.done()?;
    Ok(())
}

fn write_faults(guest: &Guest, msr: u32, value: u64) -> Verdict {
    start_write(guest, msr, value)?;
    guest.takes(GP).case(format_args!("WRMSR of {value:#x} to {msr:#x}"))
}

fn faults_both(guest: &Guest, msr: u32) -> Verdict {
    read_faults(guest, msr)?;
    write_faults(guest, msr, 0)
}

/// #GP for MSRs of which L0 and the CPU may know some.
fn deny_without_a_rule(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    for msr in [
        0,
        MSR,
        0x17,
        0x3a,
        0xce,
        0x140,
        0x1a0,
        0x1d9,
        0x48,
        0x38d,
        0x570,
        0x6e0,
        0x802,
        0x4b56_4d00,
        0x4000_0000,
        0xc000_0104,
        0xc000_1029,
        0xc001_0015,
        0xc001_0114,
        u32::MAX,
    ] {
        faults_both(&guest, msr)?;
    }
    Ok(())
}

fn deny(env: &mut Env<'_>) -> Verdict {
    let guest = with_rules(env, &[rule(MSR, 4, MsrAction::Deny), rule(0x1a0, 1, MsrAction::Deny)])?;
    [MSR, MSR + 3, 0x1a0].into_iter().try_for_each(|msr| faults_both(&guest, msr))
}

fn exit_read(env: &mut Env<'_>) -> Verdict {
    let guest = with_rules(env, &[rule(MSR, 1, MsrAction::Exit), rule(0x1a0, 1, MsrAction::Exit)])?;
    for msr in [MSR, 0x1a0] {
        start_read(&guest, msr)?;
        let (exit, raw) = guest.exit(&control())?;
        same!(exit, Exit::MsrRead(msr), "the exit");
        same!(raw.state & 4, 4, "AWAITS_REPLY");
        let reply = 0x1122_3344_5566_7788;
        let (exit, _) = guest.exit(&RunControl { reply, ..control() })?;
        guest.said(exit)?;
        same!(ram::load(guest.at(layout::DATA)), reply, "what RDMSR gave");
        start_read(&guest, msr)?;
        same!(guest.run()?, Exit::MsrRead(msr), "the exit");
        let fault = RunControl { reply_flags: ReplyFlags::FAULT.bits(), ..control() };
        let (exit, _) = guest.exit(&fault)?;
        guest.took(exit, GP)?;
    }
    Ok(())
}

fn exit_write(env: &mut Env<'_>) -> Verdict {
    let guest = with_rules(env, &[rule(MSR, 1, MsrAction::Exit)])?;
    let value = 0x8877_6655_4433_2211;
    start_write(&guest, MSR, value)?;
    let (exit, raw) = guest.exit(&control())?;
    same!(exit, Exit::MsrWrite { index: MSR, value }, "the exit");
    same!(raw.state & 4, 4, "AWAITS_REPLY");
    guest.done()?;
    start_write(&guest, MSR, value)?;
    same!(guest.run()?, Exit::MsrWrite { index: MSR, value }, "the exit");
    let fault = RunControl { reply_flags: ReplyFlags::FAULT.bits(), ..control() };
    let (exit, _) = guest.exit(&fault)?;
    guest.took(exit, GP)
}

fn value(env: &mut Env<'_>) -> Verdict {
    let value = 0x1234_5678_9abc_def0;
    let rules = [MsrRange { value, ..rule(MSR, 2, MsrAction::Value) }];
    let guest = with_rules(env, &rules)?;
    for msr in [MSR, MSR + 1] {
        same!(reads(&guest, msr)?, value, "RDMSR of {msr:#x}");
        write_faults(&guest, msr, value)?;
        same!(reads(&guest, msr)?, value, "RDMSR after a write");
    }
    Ok(())
}

fn ignored_writes(env: &mut Env<'_>) -> Verdict {
    let flags = MsrFlags::IGNORE_WRITES.bits();
    let rules = [MsrRange { value: 7, flags, ..rule(MSR, 1, MsrAction::Value) }];
    let guest = with_rules(env, &rules)?;
    for written in [0, 7, u64::MAX] {
        writes(&guest, MSR, written)?;
        same!(reads(&guest, MSR)?, 7, "RDMSR after a write of {written:#x}");
    }
    Ok(())
}

fn shadow_rule(first: u32, count: u32, value: u64, mask: u64) -> MsrRange {
    MsrRange { value, mask, ..rule(first, count, MsrAction::Shadow) }
}

fn shadow(env: &mut Env<'_>) -> Verdict {
    let guest = with_rules(env, &[shadow_rule(MSR, 3, 0x55, u64::MAX)])?;
    for msr in MSR..MSR + 3 {
        same!(reads(&guest, msr)?, 0x55, "the first value of {msr:#x}");
    }
    for (msr, value) in [(MSR, u64::MAX), (MSR + 2, 0x1234_0000_0001)] {
        writes(&guest, msr, value)?;
        same!(reads(&guest, msr)?, value, "{msr:#x} after a write");
    }
    same!(reads(&guest, MSR + 1)?, 0x55, "the MSR between them");
    Ok(())
}

fn shadow_mask(env: &mut Env<'_>) -> Verdict {
    let mask = 0xf0f0_0000_0000_00ff;
    let guest = with_rules(env, &[shadow_rule(MSR, 1, 0x0f, mask)])?;
    writes(&guest, MSR, mask)?;
    same!(reads(&guest, MSR)?, mask, "RDMSR");
    for bit in [8, 31, 32, 59, 63 - 4] {
        write_faults(&guest, MSR, 1 << bit | 1)?;
        same!(reads(&guest, MSR)?, mask, "RDMSR after a write that was refused");
    }
    writes(&guest, MSR, 0)?;
    same!(reads(&guest, MSR)?, 0, "RDMSR");
    Ok(())
}

fn values(entries: &[(u32, u64)]) -> List {
    lists::made(entries.len() as u32, |index| {
        let (index, value) = entries[index as usize];
        MsrValue { index, reserved: 0, value }
    })
}

/// L1 sets any value, mask or not, and sees what L2 wrote.
fn shadow_by_get_and_set(env: &mut Env<'_>) -> Verdict {
    let guest = with_rules(env, &[shadow_rule(MSR, 2, 1, 0xff)])?;
    let asked = values(&[(MSR, 0), (MSR + 1, 0)]);
    let get = || -> Verdict<[u64; 2]> {
        env.l0.ok(Op::GetMsrs, &args::vcpu(0, 0).list(asked))?;
        Ok([8, 24].map(|at| ram::load(asked.address + at)))
    };
    same!(get()?, [1, 1], "first values");
    env.l0.ok(Op::SetMsrs, &args::vcpu(0, 0).list(values(&[(MSR, u64::MAX)])))?;
    same!(reads(&guest, MSR)?, u64::MAX, "RDMSR of what L1 set");
    writes(&guest, MSR + 1, 0x7f)?;
    same!(get()?, [u64::MAX, 0x7f], "values after a write of L2");
    Ok(())
}

fn cells_of_each_vcpu(env: &mut Env<'_>) -> Verdict {
    if env.info.limits.vcpus < 2 {
        return skip!("one vCPU at most");
    }
    let guest = with_rules(env, &[shadow_rule(MSR, 1, 3, u64::MAX)])?;
    guest.add_vcpu(env, 1)?;
    writes(&guest, MSR, 100)?;
    let asked = values(&[(MSR, 0)]);
    for (vcpu, expected) in [(0, 100), (1, 3)] {
        env.l0.ok(Op::GetMsrs, &args::vcpu(0, vcpu).list(asked))?;
        same!(ram::load(asked.address + 8), expected, "the cell of vCPU {vcpu}");
    }
    Ok(())
}

/// What L0 holds without a rule works, with and without a PASS rule.
fn held(env: &mut Env<'_>) -> Verdict {
    let pass = [
        0x10,
        0x1b,
        0x174,
        0x175,
        0x176,
        0x277,
        0xc000_0080,
        0xc000_0081,
        0xc000_0082,
        0xc000_0083,
        0xc000_0084,
        0xc000_0100,
        0xc000_0101,
        0xc000_0102,
        0xc000_0103,
    ];
    let rules = [
        rule(0x174, 3, MsrAction::Pass),
        rule(0xc000_0080, 5, MsrAction::Pass),
        rule(0xc000_0100, 3, MsrAction::Pass),
        rule(0x10, 1, MsrAction::Pass),
    ];
    for rules in [&rules[..0], &rules[..]] {
        let guest = with_rules(env, rules)?;
        let rdtscp = crate::runtime::cpu::cpuid(0x8000_0001, 0)[3] >> 27 & 1 == 1;
        for msr in pass.into_iter().filter(|msr| *msr != 0xc000_0103 || rdtscp) {
            reads(&guest, msr).case(format_args!("RDMSR of {msr:#x}"))?;
        }
        for (msr, value) in [
            (0x174, 8),
            (0x277, 0x0007_0406_0007_0106),
            (0xc000_0082, 0x1000),
            (0xc000_0102, 0x2000),
        ] {
            writes(&guest, msr, value).case(format_args!("WRMSR of {msr:#x}"))?;
            same!(reads(&guest, msr)?, value, "RDMSR of {msr:#x}");
        }
        // As the architecture says.
        write_faults(&guest, 0x277, 0x0202_0202_0202_0202)?;
        write_faults(&guest, 0xc000_0080, 1 << 63)?;
        guest.destroy()?;
    }
    Ok(())
}

/// Neighbours of a range are not of it; the last index of all is an index.
fn edges_of_ranges(env: &mut Env<'_>) -> Verdict {
    let rules = [
        MsrRange { value: 1, ..rule(MSR, 0x100, MsrAction::Value) },
        MsrRange { value: 2, ..rule(MSR + 0x100, 1, MsrAction::Value) },
        MsrRange { value: 3, ..rule(u32::MAX, 1, MsrAction::Value) },
        MsrRange { value: 4, ..rule(0, 1, MsrAction::Value) },
    ];
    let guest = with_rules(env, &rules)?;
    for (msr, value) in [(MSR, 1), (MSR + 0xff, 1), (MSR + 0x100, 2), (u32::MAX, 3), (0, 4)] {
        same!(reads(&guest, msr)?, value, "RDMSR of {msr:#x}");
    }
    [MSR - 1, MSR + 0x101, u32::MAX - 1, 1].into_iter().try_for_each(|msr| faults_both(&guest, msr))
}

/// Without L0's APIC, the x2APIC's MSRs are the policy's.
fn x2apic_range(env: &mut Env<'_>) -> Verdict {
    let rules = [
        rule(0x802, 1, MsrAction::Exit),
        MsrRange { value: 0x1_0014, ..rule(0x803, 1, MsrAction::Value) },
        shadow_rule(0x808, 1, 0, 0xff),
        rule(0x6e0, 1, MsrAction::Exit),
    ];
    let guest = with_rules(env, &rules)?;
    for msr in [0x802, 0x6e0] {
        start_read(&guest, msr)?;
        same!(guest.run()?, Exit::MsrRead(msr), "the exit");
        let (exit, _) = guest.exit(&RunControl { reply: 5, ..control() })?;
        guest.said(exit)?;
        same!(ram::load(guest.at(layout::DATA)), 5, "RDMSR of {msr:#x}");
    }
    same!(reads(&guest, 0x803)?, 0x1_0014, "RDMSR of 0x803");
    writes(&guest, 0x808, 0x20)?;
    same!(reads(&guest, 0x808)?, 0x20, "RDMSR of 0x808");
    faults_both(&guest, 0x80b)
}

fn bad_rules(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    let good = MsrRange { value: 5, ..rule(MSR, 4, MsrAction::Value) };
    let other = rule(MSR + 0x1000, 1, MsrAction::Exit);
    let cases = [
        ("no MSR", MsrRange { count: 0, ..other }),
        ("wraps", MsrRange { first: u32::MAX, count: 2, ..other }),
        ("wraps far", MsrRange { first: 1, count: u32::MAX, ..other }),
        ("action 5", MsrRange { action: 5, ..other }),
        ("a huge action", MsrRange { action: u32::MAX, ..other }),
        ("flag 1", MsrRange { flags: 2, action: 2, ..other }),
        ("flag 31", MsrRange { flags: 1 << 31, action: 2, ..other }),
        ("IGNORE_WRITES with EXIT", MsrRange { flags: 1, ..other }),
        ("IGNORE_WRITES with SHADOW", MsrRange { flags: 1, action: 3, ..other }),
        ("a value with EXIT", MsrRange { value: 1, ..other }),
        ("a value with DENY", MsrRange { value: 1, action: 0, ..other }),
        ("a mask with VALUE", MsrRange { mask: 1, action: 2, ..other }),
        ("a mask with DENY", MsrRange { mask: 1, action: 0, ..other }),
        ("the same again", good),
        ("overlaps the start", MsrRange { first: MSR - 3, count: 4, ..other }),
        ("overlaps the end", MsrRange { first: MSR + 3, count: 4, ..other }),
        ("holds the other", MsrRange { first: MSR - 1, count: 100, ..other }),
    ];
    env.l0.ok(Op::SetMsrPolicy, &args::vm(0).list(lists::of(&[good])))?;
    let spare = rule(MSR + 0x2000, 1, MsrAction::Exit);
    for (name, bad) in cases {
        let with = args::vm(0).list(lists::of(&[spare, good, bad]));
        env.l0.fails_at(2, Status::BadArg, Op::SetMsrPolicy, &with).case(format_args!("{name}"))?;
    }
    // The old rules stand.
    same!(reads(&guest, MSR + 3)?, 5, "RDMSR by the old rules");
    faults_both(&guest, MSR + 0x2000)
}

/// MSRs held always take PASS only; PASS is for MSRs that L0 holds only.
fn rules_for_what_is_held(env: &mut Env<'_>) -> Verdict {
    Guest::new(env)?;
    let refused = |bad: MsrRange| {
        let with = args::vm(0).list(lists::of(&[rule(MSR, 1, MsrAction::Exit), bad]));
        env.l0
            .fails_at(1, Status::NotSupported, Op::SetMsrPolicy, &with)
            .case(format_args!("{bad:x?}"))
    };
    for msr in [0x10, 0x1b, 0x174, 0x176, 0x277, 0xc000_0080, 0xc000_0084, 0xc000_0100, 0xc000_0103]
    {
        for action in [MsrAction::Deny, MsrAction::Exit, MsrAction::Value, MsrAction::Shadow] {
            refused(rule(msr, 1, action))?;
        }
    }
    // A range that holds one of them among others.
    refused(rule(0x170, 8, MsrAction::Exit))?;
    refused(rule(0xc000_0070, 0x11, MsrAction::Deny))?;
    for msr in [0x4000_0300, 0x1234_5678, u32::MAX] {
        refused(rule(msr, 1, MsrAction::Pass))?;
    }
    Ok(())
}

fn limits(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    let most = env.info.limits.msr_ranges.min(256);
    let list = lists::made(most, |index| MsrRange {
        value: index.into(),
        ..rule(MSR + 2 * index, 1, MsrAction::Value)
    });
    env.l0.ok(Op::SetMsrPolicy, &args::vm(0).list(list)).case(format_args!("{most} rules"))?;
    let shadows = env.info.limits.shadow_msrs;
    if let Some(above) = shadows.checked_add(1) {
        let two = lists::of(&[shadow_rule(MSR, shadows, 0, 0), shadow_rule(0x5000_0000, 1, 0, 0)]);
        env.l0.fails_at(1, Status::Limit, Op::SetMsrPolicy, &args::vm(0).list(two))?;
        let one = lists::of(&[shadow_rule(0x1000_0000, above, 0, 0)]);
        env.l0.fails_at(0, Status::Limit, Op::SetMsrPolicy, &args::vm(0).list(one))?;
        let huge = lists::of(&[shadow_rule(0x1000_0000, 0x3000_0000, 0, 0)]);
        env.l0.fails_at(0, Status::Limit, Op::SetMsrPolicy, &args::vm(0).list(huge))?;
    }
    same!(reads(&guest, MSR + 2 * (most - 1))?, u64::from(most) - 1, "the last of {most} rules");
    Ok(())
}

fn replaced(env: &mut Env<'_>) -> Verdict {
    let first =
        [MsrRange { value: 1, ..rule(MSR, 2, MsrAction::Value) }, shadow_rule(MSR + 8, 1, 5, 0xff)];
    let guest = with_rules(env, &first)?;
    let second = lists::of(&[MsrRange { value: 2, ..rule(MSR + 1, 1, MsrAction::Value) }]);
    env.l0.ok(Op::SetMsrPolicy, &args::vm(0).list(second))?;
    same!(reads(&guest, MSR + 1)?, 2, "an MSR of both lists");
    faults_both(&guest, MSR)?;
    faults_both(&guest, MSR + 8)?;
    env.l0.refuses(Status::Sealed, Op::SetMsrPolicy, &args::vm(0).list(lists::of(&first)))?;
    faults_both(&guest, MSR)
}

/// At CPL3 the CPU gives #GP before any policy; here by 64-bit code whose handler runs at CPL0.
fn user_code(env: &mut Env<'_>) -> Verdict {
    use crate::l2::registers;
    let guest =
        with_rules(env, &[rule(MSR, 1, MsrAction::Exit), shadow_rule(MSR + 1, 1, 0, u64::MAX)])?;
    let mut special = registers::user();
    special.tr.base = layout::DATA;
    ram::write(guest.at(layout::DATA) + 4, &0x1000_u64);
    for msr in [MSR, MSR + 1, 0xc000_0102] {
        let general =
            registers::general(0, &[(gpr::RCX, msr.into()), (gpr::RDI, layout::DATA + 256)]);
        guest.start_in(0, code::rdmsrs(), &general, &special)?;
        guest.takes(GP).case(format_args!("RDMSR of {msr:#x} at CPL3"))?;
    }
    Ok(())
}
