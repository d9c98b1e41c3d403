//! The checks.

use crate::l1::{CODE, FULL, L1, L2_AT, LIST, args, control, range, read_only};
use anyhow::{Result, ensure};
use pv_abi::l0::{
    Exit, Op, Status,
    exit::Direction,
    list::{CpuidLeaf, MapRange, MsrAction, MsrRange, MsrValue},
    op::flags,
    page::{Args, offset},
    regs::gpr,
    run::{Event, ReplyFlags, RunControl, RunFlags},
};
use std::{thread, time::Duration};

type Check = fn(&mut L1) -> Result<()>;

/// All checks, by name.
pub const ALL: [(&str, Check); 15] = [
    ("ports and HLT", ports),
    ("string I/O", strings),
    ("a device's memory", device_memory),
    ("CPUID from the table", cpuid),
    ("MSRs by policy", msrs),
    ("pages come and go", pages),
    ("UNMAP while L2 runs", unmap_while_running),
    ("the deadline", deadline),
    ("KICK", kick),
    ("an interrupt and its window", interrupt),
    ("the log of writes", dirty_log),
    ("private pages", private_pages),
    ("an APIC in L0", apic),
    ("the end of VMs", ends),
    ("costs", costs),
];

fn out(port: u16) -> Exit {
    Exit::Io { port, size: 1, count: 1, direction: Direction::Write }
}

fn equal<T: PartialEq + std::fmt::Debug>(what: &str, found: T, wanted: T) -> Result<()> {
    ensure!(found == wanted, "{what}: {found:x?} instead of {wanted:x?}");
    Ok(())
}

fn ports(l1: &mut L1) -> Result<()> {
    // mov al, 0x5a; out 0x10, al; in al, 0x11; hlt; hlt
    l1.boot(0, &[0xb0, 0x5a, 0xe6, 0x10, 0xe4, 0x11, 0xf4, 0xf4], &[])?;
    l1.exits(out(0x10))?;
    equal("data", l1.field::<u8>(offset::IO), 0x5a)?;
    l1.exits(Exit::Io { port: 0x11, size: 1, count: 1, direction: Direction::Read })?;
    l1.set_field(offset::IO, &0x77u8);
    l1.exits(Exit::Hlt)?;
    equal("AL", l1.gpr(gpr::RAX), 0x77)?;
    equal("RIP", l1.field::<[u64; 17]>(offset::GPRS)[16], CODE + 7)?;
    l1.exits(Exit::Hlt)
}

fn strings(l1: &mut L1) -> Result<()> {
    // mov esi, 0x3000; mov ecx, 300; mov dx, 0x20; rep outsd; hlt
    let program = [0xbe, 0, 0x30, 0, 0, 0xb9, 0x2c, 1, 0, 0, 0x66, 0xba, 0x20, 0, 0xf3, 0x6f, 0xf4];
    l1.boot(0, &program, &[])?;
    let words: Vec<u32> = (0..300).collect();
    l1.write(L2_AT + 0x3000, words.as_slice());
    let mut seen = Vec::new();
    while seen.len() < 300 {
        let Exit::Io { port: 0x20, size: 4, count, direction: Direction::Write } = l1.run()? else {
            anyhow::bail!("no OUTS after {} elements", seen.len());
        };
        seen.extend_from_slice(&l1.field::<[u32; 256]>(offset::IO)[..count as usize]);
    }
    equal("elements", seen, words)?;
    l1.exits(Exit::Hlt)
}

fn device_memory(l1: &mut L1) -> Result<()> {
    // mov eax, [0x10000000]; mov [0x10000008], eax; hlt
    l1.boot(0, &[0xa1, 0, 0, 0, 0x10, 0xa3, 8, 0, 0, 0x10, 0xf4], &[])?;
    let at = |gpa, data, direction| Exit::Mmio { gpa, size: 4, data, direction };
    l1.exits(at(0x1000_0000, 0, Direction::Read))?;
    let exit = l1.run_on(0, RunControl { reply: 0x1122_3344, ..control() })?;
    equal("store", exit, at(0x1000_0008, 0x1122_3344, Direction::Write))?;
    l1.exits(Exit::Hlt)
}

fn cpuid(l1: &mut L1) -> Result<()> {
    // mov eax, 0x40000000; cpuid; hlt
    l1.boot(0, &[0xb8, 0, 0, 0, 0x40, 0x0f, 0xa2, 0xf4], &[])?;
    let leaf = CpuidLeaf { leaf: 0x4000_0000, answer: [1, 2, 3, 4], ..CpuidLeaf::default() };
    l1.list(Status::BadArg, Op::SetCpuid, &[leaf, leaf], 0)?;
    l1.list(Status::Ok, Op::SetCpuid, &[leaf], 0)?;
    l1.exits(Exit::Hlt)?;
    let found = [gpr::RAX, gpr::RBX, gpr::RCX, gpr::RDX].map(|index| l1.gpr(index));
    equal("answer", found, [1, 2, 3, 4])?;
    l1.list(Status::Sealed, Op::SetCpuid, &[leaf], 0)
}

fn msrs(l1: &mut L1) -> Result<()> {
    // mov ecx, 0x1234; rdmsr; out 0x10, al; inc ecx; wrmsr; rdmsr; out 0x10, al;
    // inc ecx; rdmsr; out 0x10, al; inc ecx; rdmsr; hlt
    let program = [
        0xb9, 0x34, 0x12, 0, 0, 0x0f, 0x32, 0xe6, 0x10, 0x41, 0x0f, 0x30, 0x0f, 0x32, 0xe6, 0x10,
        0x41, 0x0f, 0x32, 0xe6, 0x10, 0x41, 0x0f, 0x32, 0xf4,
    ];
    // The handler of #GP: mov al, 0x66; out 0x10, al
    l1.boot(0, &program, &[0xb0, 0x66, 0xe6, 0x10])?;
    let rule = |first, action: MsrAction, value, mask| MsrRange {
        first,
        count: 1,
        action: action.raw(),
        flags: 0,
        value,
        mask,
    };
    let policy = [
        rule(0x1234, MsrAction::Value, 0x42, 0),
        rule(0x1235, MsrAction::Shadow, 1, u64::MAX),
        rule(0x1236, MsrAction::Exit, 0, 0),
    ];
    l1.list(Status::Ok, Op::SetMsrPolicy, &policy, 0)?;
    l1.exits(out(0x10))?;
    equal("VALUE", l1.field::<u8>(offset::IO), 0x42)?;
    l1.exits(out(0x10))?;
    equal("SHADOW", l1.field::<u8>(offset::IO), 0x42)?;
    l1.exits(Exit::MsrRead(0x1236))?;
    let exit = l1.run_on(0, RunControl { reply: 0x99, ..control() })?;
    equal("EXIT", (exit, l1.field::<u8>(offset::IO)), (out(0x10), 0x99))?;
    l1.exits(out(0x10))?;
    equal("DENY is #GP", l1.field::<u8>(offset::IO), 0x66)?;
    let cell = MsrValue { index: 0x1235, ..MsrValue::default() };
    l1.list(Status::Ok, Op::GetMsrs, &[cell], 0)?;
    equal("cell", l1.read::<MsrValue>(LIST).value, 0x42)?;
    l1.list(Status::NoSuch, Op::GetMsrs, &[MsrValue { index: 0x1234, ..cell }], 0)?;
    let efer = MsrValue { index: 0xc000_0080, reserved: 0, value: 1 << 12 };
    l1.list(Status::BadArg, Op::SetMsrs, &[efer], 0)
}

fn pages(l1: &mut L1) -> Result<()> {
    // mov eax, [0x5000]; inc eax; mov [0x5000], eax; hlt; mov eax, [0x5000]; hlt
    let program = [0xa1, 0, 0x50, 0, 0, 0x40, 0xa3, 0, 0x50, 0, 0, 0xf4, 0xa1, 0, 0x50, 0, 0, 0xf4];
    l1.boot(0, &program, &[])?;
    let nowhere = Exit::Unmapped { gpa: None, access: None };
    l1.exits(nowhere)?;
    let page = range(0x5000, 1, read_only());
    l1.list(Status::Ok, Op::Map, &[page], 0)?;
    l1.list(Status::Ok, Op::Map, &[page], 0)?;
    l1.list(Status::Exists, Op::Map, &[range(0x5000, 1, FULL)], 0)?;
    equal("where", l1.field::<u64>(offset::VALUE), 0x5000)?;
    l1.write(L2_AT + 0x5000, &41u32);
    l1.exits(nowhere)?;
    l1.list(Status::NoSuch, Op::Protect, &[MapRange { l1: 0, ..range(0x5000, 2, FULL) }], 0)?;
    l1.list(Status::Ok, Op::Protect, &[MapRange { l1: 0, ..range(0x5000, 1, FULL) }], 0)?;
    l1.exits(Exit::Hlt)?;
    equal("written", l1.read::<u32>(L2_AT + 0x5000), 42)?;
    l1.list(Status::Ok, Op::Unmap, &[MapRange { l1: 0, ..range(0x5000, 1, 0) }], 0)?;
    l1.exits(nowhere)?;
    // Another frame in its place.
    l1.write(L2_AT + 0x9000, &77u32);
    l1.list(Status::Ok, Op::Map, &[MapRange { l1: L2_AT + 0x9000, ..page }], 0)?;
    l1.exits(Exit::Hlt)?;
    equal("the new frame", l1.gpr(gpr::RAX), 77)?;
    let foreign = MapRange { l1: 64 << 20, ..range(0x6000, 1, FULL) };
    l1.list(Status::NotYours, Op::Map, &[range(0x7000, 1, FULL), foreign], 0)?;
    equal("the entry", l1.field::<u32>(offset::INDEX), 1)
}

/// Runs L2 on L1's second CPU while `meanwhile` happens on the first; returns both results.
fn beside<T>(l1: &L1, meanwhile: impl FnOnce() -> Result<T>) -> Result<(Exit, T)> {
    thread::scope(|scope| {
        let other = l1.clone();
        let run = scope.spawn(move || other.run_on(1, control()));
        thread::sleep(Duration::from_millis(30));
        let done = meanwhile();
        if done.is_err() {
            // Or the thread would run for ever.
            l1.call(0, Op::Kick, args(0, 0));
        }
        let exit = run.join().map_err(|_| anyhow::anyhow!("RUN panicked"))?;
        Ok((exit?, done?))
    })
}

fn unmap_while_running(l1: &mut L1) -> Result<()> {
    // inc dword [0x5000]; jmp to it
    l1.boot(0, &[0xff, 5, 0, 0x50, 0, 0, 0xeb, 0xf8], &[])?;
    let page = range(0x5000, 1, FULL);
    l1.list(Status::Ok, Op::Map, &[page], 0)?;
    for _ in 0..10 {
        let (exit, counts) = beside(l1, || {
            l1.list(Status::Ok, Op::Unmap, &[MapRange { l1: 0, access: 0, ..page }], 0)?;
            let first = l1.read::<u32>(L2_AT + 0x5000);
            thread::sleep(Duration::from_millis(5));
            Ok([first, l1.read::<u32>(L2_AT + 0x5000)])
        })?;
        equal("exit", exit, Exit::Unmapped { gpa: None, access: None })?;
        ensure!(counts[0] > 0 && counts[0] == counts[1], "written after UNMAP: {counts:?}");
        l1.list(Status::Ok, Op::Map, &[page], 0)?;
    }
    Ok(())
}

fn deadline(l1: &mut L1) -> Result<()> {
    l1.boot(0, &[0xeb, 0xfe], &[])?;
    let mut late = Vec::new();
    for _ in 0..20 {
        let deadline = l1.tsc() + l1.tsc_khz * 3;
        equal("exit", l1.run_on(0, RunControl { deadline, ..control() })?, Exit::Deadline)?;
        let now = l1.tsc();
        ensure!(now >= deadline, "{} ticks early", deadline - now);
        late.push((now - deadline) * 1000 / l1.tsc_khz);
    }
    late.sort_unstable();
    println!("# late, microseconds: median {}, worst {}", late[10], late[19]);
    let past = RunControl { deadline: 0, ..control() };
    equal("a deadline that is past", l1.run_on(0, past)?, Exit::Deadline)
}

fn kick(l1: &mut L1) -> Result<()> {
    l1.boot(0, &[0xeb, 0xfe], &[])?;
    l1.good(Op::Kick, args(0, 0))?;
    l1.exits(Exit::Kicked)?;
    for _ in 0..10 {
        let (exit, ()) = beside(l1, || {
            l1.is(Status::Busy, Op::GetRegs, Args { flags: 1, ..args(0, 0) })?;
            l1.is(Status::Busy, Op::Run, args(0, 0))?;
            l1.good(Op::Kick, args(0, 0))
        })?;
        equal("exit", exit, Exit::Kicked)?;
    }
    Ok(())
}

fn interrupt(l1: &mut L1) -> Result<()> {
    // out 0x10, al; sti; nop; out 0x11, al; hlt
    let program = [0xe6, 0x10, 0xfb, 0x90, 0xe6, 0x11, 0xf4];
    // mov al, 0x33; out 0x12, al; iret
    l1.boot(0, &program, &[0xb0, 0x33, 0xe6, 0x12, 0xcf])?;
    l1.exits(out(0x10))?;
    let (event, event_error) = Event::Interrupt(0x20).encode();
    l1.set_field(offset::CONTROL, &RunControl { event, event_error, ..control() });
    l1.is(Status::BadState, Op::Run, args(0, 0))?;
    let window = RunControl { flags: RunFlags::WINDOW.bits(), ..control() };
    equal("window", l1.run_on(0, window)?, Exit::InterruptWindow)?;
    equal("handler", l1.run_on(0, RunControl { event, event_error, ..control() })?, out(0x12))?;
    l1.exits(out(0x11))?;
    equal("AL", l1.field::<u8>(offset::IO), 0x33)?;
    let only = RunControl { flags: RunFlags::COMPLETE_ONLY.bits(), ..control() };
    equal("completed", l1.run_on(0, only)?, Exit::Completed)?;
    let refused = RunControl { reply_flags: ReplyFlags::all().bits() + 1, ..control() };
    l1.set_field(offset::CONTROL, &refused);
    l1.is(Status::BadArg, Op::Run, args(0, 0))?;
    l1.exits(Exit::Hlt)
}

fn dirty_log(l1: &mut L1) -> Result<()> {
    // mov [0x5000], eax; mov [0x7000], eax; hlt
    l1.boot(0, &[0xa3, 0, 0x50, 0, 0, 0xa3, 0, 0x70, 0, 0, 0xf4], &[])?;
    l1.list(Status::Ok, Op::Map, &[range(0x5000, 4, FULL)], 0)?;
    let take = Args { list: LIST, arg: [0, 64, 0, 0, 0], ..args(0, 0) };
    l1.is(Status::BadState, Op::DirtyTake, take)?;
    l1.good(Op::DirtyStart, args(0, 0))?;
    l1.exits(Exit::Hlt)?;
    l1.good(Op::DirtyTake, take)?;
    equal("written pages", l1.read::<u64>(LIST) & 0xf0, 0xa0)?;
    l1.good(Op::DirtyTake, take)?;
    equal("written since", l1.read::<u64>(LIST), 0)?;
    l1.good(Op::DirtyStop, args(0, 0))
}

fn private_pages(l1: &mut L1) -> Result<()> {
    // mov eax, [0x5000]; hlt
    l1.boot(0, &[0xa1, 0, 0x50, 0, 0, 0xf4], &[])?;
    let page = range(0x5000, 1, FULL);
    let bare = MapRange { l1: 0, access: 0, ..page };
    let again = MapRange { l1: page.l1, ..range(0x8000, 1, FULL) };
    l1.list(Status::NoSuch, Op::Unshare, &[bare], 0)?;
    l1.list(Status::Ok, Op::Map, &[page, again], 0)?;
    l1.list(Status::Busy, Op::Unshare, &[bare], 0)?;
    l1.list(Status::Ok, Op::Unmap, &[MapRange { l1: 0, access: 0, ..again }], 0)?;
    l1.write(L2_AT + 0x5000, &55u32);
    l1.list(Status::Ok, Op::Unshare, &[bare], 0)?;
    l1.list(Status::Busy, Op::Map, &[again], 0)?;
    l1.write(LIST, &bare);
    let hidden = Args { list: L2_AT + 0x5000, count: 1, ..args(0, 0) };
    l1.is(Status::NotYours, Op::Map, hidden)?;
    l1.exits(Exit::Hlt)?;
    equal("content", l1.gpr(gpr::RAX), 55)?;
    l1.list(Status::Ok, Op::Share, &[bare], flags::Convert::ZERO.bits())?;
    equal("zeroed", l1.read::<u32>(L2_AT + 0x5000), 0)?;
    l1.list(Status::Ok, Op::Unshare, &[bare], 0)?;
    l1.write(L2_AT + 0x5000, &66u32);
    l1.list(Status::Ok, Op::Unmap, &[bare], 0)?;
    equal("zeroed at its end", l1.read::<u32>(L2_AT + 0x5000), 0)
}

fn apic(l1: &mut L1) -> Result<()> {
    // mov dword [0xfee000f0], 0x1ff; sti; hlt; jmp to hlt
    let program = [0xc7, 5, 0xf0, 0, 0xe0, 0xfe, 0xff, 1, 0, 0, 0xfb, 0xf4, 0xeb, 0xfd];
    // out 0x12, al; mov dword [0xfee000b0], 0; iret
    let handler = [0xe6, 0x12, 0xc7, 5, 0xb0, 0, 0xe0, 0xfe, 0, 0, 0, 0, 0xcf];
    l1.boot(flags::CreateVm::APIC.bits(), &program, &handler)?;
    let message = Args { arg: [0xfee0_0000, 0x20, 0, 0, 0], ..args(0, 0) };
    for _ in 0..3 {
        let (exit, ()) = beside(l1, || l1.good(Op::SendMsi, message))?;
        equal("the handler's exit", exit, out(0x12))?;
    }
    l1.is(Status::BadArg, Op::SendMsi, Args { arg: [0xfed0_0000, 0x20, 0, 0, 0], ..args(0, 0) })?;
    let registers = Args { list: LIST, count: 1024, ..args(0, 0) };
    l1.good(Op::GetLapic, registers)?;
    equal("SVR", l1.read::<u32>(LIST + 0xf0), 0x1ff)?;
    l1.good(Op::SetLapic, registers)?;
    let deadline = l1.tsc() + l1.tsc_khz * 5;
    equal("HLT", l1.run_on(0, RunControl { deadline, ..control() })?, Exit::Deadline)
}

fn ends(l1: &mut L1) -> Result<()> {
    // ud2, and a handler that is no code: a triple fault, since the stack is gone
    l1.boot(0, &[0xbc, 0, 0, 0, 0, 0x0f, 0x0b], &[])?;
    l1.write(L2_AT + 0x2000, &[0u8; 0x180]);
    l1.exits(Exit::Shutdown)?;
    l1.is(Status::BadState, Op::Run, args(0, 0))?;
    l1.write(L2_AT + CODE, &[0xebu8, 0xfe]);
    l1.start()?;
    let (exit, ()) = beside(l1, || {
        l1.is(Status::Busy, Op::DestroyVm, args(0, 0))?;
        l1.good(Op::Reset, args(0, 0))
    })?;
    equal("a RESET kicks", exit, Exit::Kicked)?;
    l1.is(Status::NotSupported, Op::DestroyVm, args(0, 0))
}

/// Prints what things cost, in ticks of the TSC: instructions, where time goes by instructions.
fn costs(l1: &mut L1) -> Result<()> {
    const TIMES: u64 = 2000;
    // mov edi, TIMES; mov ecx, 0x1234 | 0x277 | 0x1235; again: OP; dec edi; jnz again; hlt
    let program = |msr: u32, op: [u8; 2]| {
        let head = [0xbf, (TIMES & 0xff) as u8, (TIMES >> 8) as u8, 0, 0, 0xb9];
        [&head[..], &msr.to_le_bytes(), &op, &[0x4f, 0x75, 0xfb, 0xf4]].concat()
    };
    l1.boot(0, &[0xf4], &[])?;
    let leaf = CpuidLeaf { leaf: 0, ..CpuidLeaf::default() };
    l1.list(Status::Ok, Op::SetCpuid, &[leaf], 0)?;
    let value =
        MsrRange { first: 0x1234, count: 1, action: MsrAction::Value.raw(), ..MsrRange::default() };
    l1.list(Status::Ok, Op::SetMsrPolicy, &[value], 0)?;
    for (name, msr, op) in [
        ("CPUID", 0, [0x0f, 0xa2]),
        ("RDMSR that KVM holds", 0x277, [0x0f, 0x32]),
        ("RDMSR under VALUE", 0x1234, [0x0f, 0x32]),
    ] {
        // CPUID changes ECX, but then leaf 0 has no subleaf.
        l1.write(L2_AT + CODE, program(msr, op).as_slice());
        l1.start()?;
        let before = l1.tsc();
        l1.exits(Exit::Hlt)?;
        println!("# {name}: {} ticks", (l1.tsc() - before) / TIMES);
    }
    // jmp to out: an exit to L1 and back
    l1.write(L2_AT + CODE, &[0xe6u8, 0x10, 0xeb, 0xfc]);
    l1.start()?;
    l1.exits(out(0x10))?;
    let before = l1.tsc();
    for _ in 0..TIMES {
        l1.exits(out(0x10))?;
    }
    println!("# OUT to L1 and back by RUN: {} ticks", (l1.tsc() - before) / TIMES);
    let ranges: Vec<_> = (0..512).map(|n| range(0x5000 + n * 0x2000, 1, FULL)).collect();
    let bare: Vec<_> = ranges.iter().map(|entry| MapRange { l1: 0, access: 0, ..*entry }).collect();
    for (name, op, list) in [("MAP", Op::Map, &ranges), ("UNMAP", Op::Unmap, &bare)] {
        let before = l1.tsc();
        l1.list(Status::Ok, op, list, 0)?;
        println!("# {name}: {} ticks a range", (l1.tsc() - before) / ranges.len() as u64);
    }
    Ok(())
}
