//! Where L1 finds the instruction it emulates: across pages, just rewritten, not in RAM.

use super::{Group, Setting, check};
use crate::{
    kernel::code,
    paging::{self, A, D, P, W},
    privileged,
    probe::Probe,
    tap::{Verdict, equal},
};
use pv_abi::{cpuid, event::BP, msr::arch};

pub const GROUP: Group = Group {
    name: "fetch",
    setting: Setting::Anywhere,
    checks: &[
        check("across_pages", "INS-4 INS-6 DET-2", across_pages),
        check("device_access_across_pages", "DEV-3", device_access_across_pages),
        check("self_modifying", "INS-4 INS-6", self_modifying),
        check("two_mappings", "INS-4 INS-6", two_mappings),
    ],
};

const INT3: u8 = 0xcc;

/// Two pages next to each other whose frames are not.
fn two_pages() -> u64 {
    paging::set_area(1, paging::frame(7) | P | W | A | D);
    paging::set_area(0, paging::frame(3) | P | W | A | D)
}

/// Puts `bytes` and INT3 to `offset` of the two pages.
fn write(offset: u64, bytes: &[u8]) {
    for (at, &byte) in (offset..).zip(bytes.iter().chain(&[INT3])) {
        let frame = if at < 4096 { paging::frame(3) } else { paging::frame(7) - 4096 };
        paging::write_bytes(frame + at, &[byte]);
    }
}

/// Emulated instructions may begin on one page and end on another.
fn across_pages() -> Verdict {
    let base = two_pages();
    for offset in 4096 - 10..=4096 {
        write(offset, &cpuid::SYNTHETIC);
        let done = Probe::at(base + offset).with(|r| r.rax = cpuid::KVM_BASE.into()).run();
        done.event().is(BP, 0, base + offset + 11)?;
        equal("EBX", done.registers.rbx, cpuid::KVM_SIGNATURE[0].into())?;
    }
    for offset in 4096 - 2..=4096 {
        write(offset, &[0x0f, 0x32]);
        let done = Probe::at(base + offset).with(|r| r.rcx = arch::EFER.into()).run();
        done.event().is(BP, 0, base + offset + 3)?;
        equal("EAX", done.registers.rax, 0xd01)?;
        // mov rax, cr4
        write(offset, &[0x0f, 0x20, 0xe0]);
        let done = Probe::at(base + offset).run();
        done.event().is(BP, 0, base + offset + 4)?;
        equal("PAE in CR4", done.registers.rax & 0x20, 0x20)?;
    }
    Ok(())
}

/// So may instructions that access a device.
fn device_access_across_pages() -> Verdict {
    let base = two_pages();
    let device = paging::set_area(2, 0xfec0_0000 | P | W | A | D);
    for offset in 4096 - 7..=4096 {
        // mov dword ptr [rbx + 0], 1; mov eax, [rbx + 0x10]
        write(offset, &[0xc7, 0x43, 0, 1, 0, 0, 0, 0x8b, 0x43, 0x10]);
        let done = Probe::at(base + offset).with(|r| r.rbx = device).run();
        done.event().is(BP, 0, base + offset + 11)?;
        equal("EAX", done.registers.rax, 0x0017_0011)?;
    }
    Ok(())
}

/// An instruction that was rewritten just before it runs is emulated as it is now.
fn self_modifying() -> Verdict {
    let base = two_pages();
    // mov byte ptr [rip + 1], 0x32; wrmsr, which becomes rdmsr
    write(0, &[0xc6, 0x05, 1, 0, 0, 0, 0x32, 0x0f, 0x30]);
    let done = Probe::at(base).with(|r| r.rcx = arch::EFER.into()).run();
    done.event().is(BP, 0, base + 10)?;
    equal("EAX", done.registers.rax, 0xd01)?;
    // mov byte ptr [rip + 2], 0xe0; mov rax, cr0, which becomes mov rax, cr4
    write(0, &[0xc6, 0x05, 2, 0, 0, 0, 0xe0, 0x0f, 0x20, 0xc0]);
    let cr4 = Probe::of(privileged::kernel::code::read_cr4()).run().registers.rax;
    let done = Probe::at(base).run();
    done.event().is(BP, 0, base + 11)?;
    equal("RAX", done.registers.rax, cr4)
}

/// A change through another mapping of the page counts as well, and so does a page that moved.
fn two_mappings() -> Verdict {
    let base = two_pages();
    write(0, &[0x0f, 0x32]);
    let probe = Probe::at(base).with(|r| r.rcx = arch::EFER.into());
    equal("EAX", probe.run().registers.rax, 0xd01)?;
    // mov rax, cr0
    write(0, &[0x0f, 0x20, 0xc0]);
    let cr0 = Probe::of(privileged::kernel::code::read_cr0()).run().registers.rax;
    equal("RAX", probe.run().registers.rax, cr0)?;
    paging::write_code(paging::frame(5), code::read_cr4_int3());
    paging::set_area(0, paging::frame(5) | P | A | D);
    let cr4 = Probe::of(privileged::kernel::code::read_cr4()).run().registers.rax;
    equal("RAX", probe.run().registers.rax, cr4)
}
