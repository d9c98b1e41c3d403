//! How a guest finds out what it runs on.

use super::{Group, Setting, check};
use crate::{
    abi, clock,
    counters::{Counters, Exit},
    entry, extension,
    kernel::code,
    probe::Probe,
    registers::{Equal, Registers},
    tap::{Verdict, equal, holds},
    user::{self, Start},
};
use pv_abi::{
    cpuid,
    event::{self, RFLAGS_FORCED},
    ext::{self, Features, notes, window},
    selectors::{USER_CS, USER_DS},
};

pub const GROUP: Group = Group {
    name: "detect",
    setting: Setting::Anywhere,
    checks: &[
        check("start_state", "DET-1 SEL-1", start_state),
        check("kvm_leaves", "DET-4", kvm_leaves),
        check("roost_leaves", "EXT-4 VER-1", roost_leaves),
        check("always_set", "DET-5", always_set),
        check("leaf_1", "DET-6", leaf_1),
        check("leaf_7", "DET-7 INS-3", leaf_7),
        check("other_leaves", "DET-8", other_leaves),
        check("empty_leaves", "DET-9", empty_leaves),
        check("synthetic_registers", "DET-2", synthetic_registers),
        check("synthetic_needs_both", "DET-2 INS-14", synthetic_needs_both),
        check("synthetic_in_user_mode", "DET-2", synthetic_in_user_mode),
        check("native_cpuid", "DET-3 INS-19", native_cpuid),
    ],
};

/// A kernel starts at CPL3 with interrupts on, with the fixed selectors.
fn start_state() -> Verdict {
    equal("RFLAGS at start", entry::start().rflags & 0x3202, RFLAGS_FORCED)?;
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
    let clock = cpuid::KVM_FEATURE_CLOCKSOURCE2 | cpuid::KVM_FEATURE_CLOCKSOURCE_STABLE;
    let wanted = clock | cpuid::KVM_FEATURE_STEAL_TIME;
    equal("features", abi::cpuid(cpuid::KVM_BASE + 1, 0)[0].into(), wanted.into())?;
    let [tsc_khz, bus_khz, ..] = abi::cpuid(cpuid::KVM_TIMING, 0);
    equal("TSC kHz", tsc_khz.into(), clock::tsc_hz() / 1000)?;
    holds("a bus rate", bus_khz != 0)?;
    let [eax, ebx, ecx, edx] = abi::cpuid(cpuid::KVM_BASE + 2, 0);
    holds("a leaf that is not there", [eax, ebx, ecx, edx] == [0; 4])
}

/// Roost's own leaves: signature, version, what is offered and enabled, limits.
fn roost_leaves() -> Verdict {
    extension::needed()?;
    let [max, ..] = abi::cpuid(cpuid::ROOST_BASE, 0);
    holds("highest leaf", max >= cpuid::ROOST_MAX)?;
    let [version, offered, enabled, reserved] = abi::cpuid(cpuid::ROOST_BASE + 1, 0);
    equal("major version", (version >> 16).into(), (ext::VERSION >> 16).into())?;
    if version == ext::VERSION {
        holds("no unknown feature", Features::from_bits(offered).is_some())?;
        equal("reserved", reserved.into(), 0)?;
    }
    equal("enabled features", enabled.into(), 0)?;
    let offered = Features::from_bits_retain(offered);
    holds("no VM window for native guests", !offered.contains(Features::VM_WINDOW))?;
    holds("no notes without a ring", !offered.contains(Features::NOTES))?;
    let [vcpus, ring, ..] = abi::cpuid(cpuid::ROOST_BASE + 2, 0);
    equal("most vCPUs", vcpus.into(), window::MAX_VCPUS as u64)?;
    equal("note ring", ring.into(), notes::ENTRIES as u64)
}

/// Bits of a register, with their names.
type Bits = &'static [(u32, &'static str)];

fn all_are(register: u32, bits: Bits, value: u32) -> Verdict {
    bits.iter().try_for_each(|&(bit, what)| equal(what, (register >> bit & 1).into(), value.into()))
}

/// Features that every guest has.
fn always_set() -> Verdict {
    const ECX1: Bits = &[(17, "PCID"), (21, "x2APIC"), (24, "TSC_DEADLINE"), (31, "HYPERVISOR")];
    all_are(abi::cpuid(1, 0)[2], ECX1, 1)?;
    all_are(abi::cpuid(7, 0)[1], &[(7, "SMEP")], 1)
}

/// Leaf 1: what is hidden, and the vCPU's number.
fn leaf_1() -> Verdict {
    let [_, ebx, ecx, edx] = abi::cpuid(1, 0);
    equal("APIC id", (ebx >> 24).into(), 0)?;
    all_are(ecx, &[(3, "MONITOR"), (5, "VMX"), (6, "SMX"), (15, "PDCM")], 0)?;
    all_are(edx, &[(21, "DS"), (22, "ACPI"), (29, "TM")], 0)
}

/// Leaf 7: what is hidden, and FSGSBASE as the CPU has it.
fn leaf_7() -> Verdict {
    const EBX: Bits = &[(20, "SMAP"), (14, "MPX"), (12, "RDT-M"), (15, "RDT-A"), (25, "PT")];
    const ECX: Bits = &[
        (2, "UMIP"),
        (3, "PKU"),
        (4, "OSPKE"),
        (5, "WAITPKG"),
        (7, "CET SS"),
        (16, "LA57"),
        (24, "bus-lock detection"),
        (31, "PKS"),
    ];
    const EDX: Bits = &[
        (5, "UINTR"),
        (20, "CET IBT"),
        (22, "AMX bf16"),
        (24, "AMX tile"),
        (25, "AMX int8"),
        (26, "SPEC_CTRL"),
        (27, "STIBP"),
        (28, "L1D_FLUSH"),
        (29, "ARCH_CAPABILITIES"),
        (30, "CORE_CAPABILITIES"),
        (31, "SSBD"),
    ];
    let [_, ebx, ecx, edx] = abi::cpuid(7, 0);
    all_are(ebx, EBX, 0)?;
    all_are(ecx, ECX, 0)?;
    all_are(edx, EDX, 0)?;
    let native = abi::native_cpuid(7, 0)[1];
    equal("FSGSBASE as the CPU has it", (ebx & 1).into(), (native & 1).into())
}

/// What is hidden elsewhere.
fn other_leaves() -> Verdict {
    all_are(abi::cpuid(0xd, 1)[0], &[(3, "XSAVES")], 0)?;
    let extended = abi::cpuid(0x8000_0001, 0)[2];
    all_are(extended, &[(2, "SVM"), (10, "IBS"), (13, "WDT"), (15, "LWP")], 0)?;
    equal("bits 23 to 28", (extended >> 23 & 0x3f).into(), 0)?;
    const EBX: Bits = &[(12, "IBPB"), (14, "IBRS"), (15, "STIBP"), (24, "SSBD"), (25, "VIRT_SSBD")];
    all_are(abi::cpuid(0x8000_0008, 0)[1], EBX, 0)
}

/// Leaves that are empty, and one core with one thread.
fn empty_leaves() -> Verdict {
    for leaf in [0xa, 0x8000_000a, 0x8000_001f] {
        holds("all zero", abi::cpuid(leaf, 0) == [0; 4])?;
    }
    for leaf in [0xb, 0x1f] {
        for subleaf in 0..3 {
            holds("no level", abi::cpuid(leaf, subleaf) == [0, 0, subleaf, 0])?;
        }
    }
    Ok(())
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
