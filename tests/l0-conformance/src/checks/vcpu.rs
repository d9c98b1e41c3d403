//! vCPUs: creation and the state of a new one (spec section 5.1).

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
        guest::Guest,
        layout::{self, REGIONS},
    },
    runtime::{clock, cpu, ram},
    same, skip,
    tap::{Case, Verdict},
};
use pv_abi::l0::{
    Features, Op, Status,
    list::MsrValue,
    op::flags::CreateVm,
    page::offset,
    regs::{Debug, Events, Gprs, Groups, MpState, Special, gpr},
};

pub const GROUP: Group = Group {
    name: "vcpu",
    checks: &[
        check("create", "L0-VM-4", create),
        check("late", "L0-VM-4", late),
        check("power_on_state", "L0-VM-5", power_on_state),
        check("first_xcr0", "L0-VM-5 L0-REGS-6", first_xcr0),
        check("no_cpuid_table", "L0-VM-5 L0-CPUID-4", no_cpuid_table),
        check("tsc_of_a_new_vcpu", "L0-VM-5", tsc_of_a_new_vcpu),
        check("waits_for_sipi", "L0-VM-5", waits_for_sipi),
        check("ends_with_the_vm", "L0-VM-3", ends_with_the_vm),
    ],
};

/// All ids up to the limit (16 are tried at most), each once.
fn create(env: &mut Env<'_>) -> Verdict {
    env.l0.ok(Op::CreateVm, &args::vm(0).list(lists::of(&REGIONS)))?;
    let limit = env.info.limits.vcpus;
    let most = limit.min(16);
    for id in (0..most).rev() {
        env.l0.ok(Op::CreateVcpu, &args::vcpu(0, id)).case(format_args!("vCPU {id}"))?;
        env.l0.refuses(Status::Exists, Op::CreateVcpu, &args::vcpu(0, id))?;
    }
    if limit > most {
        env.l0.ok(Op::CreateVcpu, &args::vcpu(0, limit - 1)).case(format_args!("the last id"))?;
    }
    Ok(())
}

/// A vCPU may come after another has run.
fn late(env: &mut Env<'_>) -> Verdict {
    if env.info.limits.vcpus < 2 {
        return skip!("one vCPU at most");
    }
    let guest = Guest::new(env)?;
    guest.does(code::counts(), &[])?;
    guest.add_vcpu(env, 1)?;
    guest.start(1, code::counts(), &[(gpr::RAX, 5)])?;
    let (exit, _) = guest.exit_of(&guest.l0, 1, &crate::l2::guest::control())?;
    same!(guest.said(exit)?, 5, "EAX of the later vCPU");
    Ok(())
}

fn power_on_state(env: &mut Env<'_>) -> Verdict {
    env.l0.ok(Op::CreateVm, &args::vm(0).list(lists::of(&REGIONS)))?;
    env.l0.ok(Op::CreateVcpu, &args::vcpu(0, 0))?;
    let groups = Groups::all().bits();
    env.l0.ok(Op::GetRegs, &args::vcpu(0, 0).flags(groups))?;
    let general: Gprs = env.l0.get(offset::GPRS);
    same!((general.rip, general.rflags), (0xfff0, 2), "RIP and RFLAGS");
    same!(general.gpr[gpr::RSP], 0, "RSP");
    let special: Special = env.l0.get(offset::SPECIAL);
    same!((special.cs.selector, special.cs.base), (0xf000, 0xffff_0000), "CS");
    same!(special.cr0 & !0x10, 0x6000_0000, "CR0 but ET");
    same!((special.cr2, special.cr3, special.cr4), (0, 0, 0), "CR2, CR3, CR4");
    same!((special.efer, special.cr8), (0, 0), "EFER, CR8");
    for (segment, name) in [(special.ds, "DS"), (special.es, "ES"), (special.ss, "SS")] {
        same!((segment.selector, segment.base, segment.limit), (0, 0, 0xffff), "{name}");
    }
    same!((special.gdt.limit, special.idt.limit), (0xffff, 0xffff), "limits of GDT and IDT");
    let debug: Debug = env.l0.get(offset::DEBUG);
    same!((debug.address, debug.dr6, debug.dr7), ([0; 4], 0xffff_0ff0, 0x400), "debug registers");
    same!(env.l0.get::<Events>(offset::EVENTS), Events::default(), "events");
    Ok(())
}

/// XCR0 enables the x87 alone; a CPUID table changes nothing of that.
fn first_xcr0(env: &mut Env<'_>) -> Verdict {
    env.l0.ok(Op::CreateVm, &args::vm(0).list(lists::of(&REGIONS)))?;
    env.l0.ok(Op::CreateVcpu, &args::vcpu(0, 0))?;
    let count = env.info.limits.xsave_bytes;
    let list = List { address: ram::pages(u64::from(count).div_ceil(ram::PAGE)), count };
    let xcr0 = || env.l0.ok(Op::GetXsave, &args::vcpu(0, 0).list(list));
    same!(xcr0()?.value, 1, "XCR0");
    let table = lists::of(&env.cpuid_table(0));
    env.l0.ok(Op::SetCpuid, &args::vcpu(0, 0).list(table))?;
    same!(xcr0()?.value, 1, "XCR0 after SET_CPUID");
    Ok(())
}

/// CPUID without a table gives zeros.
fn no_cpuid_table(env: &mut Env<'_>) -> Verdict {
    let base = ram::pages(layout::BLOCK_PAGES);
    let guest = Guest { vm: 0, base, l0: env.l0, flags: CreateVm::empty() };
    layout::fill(guest.base);
    env.l0.ok(Op::CreateVm, &args::vm(0).list(lists::of(&REGIONS)))?;
    guest.map(&[layout::block(guest.base)])?;
    env.l0.ok(Op::CreateVcpu, &args::vcpu(0, 0))?;
    // Not in 64-bit mode, which no table says exists.
    let gprs = crate::l2::registers::general(0, &[(gpr::RAX, 0), (gpr::RDI, layout::DATA)]);
    for page in 0..2 {
        ram::store(guest.at(layout::DATA) + 8 * page, u64::MAX);
    }
    guest.start_in(0, code::cpuids(), &gprs, &crate::l2::registers::protected())?;
    guest.done()?;
    for word in 0..2 {
        let at = guest.at(layout::DATA) + 8 * word;
        // Leaf 1's bits that follow the CPU's state are in leaf 1 only.
        same!(ram::load(at), 0, "CPUID of leaf 0, half {word}");
    }
    Ok(())
}

/// TSC of vCPU 0, by GET_MSRS.
pub fn tsc_msr(env: &Env<'_>) -> Verdict<u64> {
    let list = lists::of(&[MsrValue { index: 0x10, ..MsrValue::default() }]);
    env.l0.ok(Op::GetMsrs, &args::vcpu(0, 0).list(list))?;
    Ok(ram::load(list.address + 8))
}

fn tsc_of_a_new_vcpu(env: &mut Env<'_>) -> Verdict {
    env.l0.ok(Op::CreateVm, &args::vm(0).list(lists::of(&REGIONS)))?;
    env.l0.ok(Op::CreateVcpu, &args::vcpu(0, 0))?;
    // Between two readings of ours, with a little for how L0 computes it.
    let slack = clock::microseconds(1000);
    let before = cpu::tsc();
    let found = tsc_msr(env)?;
    let after = cpu::tsc();
    holds!(
        found >= before.saturating_sub(slack) && found <= after + slack,
        "the TSC is {found:#x}, L1's {before:#x} before and {after:#x} after"
    );
    Ok(())
}

fn waits_for_sipi(env: &mut Env<'_>) -> Verdict {
    env.needs(Features::IN_L0_APIC, "IN_L0_APIC")?;
    if env.info.limits.vcpus < 2 {
        return skip!("one vCPU at most");
    }
    let guest = Guest::with(env, 0, CreateVm::APIC)?;
    guest.add_vcpu(env, 1)?;
    for (vcpu, state) in [(0, MpState::Runnable), (1, MpState::WaitForSipi)] {
        env.l0.ok(Op::GetRegs, &args::vcpu(0, vcpu).flags(Groups::EVENTS.bits()))?;
        let events: Events = env.l0.get(offset::EVENTS);
        same!(MpState::from_raw(events.mp_state), state, "mp_state of vCPU {vcpu}");
    }
    Ok(())
}

fn ends_with_the_vm(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    guest.does(code::counts(), &[])?;
    guest.destroy()?;
    env.l0.ok(Op::CreateVm, &args::vm(0).list(lists::of(&REGIONS)))?;
    env.l0.refuses(Status::NoSuch, Op::GetRegs, &args::vcpu(0, 0).flags(1))?;
    env.l0.ok(Op::CreateVcpu, &args::vcpu(0, 0))?;
    env.l0.ok(Op::GetRegs, &args::vcpu(0, 0).flags(Groups::GPRS.bits()))?;
    same!(env.l0.get::<Gprs>(offset::GPRS).rip, 0xfff0, "RIP of the new vCPU");
    Ok(())
}
