//! VMs and their regions: life cycle and limits (spec sections 5.1, 5.2).

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
    println,
    runtime::{cpu, ram},
    same, skip,
    tap::{Case, Verdict},
};
use arrayvec::ArrayVec;
use pv_abi::l0::{Features, Op, Status, list::Region, op::flags::CreateVm, regs::gpr};

pub const GROUP: Group = Group {
    name: "vm",
    checks: &[
        check("create_and_destroy", "L0-VM-1 L0-VM-3", create_and_destroy),
        check("all_ids", "L0-VM-1", all_ids),
        check("exists", "L0-VM-1 L0-VM-2", exists),
        check("no_such", "L0-OP-1 L0-VM-3", no_such),
        check("ids_above_the_limit", "L0-OP-1", ids_above_the_limit),
        check("undefined_flags", "L0-OP-1", undefined_flags),
        check("bad_regions", "L0-VM-2 L0-LIST-3", bad_regions),
        check("no_region", "L0-LIST-5", no_region),
        check("many_regions", "L0-VM-2 L0-LIST-6", many_regions),
        check("edges_of_regions", "L0-VM-2", edges_of_regions),
        check("region_list", "L0-OP-1 L0-LIST-6", region_list),
        check("frames_come_back", "L0-VM-3 L0-MAP-8", frames_come_back),
        check("apart", "L0-VM-1 L0-OP-3", apart),
        check("many_pieces", "L0-MAP-5 L0-MAP-11 L0-VM-3 L0-SEC-3", many_pieces),
        check("churn", "L0-SEC-3 L0-VM-3", churn),
    ],
};

fn regions() -> List {
    lists::of(&REGIONS)
}

fn create_and_destroy(env: &mut Env<'_>) -> Verdict {
    let list = regions();
    for _ in 0..3 {
        env.l0.ok(Op::CreateVm, &args::vm(0).list(list))?;
        env.l0.ok(Op::DestroyVm, &args::vm(0))?;
    }
    Ok(())
}

/// The first ids and the last one below the limit, at the same time.
fn all_ids(env: &mut Env<'_>) -> Verdict {
    let list = regions();
    let limit = env.info.limits.vms;
    let mut ids: ArrayVec<u32, 9> = (0..limit.min(8)).collect();
    if limit > 8 {
        ids.push(limit - 1);
    }
    for &id in &ids {
        env.l0.ok(Op::CreateVm, &args::vm(id).list(list)).case(format_args!("VM {id}"))?;
    }
    for &id in ids.iter().rev() {
        env.l0.ok(Op::DestroyVm, &args::vm(id))?;
        env.l0.refuses(Status::NoSuch, Op::DestroyVm, &args::vm(id))?;
    }
    Ok(())
}

fn exists(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    env.l0.refuses(Status::Exists, Op::CreateVm, &args::vm(0).list(regions()))?;
    same!(guest.does(code::counts(), &[(gpr::RAX, 7)])?, 7, "the VM that was there");
    Ok(())
}

/// Operations about a VM, with arguments that are otherwise right.
fn about_a_vm(env: &Env<'_>) -> impl Iterator<Item = Op> {
    let offered = env.info.features;
    let about = Op::ALL.iter().map(|(op, _)| *op).filter(|op| {
        !matches!(
            op,
            Op::Setup | Op::Query | Op::Enable | Op::Reset | Op::CreateVm | Op::DefineCpuidTable
        )
    });
    about.filter(move |op| offered.contains(op.needs()))
}

fn no_such(env: &mut Env<'_>) -> Verdict {
    for op in about_a_vm(env) {
        env.l0.refuses(Status::NoSuch, op, &args::vm(0))?;
    }
    env.l0.ok(Op::CreateVm, &args::vm(0).list(regions()))?;
    for op in about_a_vm(env).filter(|op| about_a_vcpu(*op)) {
        env.l0.refuses(Status::NoSuch, op, &args::vcpu(0, 0))?;
    }
    env.l0.ok(Op::DestroyVm, &args::vm(0))?;
    for op in about_a_vm(env) {
        env.l0.refuses(Status::NoSuch, op, &args::vm(0))?;
    }
    Ok(())
}

const fn about_a_vcpu(op: Op) -> bool {
    matches!(
        op,
        Op::Run
            | Op::Kick
            | Op::GetRegs
            | Op::SetRegs
            | Op::GetXsave
            | Op::SetXsave
            | Op::GetMsrs
            | Op::SetMsrs
            | Op::GetLapic
            | Op::SetLapic
            | Op::SetCpuid
    )
}

fn ids_above_the_limit(env: &mut Env<'_>) -> Verdict {
    let vms = [env.info.limits.vms, env.info.limits.vms.saturating_add(1), 1 << 31, u32::MAX];
    for vm in vms {
        env.l0.refuses(Status::Limit, Op::CreateVm, &args::vm(vm).list(regions()))?;
        for op in about_a_vm(env) {
            env.l0.refuses(Status::Limit, op, &args::vm(vm))?;
        }
    }
    env.l0.ok(Op::CreateVm, &args::vm(0).list(regions()))?;
    for vcpu in [env.info.limits.vcpus, 1 << 31, u32::MAX] {
        env.l0.refuses(Status::Limit, Op::CreateVcpu, &args::vcpu(0, vcpu))?;
        for op in about_a_vm(env).filter(|op| about_a_vcpu(*op)) {
            env.l0.refuses(Status::Limit, op, &args::vcpu(0, vcpu))?;
        }
    }
    Ok(())
}

/// Flags are looked at before the VM.
fn undefined_flags(env: &mut Env<'_>) -> Verdict {
    for bit in 1..32 {
        env.l0.refuses(Status::BadArg, Op::CreateVm, &args::vm(u32::MAX).flags(1 << bit))?;
    }
    if env.has(Features::PRIVATE) {
        for op in [Op::Share, Op::Unshare] {
            env.l0.refuses(Status::BadArg, op, &args::vm(u32::MAX).flags(2))?;
        }
    }
    for op in [Op::GetRegs, Op::SetRegs] {
        env.l0.refuses(Status::BadArg, op, &args::vm(u32::MAX).flags(1 << 4))?;
        env.l0.refuses(Status::BadArg, op, &args::vm(u32::MAX).flags(1 << 31))?;
    }
    Ok(())
}

fn bad_regions(env: &mut Env<'_>) -> Verdict {
    let region = |gpa, pages| Region { gpa, pages };
    let bits = env.info.limits.gpa_bits;
    let top = 1_u64.checked_shl(bits).unwrap_or(0);
    let good = region(0x10_0000, 16);
    let cases = [
        ("empty", region(0x20_0000, 0)),
        ("misaligned", region(0x20_0800, 1)),
        ("wraps", region(!0xfff, 2)),
        ("bytes wrap", region(0x20_0000, 1 << 52)),
        ("all ones", region(u64::MAX, u64::MAX)),
        ("starts above the GPA bits", region(top, 1)),
        ("ends above the GPA bits", region(top - 0x1000, 2)),
        ("the same", good),
        ("overlaps the end", region(0x10_f000, 16)),
        ("overlaps the start", region(0xf_f000, 2)),
        ("holds the other", region(0, 0x1000)),
        ("touches 0xfec00000", region(0xfebf_f000, 2)),
        ("lies at 0xfee00000", region(0xfee0_0000, 1)),
        ("touches 0xffffffff", region(0xffff_f000, 2)),
        ("holds the reserved part", region(0xf000_0000, 0x2_0000)),
    ];
    for (name, bad) in cases {
        let list = lists::of(&[region(0x1000_0000, 1), good, bad]);
        env.l0
            .fails_at(2, Status::BadArg, Op::CreateVm, &args::vm(0).list(list))
            .case(format_args!("{name}"))?;
        env.l0.refuses(Status::NoSuch, Op::DestroyVm, &args::vm(0)).case(format_args!("{name}"))?;
    }
    let list = lists::of(&[region(0x800, 1), good]);
    env.l0.fails_at(0, Status::BadArg, Op::CreateVm, &args::vm(0).list(list))?;
    Ok(())
}

fn no_region(env: &mut Env<'_>) -> Verdict {
    let list = List { count: 0, ..regions() };
    env.l0.refuses(Status::BadArg, Op::CreateVm, &args::vm(0).list(list))?;
    env.l0.refuses(Status::NoSuch, Op::DestroyVm, &args::vm(0))
}

/// As many regions as the limit says (256 are tried at most), next to each other and apart.
fn many_regions(env: &mut Env<'_>) -> Verdict {
    let limit = env.info.limits.regions;
    let most = limit.min(256);
    let list = lists::made(most, |index| Region {
        gpa: u64::from(index) * 0x1_0000,
        pages: if index % 2 == 0 { 16 } else { 8 },
    });
    env.l0.ok(Op::CreateVm, &args::vm(0).list(list)).case(format_args!("{most} regions"))?;
    // Each of them takes memory.
    let frame = ram::pages(1);
    let last = u64::from(most - 1) * 0x1_0000;
    let map = lists::of(&[lists::map(0, frame, 1), lists::map(last, frame, 1)]);
    env.l0.ok(Op::Map, &args::vm(0).list(map))?;
    env.l0.ok(Op::DestroyVm, &args::vm(0))?;
    let Some(above) = limit.checked_add(1) else { return Ok(()) };
    let list = List { count: above, ..list };
    env.l0.refuses(Status::Limit, Op::CreateVm, &args::vm(0).list(list))
}

fn edges_of_regions(env: &mut Env<'_>) -> Verdict {
    let top = 1 << env.info.limits.gpa_bits;
    let list = lists::of(&[
        Region { gpa: 0, pages: 1 },
        Region { gpa: 0x1000, pages: 1 },
        Region { gpa: 0xfebf_f000, pages: 1 },
        Region { gpa: 1 << 32, pages: 1 },
    ]);
    env.l0.ok(Op::CreateVm, &args::vm(0).list(list))?;
    env.l0.ok(Op::DestroyVm, &args::vm(0))?;
    let list = lists::of(&[Region { gpa: top - 0x1000, pages: 1 }]);
    env.l0.ok(Op::CreateVm, &args::vm(0).list(list)).case(format_args!("last page of GPAs"))?;
    let frame = ram::pages(1);
    let map = lists::of(&[lists::map(top - 0x1000, frame, 1)]);
    env.l0.ok(Op::Map, &args::vm(0).list(map))?;
    Ok(())
}

fn region_list(env: &mut Env<'_>) -> Verdict {
    let list = regions();
    let at = |address| args::vm(0).list(List { address, ..list });
    env.l0.refuses(Status::BadArg, Op::CreateVm, &at(list.address + 4))?;
    for address in bad_lists(env) {
        env.l0
            .refuses(Status::NotYours, Op::CreateVm, &at(address))
            .case(format_args!("{address:#x}"))?;
    }
    env.l0.refuses(Status::NoSuch, Op::DestroyVm, &args::vm(0))
}

/// Addresses where no list of 48 bytes lies wholly in L1's RAM.
pub fn bad_lists(env: &Env<'_>) -> ArrayVec<u64, 6> {
    let nowhere = [env.no_ram(), 1 << 51, 1 << 63, u64::MAX - 7];
    let end = env.usable.sharp_end();
    let ends = end.into_iter().flat_map(|end| [end - 16, end]);
    nowhere.into_iter().chain(ends).collect()
}

/// What L2 wrote is there after the end of the VM; the end itself changes nothing.
fn frames_come_back(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    let said = guest.does(code::store(), &[(gpr::RAX, 0x1234_5678), (gpr::RDI, layout::DATA)])?;
    same!(said, 0x1234_5678, "EAX");
    let before = ram::checksum(guest.base, layout::DATA_END);
    guest.destroy()?;
    same!(ram::checksum(guest.base, layout::DATA_END), before, "checksum of the frames");
    same!(ram::load(guest.at(layout::DATA)), 0x1234_5678, "what L2 wrote");
    Ok(())
}

/// Two VMs do not see each other.
fn apart(env: &mut Env<'_>) -> Verdict {
    if env.info.limits.vms < 2 {
        return skip!("one VM at most");
    }
    let [first, second] = [0, 1].map(|vm| Guest::with(env, vm, CreateVm::empty()));
    let (first, second) = (first?, second?);
    for (guest, value) in [(first, 11), (second, 22)] {
        guest.does(code::store(), &[(gpr::RAX, value), (gpr::RDI, layout::DATA)])?;
    }
    same!(first.reads(layout::DATA)?, 11, "the first VM's data");
    first.destroy()?;
    same!(second.reads(layout::DATA)?, 22, "the second VM's data");
    Ok(())
}

/// Pages that are mapped one by one, in so many pieces: more than an L0 may bear.
const PIECES: u32 = 1 << 16;

/// As many pieces as L0 bears. Whatever it refuses has not begun, and all of it can be unmapped.
fn many_pieces(env: &mut Env<'_>) -> Verdict {
    let gpa = |page: u32| u64::from(page) * ram::PAGE;
    let whole = Region { gpa: 0, pages: 2 * u64::from(PIECES) };
    env.l0.ok(Op::CreateVm, &args::vm(0).list(lists::of(&[whole])))?;
    let frames = ram::pages(3);
    let each = env.info.limits.entries.min(4096);
    let (mut mapped, lists_start) = (0, ram::mark());
    while mapped < PIECES {
        ram::release(lists_start);
        // The same frame at every page: none continues another.
        let list = lists::made(each, |index| lists::map(gpa(mapped + index), frames, 1));
        let answer = env.l0.call(Op::Map, &args::vm(0).list(list));
        mapped += answer.index;
        if answer.status != Status::Ok {
            same!(answer.status, Status::NoMemory, "status after {mapped} pages");
            break;
        }
    }
    println!("# {mapped} pieces");
    let one = |op, entry| env.l0.call(op, &args::vm(0).list(lists::of(&[entry]))).status;
    same!(one(Op::Unmap, lists::unmap(0, 1)), Status::Ok, "UNMAP of a piece");
    let three = gpa(PIECES);
    same!(one(Op::Map, lists::map(three, frames, 3)), Status::Ok, "MAP in its place");
    let cut = one(Op::Unmap, lists::unmap(three + ram::PAGE, 1));
    holds!(matches!(cut, Status::Ok | Status::NoMemory), "UNMAP of its middle: {cut:?}");
    let still = one(Op::Protect, lists::protect(three, 3, lists::ALL));
    let expected = if cut == Status::Ok { Status::NoSuch } else { Status::Ok };
    same!(still, expected, "PROTECT of all three after UNMAP answered {cut:?}");
    same!(one(Op::Unmap, lists::unmap(0, whole.pages)), Status::Ok, "UNMAP of everything");
    same!(one(Op::Map, lists::map(0, frames, 3)), Status::Ok, "MAP afterwards");
    Ok(())
}

/// VMs made and destroyed, and vCPUs of each: a handle of each vCPU left behind makes more than a
/// process may have.
const CHURN: u64 = 80;
const CHURN_VCPUS: u32 = 16;

/// VMs come and go many times: nothing may be used up.
fn churn(env: &mut Env<'_>) -> Verdict {
    let list = regions();
    let frames = ram::pages(16);
    let map = lists::of(&[lists::map(0, frames, 16)]);
    let start = cpu::tsc();
    for round in 0..CHURN {
        let vm = |op, with| env.l0.ok(op, &with).case(format_args!("round {round}"));
        vm(Op::CreateVm, args::vm(0).list(list))?;
        for vcpu in 0..CHURN_VCPUS.min(env.info.limits.vcpus) {
            vm(Op::CreateVcpu, args::vcpu(0, vcpu))?;
        }
        vm(Op::Map, args::vm(0).list(map))?;
        vm(Op::DestroyVm, args::vm(0))?;
    }
    let each = (cpu::tsc() - start) / CHURN;
    env.measure("vm_life", each, "ticks to create a VM with vCPUs and a mapping, and destroy it");
    Ok(())
}
