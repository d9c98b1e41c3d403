//! LOAD_TLS and LOAD_GS: descriptors that a guest brings.

use super::{Group, Setting, check};
use crate::{
    abi,
    kernel::code,
    probe::Probe,
    tap::{Case, Verdict, equal, holds},
    user::{self, Start},
};
use pv_abi::{hypercall as nr, msr::arch, selectors};

pub const GROUP: Group = Group {
    name: "segments",
    setting: Setting::Anywhere,
    checks: &[
        check("fixed_selectors", "SEL-1 SEL-2 SEL-4", fixed_selectors),
        check("tls_slots", "HC-12 SEL-2", tls_slots),
        check("tls_sanitizing", "HC-12", tls_sanitizing),
        check("tls_bases", "HC-12", tls_bases),
        check("load_gs", "HC-9", load_gs),
        check("load_gs_refused", "HC-9", load_gs_refused),
    ],
};

/// Selectors of the three slots.
pub const TLS: [u16; 3] = [0x63, 0x6b, 0x73];

/// A descriptor: access byte and the four flag bits G, D, L, AVL.
pub const fn descriptor(base: u32, limit: u32, access: u8, flags: u8) -> u64 {
    limit as u64 & 0xffff
        | (base as u64 & 0xff_ffff) << 16
        | (access as u64) << 40
        | (limit as u64 >> 16 & 0xf) << 48
        | (flags as u64) << 52
        | (base as u64 >> 24) << 56
}

/// Present, DPL 3, writable data.
pub const DATA: u8 = 0xf2;
/// G and D.
pub const FLAT: u8 = 0xc;

/// Access rights and limit as LAR and LSL see them; `None` where there is nothing to see.
pub fn look(selector: u16) -> (Option<u64>, Option<u64>) {
    let found = Probe::of(code::lar_lsl()).with(|r| r.rbx = selector.into()).run().registers;
    let if_set = |flag: u64, value: u64| (flag & 1 == 1).then_some(value);
    (if_set(found.rcx, found.rax & 0xf0_ff00), if_set(found.rdi, found.rdx))
}

fn load_tls(descriptors: [u64; 3]) -> u64 {
    let [first, second, third] = descriptors;
    abi::call(nr::LOAD_TLS, [first, second, third, 0])
}

/// What a guest finds in the GDT: code and data of its own, nothing else that it could load.
fn fixed_selectors() -> Verdict {
    equal("user code", look(selectors::USER_CS).0.unwrap_or(0), 0xa0_fb00)?;
    equal("32-bit user code", look(selectors::USER32_CS).0.unwrap_or(0), 0xc0_fb00)?;
    equal("user data", look(selectors::USER_DS).0.unwrap_or(0), 0xc0_f300)?;
    for selector in [0x0b, 0x13, 0x1b, 0x3b, 0x43, 0x53, 0x63, 0x6b, 0x73, 0x8b, 0xfffb] {
        holds("a selector that is not visible", look(selector).0.is_none())?;
    }
    equal("vCPU number by LSL", look(selectors::VCPU_INDEX).1.unwrap_or(1), 0)?;
    equal("CPU node by LSL", look(0x7b).1.unwrap_or(1), 0)
}

/// Three descriptors land in three slots, and only there.
fn tls_slots() -> Verdict {
    let with_limit = |limit| descriptor(0, limit, DATA, FLAT);
    equal("result", load_tls([with_limit(1), with_limit(2), with_limit(3)]), 0)?;
    let found = TLS.map(|selector| look(selector).1.unwrap_or(0));
    load_tls([0; 3]);
    for (limit, found) in (1..).zip(found) {
        equal("limit", found, limit << 12 | 0xfff)?;
    }
    holds("gone again", TLS.into_iter().all(|selector| look(selector).0.is_none()))
}

/// What L1 makes of a descriptor: DPL 3 data, accessed, not 64-bit; or nothing.
fn tls_sanitizing() -> Verdict {
    let rights = |access: u64, flags: u64| Some(flags << 20 | access << 8);
    let cases = [
        ("writable data", descriptor(0, 0xfffff, DATA, FLAT), rights(0xf3, 0xc)),
        ("read-only data", descriptor(0, 0xfffff, 0xf0, FLAT), rights(0xf1, 0xc)),
        ("DPL 0", descriptor(0, 0xfffff, 0x92, FLAT), rights(0xf3, 0xc)),
        ("a system descriptor", descriptor(0, 0xfffff, 0x82, FLAT), rights(0xf3, 0xc)),
        ("the L bit", descriptor(0, 0xfffff, DATA, 0xe), rights(0xf3, 0xc)),
        ("a byte limit", descriptor(0, 0x1234, DATA, 4), rights(0xf3, 4)),
        ("expand-down", descriptor(0, 0, 0xf6, FLAT), rights(0xf7, 0xc)),
        ("not present", descriptor(0, 0xfffff, 0x72, FLAT), None),
        ("code", descriptor(0, 0xfffff, 0xfa, FLAT), None),
        ("a call gate's type", descriptor(0, 0, 0x8c, FLAT), None),
        ("16-bit", descriptor(0, 0xffff, DATA, 0), None),
        ("zero", 0, None),
    ];
    for (name, value, expected) in cases {
        load_tls([value, 0, 0]);
        let (found, _) = look(TLS[0]);
        load_tls([0; 3]);
        equal("access rights", found.unwrap_or(0), expected.unwrap_or(0)).case(name)?;
    }
    Ok(())
}

/// Loading FS with such a selector brings its base, in either mode.
fn tls_bases() -> Verdict {
    load_tls([0, descriptor(0x1234_5000, 0xfffff, DATA, FLAT), 0]);
    let kernel = Probe::of(code::load_fs()).with(|r| r.rbx = TLS[1].into()).run();
    let base = abi::rdmsr(arch::FS_BASE);
    abi::wrmsr(arch::FS_BASE, 0);
    let user = Start::of(user::code::load_fs()).with(|r| r.rbx = TLS[1].into()).run();
    let again = abi::rdmsr(arch::FS_BASE);
    load_tls([0; 3]);
    Probe::of(code::load_fs()).run();
    abi::wrmsr(arch::FS_BASE, 0);
    kernel.finished()?;
    user.is_syscall(user::code::load_fs().end)?;
    equal("base in supervisor mode", base, 0x1234_5000)?;
    equal("base in user mode", again, 0x1234_5000)
}

/// LOAD_GS returns the base that the selector brings, and keeps the kernel's.
fn load_gs() -> Verdict {
    const KERNEL: u64 = 0xffff_ec00_0000_2000;
    load_tls([descriptor(0x4321_0000, 0xfffff, DATA, FLAT), 0, 0]);
    abi::wrmsr(arch::GS_BASE, KERNEL);
    let base = abi::call1(nr::LOAD_GS, TLS[0].into());
    let kept = abi::rdmsr(arch::GS_BASE);
    let selector = Probe::of(code::read_gs()).run().registers.rax;
    let data = abi::call1(nr::LOAD_GS, selectors::USER_DS.into());
    let null = abi::call1(nr::LOAD_GS, 0);
    let kept_again = abi::rdmsr(arch::GS_BASE);
    abi::wrmsr(arch::GS_BASE, 0);
    load_tls([0; 3]);
    equal("base", base, 0x4321_0000)?;
    equal("kernel's base", kept, KERNEL)?;
    equal("selector", selector, TLS[0].into())?;
    equal("base of flat data", data, 0)?;
    equal("base of null", null, 0)?;
    equal("kernel's base at the end", kept_again, KERNEL)
}

/// What cannot be loaded, or asks for a privilege, becomes the null selector.
fn load_gs_refused() -> Verdict {
    load_tls([descriptor(0x4321_0000, 0xfffff, DATA, FLAT), 0, 0]);
    let mut verdict = Ok(());
    let cases = [
        ("no descriptor", 0x6b),
        ("beyond the table", 0xfffb),
        ("RPL 0", 0x60),
        ("the TSS", 0x43),
        ("L1's data", 0x13),
        ("the local table", 0x67),
    ];
    for (name, selector) in cases {
        abi::call1(nr::LOAD_GS, TLS[0].into());
        let base = abi::call1(nr::LOAD_GS, selector);
        let loaded = Probe::of(code::read_gs()).run().registers.rax;
        verdict = verdict
            .and(equal("base", base, 0).case(name))
            .and(equal("selector", loaded, 0).case(name));
    }
    abi::call1(nr::LOAD_GS, 0);
    load_tls([0; 3]);
    verdict
}
