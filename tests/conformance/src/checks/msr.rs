//! The registers of the ABI and the architectural ones that L1 answers.

use super::{
    Group, Setting, check,
    msr_access::{absent, keeps, rdmsr, reads, refuses, wrmsr},
};
use crate::{
    abi,
    counters::{self, Counters, Exit},
    entry,
    kernel::code,
    privileged,
    probe::Probe,
    tap::{Case, Verdict, equal, holds, skip, within},
    user::{self, Start},
};
use pv_abi::{
    hypercall,
    msr::{self, arch, x2apic},
};

pub const GROUP: Group = Group {
    name: "msr",
    setting: Setting::Anywhere,
    checks: &[
        check("cost", "CNT-2", cost),
        check("high_halves_are_ignored", "MSR-1", high_halves_are_ignored),
        check("unknown", "MSR-2 HC-10 HC-11", unknown),
        check("pvm_window", "MSR-7", pvm_window),
        check("event_entry", "MSR-5 ERR-1", event_entry),
        check("retu_rip", "MSR-6", retu_rip),
        check("lstar", "MSR-24 ERR-1", lstar),
        check("star", "MSR-23 ERR-1", star),
        check("stored_and_ignored", "MSR-16 MSR-18 MSR-25", stored_and_ignored),
        check("bases", "MSR-26 MSR-27 MSR-28", bases),
        check("efer", "MSR-22 ERR-1", efer),
        check("read_only", "MSR-11 MSR-12 MSR-13 MSR-14 MSR-15 MSR-17", read_only),
        check("pat", "MSR-19 ERR-1", pat),
        check("tsc", "MSR-10", tsc),
        check("tsc_aux", "MSR-29", tsc_aux),
        check("x2apic", "MSR-21 DEV-1", x2apic_registers),
    ],
};

const NON_CANONICAL: u64 = 0x0000_8000_0000_0000;

/// One exit per access, of the right kind.
fn cost() -> Verdict {
    counters::needed()?;
    Counters::of(|| abi::rdmsr(arch::LSTAR)).exactly(&[(Exit::HypercallMsr, 1)])?;
    Counters::of(|| {
        rdmsr(arch::LSTAR);
        rdmsr(0xdead);
    })
    .exactly(&[(Exit::RdmsrWrmsr, 2)])
}

/// Instructions use ECX, EDX:EAX, and RDMSR clears the upper halves.
fn high_halves_are_ignored() -> Verdict {
    const HIGH: u64 = 0xdead_beef_0000_0000;
    let write = Probe::of(privileged::kernel::code::wrmsr()).with(|r| {
        (r.rcx, r.rax, r.rdx) = (HIGH | u64::from(arch::CSTAR), HIGH | 0x1111, HIGH | 0x2222);
    });
    write.run().finished()?;
    let done = Probe::of(privileged::kernel::code::rdmsr())
        .with(|r| (r.rcx, r.rax, r.rdx) = (HIGH | u64::from(arch::CSTAR), HIGH, HIGH))
        .run();
    abi::wrmsr(arch::CSTAR, 0);
    done.finished()?;
    equal("RAX", done.registers.rax, 0x1111)?;
    equal("RDX", done.registers.rdx, 0x2222)?;
    equal("RCX", done.registers.rcx, HIGH | u64::from(arch::CSTAR))
}

/// An index that L1 does not know.
fn unknown() -> Verdict {
    [0, 0x48, 0xdead, 0x4b56_4d02, 0x526f_0003, 0xc001_0015, 0xffff_ffff]
        .into_iter()
        .try_for_each(absent)
}

/// Indices that other generations use are reserved: they read 0 and take nothing.
fn pvm_window() -> Verdict {
    for index in [0x4b56_4df2, 0x4b56_4df3, 0x4b56_4df6, 0x4b56_4df7] {
        reads(index, 0)?;
        refuses(index, 0x1000)?;
    }
    Ok(())
}

/// EVENT_ENTRY takes an address whose two entries are canonical.
fn event_entry() -> Verdict {
    let ours = &raw const entry::event_entry as u64;
    reads(msr::PVM_EVENT_ENTRY, ours)?;
    for (name, value) in
        [("not canonical", NON_CANONICAL), ("+512 not canonical", NON_CANONICAL - 0x100)]
    {
        // Nothing may happen before the entry is the right one again.
        let result = abi::call(hypercall::WRMSR, [msr::PVM_EVENT_ENTRY.into(), value, 0, 0]);
        let read = abi::rdmsr(msr::PVM_EVENT_ENTRY);
        abi::wrmsr(msr::PVM_EVENT_ENTRY, ours);
        equal("WRMSR hypercall", result, hypercall::EIO).case(name)?;
        equal("value after a refused write", read, ours).case(name)?;
        refuses(msr::PVM_EVENT_ENTRY, value).case(name)?;
    }
    holds("WRMSR hypercall", abi::wrmsr(msr::PVM_EVENT_ENTRY, 0xffff_ec00_0000_0000))?;
    let read = abi::rdmsr(msr::PVM_EVENT_ENTRY);
    holds("back", abi::wrmsr(msr::PVM_EVENT_ENTRY, ours))?;
    equal("RDMSR hypercall", read, 0xffff_ec00_0000_0000)
}

/// RETU_RIP is compared and nothing else: any value will do.
fn retu_rip() -> Verdict {
    let ours = &raw const entry::retu_instruction as u64;
    reads(msr::PVM_RETU_RIP, ours)?;
    keeps(msr::PVM_RETU_RIP, NON_CANONICAL, NON_CANONICAL)?;
    keeps(msr::PVM_RETU_RIP, u64::MAX, u64::MAX)?;
    // A SYSCALL at the old address is a hypercall now.
    keeps(msr::PVM_RETU_RIP, ours, ours)?;
    Start::of(user::code::syscall()).run().is_syscall(user::code::syscall().end)
}

/// LSTAR must be canonical, and takes effect.
fn lstar() -> Verdict {
    let ours = &raw const entry::syscall_entry as u64;
    reads(arch::LSTAR, ours)?;
    refuses(arch::LSTAR, NON_CANONICAL)?;
    // At the event entry instead: the trap then looks like an event of the word ERETU left.
    holds("accepted", abi::wrmsr(arch::LSTAR, &raw const entry::event_entry as u64))?;
    let trap = Start::of(user::code::syscall()).run();
    keeps(arch::LSTAR, ours, ours)?;
    equal("entered at the event entry", trap.vector.is_some().into(), 1)?;
    equal("RCX at entry", trap.event.entered.rcx, &raw const entry::event_entry as u64)
}

/// STAR: a kernel selector that is not null, and the one user selector there is.
fn star() -> Verdict {
    const STAR: u64 = 0x23 << 48 | 0x33 << 32;
    reads(arch::STAR, STAR)?;
    refuses(arch::STAR, 0).case("zero")?;
    refuses(arch::STAR, 0x23 << 48 | 3 << 32).case("null kernel CS")?;
    refuses(arch::STAR, 0x1b << 48 | 0x10 << 32).case("other user CS")?;
    keeps(arch::STAR, 0x20 << 48 | 0x10 << 32, 0x20 << 48 | 0x10 << 32).case("RPL 0")?;
    keeps(arch::STAR, 0x23 << 48 | 0x10 << 32 | 0x1234, 0x23 << 48 | 0x10 << 32 | 0x1234)
        .case("legacy EIP")?;
    keeps(arch::STAR, STAR, STAR)
}

/// Registers without effect are kept for reading back.
fn stored_and_ignored() -> Verdict {
    for index in [arch::CSTAR, arch::SFMASK, arch::SYSENTER_ESP, arch::SYSENTER_EIP] {
        keeps(index, 0x4_7700, 0x4_7700)?;
        keeps(index, 0, 0)?;
    }
    keeps(arch::SYSENTER_CS, 0x10, 0)?;
    keeps(arch::DEBUGCTL, 1, 0)?;
    keeps(arch::MTRR_DEF_TYPE, 0xc06, 0)?;
    // SFMASK is not applied: R11 at the kernel's entry is what the ABI says.
    abi::wrmsr(arch::SFMASK, 0x257fd5);
    let trap = Start::of(user::code::syscall()).flags(0x8d5).run();
    abi::wrmsr(arch::SFMASK, 0);
    equal("saved flags", trap.event.rflags, 0xad7)
}

/// FS_BASE and GS_BASE are the CPU's; KERNEL_GS_BASE is what the next entry from user mode loads.
fn bases() -> Verdict {
    const UPPER: u64 = 0xffff_ec00_0000_1000;
    for index in [arch::FS_BASE, arch::GS_BASE, arch::KERNEL_GS_BASE] {
        refuses(index, NON_CANONICAL)?;
        keeps(index, UPPER, UPPER)?;
        keeps(index, 0x7fff_ffff_f000, 0x7fff_ffff_f000)?;
        keeps(index, 0, 0)?;
    }
    abi::wrmsr(arch::GS_BASE, 0x1000);
    abi::wrmsr(arch::KERNEL_GS_BASE, UPPER);
    equal("GS base before an entry", abi::rdmsr(arch::GS_BASE), 0x1000)?;
    // By direct switch and by event.
    Start::of(user::code::syscall()).run();
    let direct = abi::rdmsr(arch::GS_BASE);
    abi::wrmsr(arch::GS_BASE, 0x1000);
    Start::of(user::code::undefined()).run();
    let event = abi::rdmsr(arch::GS_BASE);
    abi::wrmsr(arch::KERNEL_GS_BASE, 0);
    abi::wrmsr(arch::GS_BASE, 0);
    equal("GS base after SYSCALL", direct, UPPER)?;
    equal("GS base after an event", event, UPPER)
}

/// EFER is fixed; a write that asks for no more is accepted.
fn efer() -> Verdict {
    const EFER: u64 = 0xd01;
    reads(arch::EFER, EFER)?;
    keeps(arch::EFER, EFER, EFER)?;
    keeps(arch::EFER, 0x501, EFER).case("less")?;
    refuses(arch::EFER, EFER | 1 << 12).case("SVME")?;
    refuses(arch::EFER, EFER | 1 << 14).case("FFXSR")
}

/// Registers that only tell something.
fn read_only() -> Verdict {
    reads(arch::FEATURE_CONTROL, 1)?;
    refuses(arch::FEATURE_CONTROL, 5)?;
    reads(arch::APIC_BASE, 0xfee0_0d00)?;
    keeps(arch::APIC_BASE, 0xfee0_0d00, 0xfee0_0d00)?;
    refuses(arch::APIC_BASE, 0xfee0_0900).case("leaving x2APIC mode")?;
    reads(arch::TSC_ADJUST, 0)?;
    reads(arch::MTRR_CAP, 0)?;
    refuses(arch::MTRR_CAP, 8)?;
    refuses(arch::PLATFORM_ID, 1)?;
    reads(arch::PLATFORM_ID, 0)?;
    keeps(arch::BIOS_SIGN_ID, 1, 0)?;
    // Fast strings; no monitoring.
    keeps(arch::MISC_ENABLE, 0, 0x1801)
}

/// PAT takes memory types that exist.
fn pat() -> Verdict {
    const RESET: u64 = 0x0007_0406_0007_0406;
    reads(arch::PAT, RESET)?;
    keeps(arch::PAT, 0x0407_0506_0007_0106, 0x0407_0506_0007_0106)?;
    refuses(arch::PAT, 2).case("type 2 is reserved")?;
    refuses(arch::PAT, 8 << 56).case("type 8 is none")?;
    keeps(arch::PAT, RESET, RESET)
}

/// The TSC is the CPU's; writing moves nothing.
fn tsc() -> Verdict {
    for write in [arch::TSC, arch::TSC_ADJUST] {
        holds("WRMSR hypercall accepted", abi::wrmsr(write, 0))?;
        holds("WRMSR instruction accepted", wrmsr(write, 0))?;
    }
    let before = abi::tsc();
    let read = abi::rdmsr(arch::TSC);
    let trapped = rdmsr(arch::TSC).unwrap_or_default();
    within("RDMSR hypercall", read, before, abi::tsc())?;
    within("RDMSR instruction", trapped, read, abi::tsc())
}

/// TSC_AUX is the guest's own, and visible in both modes; absent without RDTSCP.
fn tsc_aux() -> Verdict {
    if abi::native_cpuid(0x8000_0001, 0)[3] >> 27 & 1 == 0 {
        absent(arch::TSC_AUX)?;
        return skip("this CPU has no RDTSCP");
    }
    reads(arch::TSC_AUX, 0)?;
    refuses(arch::TSC_AUX, 1 << 32)?;
    keeps(arch::TSC_AUX, 0x1234, 0x1234)?;
    let kernel = Probe::of(code::rdtscp()).run();
    let user = Start::of(user::code::rdtscp()).run();
    let has_rdpid = abi::native_cpuid(7, 0)[2] >> 22 & 1 == 1;
    let rdpid = has_rdpid.then(|| Probe::of(code::rdpid()).run());
    keeps(arch::TSC_AUX, 0, 0)?;
    kernel.finished()?;
    equal("RDTSCP in supervisor mode", kernel.registers.rcx, 0x1234)?;
    user.is_syscall(user::code::rdtscp().end)?;
    equal("RDTSCP in user mode", user.registers.rbx, 0x1234)?;
    equal("RDPID", rdpid.map_or(0x1234, |done| done.registers.rax), 0x1234)
}

/// The local APIC's registers: identity, defaults, what may be written.
fn x2apic_registers() -> Verdict {
    reads(x2apic::ID, 0)?;
    reads(x2apic::VERSION, 0x0005_0014)?;
    reads(x2apic::LDR, 1)?;
    for index in [x2apic::ID, x2apic::VERSION, x2apic::LDR, x2apic::PPR, x2apic::ISR0] {
        refuses(index, 0).case("read-only")?;
    }
    reads(x2apic::LVT_TIMER, 1 << 16)?;
    keeps(x2apic::LVT_LINT0, 0x1_0700, 0x1_0700)?;
    keeps(x2apic::SVR, 0x1ff, 0x1ff)?;
    keeps(x2apic::TPR, 0x50, 0x50)?;
    reads(x2apic::PPR, 0x50)?;
    keeps(x2apic::TPR, 0, 0)?;
    refuses(x2apic::TPR, 1 << 32).case("upper half")?;
    refuses(x2apic::EOI, 1).case("EOI takes 0")?;
    refuses(x2apic::SELF_IPI, 0x100).case("a vector has 8 bits")?;
    absent(x2apic::FIRST).case("0x800")?;
    absent(x2apic::LAST).case("0x8ff")?;
    keeps(arch::TSC_DEADLINE, 0, 0)
}
