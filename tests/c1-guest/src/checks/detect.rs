//! How a guest finds out what it runs on.

use super::Group;
use crate::{
    abi, clock,
    counters::{Counters, Exit},
    entry,
    kernel::code,
    probe::Probe,
    registers::Registers,
    tap::{Verdict, equal, holds},
    user::{self, Start},
};
use core::sync::atomic::Ordering::Relaxed;
use pv_abi::{
    cpuid,
    event::{self, RFLAGS_FORCED},
    ext::{self, Features, notes, window},
    selectors::{USER_CS, USER_DS},
};

pub const GROUP: Group = Group {
    name: "detect",
    checks: &[
        ("start_state", start_state),
        ("kvm_leaves", kvm_leaves),
        ("roost_leaves", roost_leaves),
        ("features", features),
        ("synthetic_registers", synthetic_registers),
        ("synthetic_needs_both", synthetic_needs_both),
        ("synthetic_in_user_mode", synthetic_in_user_mode),
        ("native_cpuid", native_cpuid),
    ],
};

/// A kernel starts at CPL3 with interrupts on, with the fixed selectors.
fn start_state() -> Verdict {
    equal("RFLAGS at start", entry::START_FLAGS.load(Relaxed) & 0x3202, RFLAGS_FORCED)?;
    let done = Probe::of(code::selectors()).run();
    done.finished()?;
    equal("CS", done.registers.rax, USER_CS.into())?;
    equal("SS", done.registers.rbx, USER_DS.into())?;
    equal("IF and IOPL", done.registers.rcx & 0x3200, 0x200)
}

/// The KVM signature is exactly at 0x40000000, with a clock and the rates of TSC and APIC.
fn kvm_leaves() -> Verdict {
    let [max, ebx, ecx, edx] = abi::cpuid(cpuid::KVM_BASE, 0);
    holds("signature", [ebx, ecx, edx] == cpuid::KVM_SIGNATURE)?;
    equal("highest leaf", max.into(), cpuid::KVM_TIMING.into())?;
    let wanted = cpuid::KVM_FEATURE_CLOCKSOURCE2 | cpuid::KVM_FEATURE_CLOCKSOURCE_STABLE;
    equal("features", abi::cpuid(cpuid::KVM_BASE + 1, 0)[0].into(), wanted.into())?;
    let [tsc_khz, bus_khz, ..] = abi::cpuid(cpuid::KVM_TIMING, 0);
    equal("TSC kHz", tsc_khz.into(), clock::tsc_hz() / 1000)?;
    holds("a bus rate", bus_khz != 0)?;
    let [eax, ebx, ecx, edx] = abi::cpuid(cpuid::KVM_BASE + 2, 0);
    holds("a leaf that is not there", [eax, ebx, ecx, edx] == [0; 4])
}

/// Roost's own leaves: signature, version, what is offered and enabled, limits.
fn roost_leaves() -> Verdict {
    let [max, ebx, ecx, edx] = abi::cpuid(cpuid::ROOST_BASE, 0);
    holds("signature", [ebx, ecx, edx] == cpuid::ROOST_SIGNATURE)?;
    equal("highest leaf", max.into(), cpuid::ROOST_MAX.into())?;
    let [version, offered, enabled, reserved] = abi::cpuid(cpuid::ROOST_BASE + 1, 0);
    equal("version", version.into(), ext::VERSION.into())?;
    holds("no unknown feature", Features::from_bits(offered).is_some())?;
    equal("enabled features", enabled.into(), 0)?;
    equal("reserved", reserved.into(), 0)?;
    let offered = Features::from_bits_retain(offered);
    holds("no VM window for native guests", !offered.contains(Features::VM_WINDOW))?;
    holds("no notes without a ring", !offered.contains(Features::NOTES))?;
    let [vcpus, ring, ..] = abi::cpuid(cpuid::ROOST_BASE + 2, 0);
    equal("most vCPUs", vcpus.into(), window::MAX_VCPUS as u64)?;
    equal("note ring", ring.into(), notes::ENTRIES as u64)
}

/// Feature bits that L1 sets, clears, or shows as the CPU has them.
fn features() -> Verdict {
    let [_, ebx1, ecx1, _] = abi::cpuid(1, 0);
    equal("APIC id", (ebx1 >> 24).into(), 0)?;
    for (bit, what) in [(17, "PCID"), (21, "x2APIC"), (24, "TSC_DEADLINE"), (31, "HYPERVISOR")] {
        holds(what, ecx1 >> bit & 1 == 1)?;
    }
    for (bit, what) in [(3, "MONITOR"), (5, "VMX"), (6, "SMX"), (15, "PDCM")] {
        equal(what, (ecx1 >> bit & 1).into(), 0)?;
    }
    let [_, ebx7, ecx7, edx7] = abi::cpuid(7, 0);
    equal("SMEP", (ebx7 >> 7 & 1).into(), 1)?;
    equal("SMAP", (ebx7 >> 20 & 1).into(), 0)?;
    for (bit, what) in [(2, "UMIP"), (3, "PKU"), (7, "CET SS"), (16, "LA57"), (31, "PKS")] {
        equal(what, (ecx7 >> bit & 1).into(), 0)?;
    }
    for (bit, what) in [(20, "CET IBT"), (26, "SPEC_CTRL"), (31, "SSBD")] {
        equal(what, (edx7 >> bit & 1).into(), 0)?;
    }
    let native = abi::native_cpuid(7, 0);
    equal("FSGSBASE as the CPU has it", (ebx7 & 1).into(), (native[1] & 1).into())?;
    equal("SVM", (abi::cpuid(0x8000_0001, 0)[2] >> 2 & 1).into(), 0)
}

/// The synthetic CPUID writes four registers, whole, and nothing else; one exit each.
fn synthetic_registers() -> Verdict {
    let probe = Probe::of(code::synthetic_cpuid()).with(|r| {
        *r = Registers { rsp: r.rsp, ..Registers::pattern() };
        r.rax = 0xffff_ffff_0000_0000 | u64::from(cpuid::ROOST_BASE);
        r.rcx = 0xffff_ffff_0000_0000;
    });
    let done = probe.run();
    done.finished()?;
    let [eax, ebx, ecx, edx] = abi::cpuid(cpuid::ROOST_BASE, 0).map(u64::from);
    let expected = Registers { rax: eax, rbx: ebx, rcx: ecx, rdx: edx, ..probe.registers };
    done.registers.equal(&expected)?;
    Counters::of(|| abi::cpuid(7, 0)).exactly(&[(Exit::SyntheticCpuid, 1)])
}

/// INVLPG of that address without CPUID behind it is just INVLPG.
fn synthetic_needs_both() -> Verdict {
    let probe = Probe::of(code::half_synthetic()).with(|r| r.rax = 0x1234);
    let done = probe.run();
    done.finished()?;
    done.registers.equal(&probe.registers)?;
    let seen = Counters::of(|| probe.run());
    seen.exactly(&[(Exit::Emulated, 1)])
}

/// User mode gets a plain #GP for it.
fn synthetic_in_user_mode() -> Verdict {
    let code = user::code::synthetic_cpuid();
    Start::of(code).run().is(event::GP, 0, code.start)?;
    let seen = Counters::of(|| Start::of(code).run());
    seen.exactly(&[(Exit::GeneralProtection, 1)])
}

/// The plain CPUID does not enter L1, or it answers as the synthetic one does, in both modes.
fn native_cpuid() -> Verdict {
    let seen = Counters::of(|| Probe::of(code::cpuid()).run());
    if abi::native_cpuid(cpuid::ROOST_BASE, 0)[1..] != cpuid::ROOST_SIGNATURE {
        return seen.exactly(&[(Exit::PageFaultFilled, 0)]);
    }
    seen.exactly(&[(Exit::Cpuid, 1)])?;
    for leaf in [0, 1, 7, 0xb, 0x8000_0001, cpuid::KVM_BASE, cpuid::ROOST_BASE + 1] {
        let (native, synthetic) = (abi::native_cpuid(leaf, 0), abi::cpuid(leaf, 0));
        for (native, synthetic) in native.into_iter().zip(synthetic) {
            equal("a register", native.into(), synthetic.into())?;
        }
    }
    let mut start = Start::of(user::code::cpuid());
    start.registers.rax = cpuid::ROOST_BASE.into();
    let trap = start.run();
    equal("in user mode", trap.registers.rbx, cpuid::ROOST_SIGNATURE[0].into())
}
