//! The local descriptor table (extension DESCRIPTORS): loading, use, what is dropped.

use super::{
    Group, Setting, check,
    segments::{DATA, FLAT, descriptor, look},
};
use crate::{
    abi, kernel,
    paging::{self, A, P, U, W},
    probe::Probe,
    tap::{Case, Verdict, equal, holds},
    user::{self, Start},
};
use core::sync::atomic::Ordering::Relaxed;
use pv_abi::{
    event::{INT80, NP, SS},
    ext::{Features, call},
    hypercall::{self, EFAULT, EINVAL},
    msr::arch,
};

pub const GROUP: Group = Group {
    name: "local_table",
    setting: Setting::Feature(Features::DESCRIPTORS),
    checks: &[
        check("cpu_node", "FEAT-4 XHC-10 SEL-2", cpu_node),
        check("load_and_unload", "XHC-9 SEL-4", load_and_unload),
        check("copied", "XHC-9", copied),
        check("sanitizing", "XHC-9", sanitizing),
        check("bases", "XHC-9", bases),
        check("user_gs", "XHC-9 HC-9", user_gs),
        check("absent_segments", "XHC-9 EVT-1 EVT-2", absent_segments),
        check("code", "XHC-9 RET-1", code),
        check("large", "XHC-9", large),
        check("refused", "XHC-9", refused),
    ],
};

/// Selector of entry `index`.
const fn selector(index: u64) -> u16 {
    (index << 3 | 7) as u16
}

/// Writes descriptors to check memory and loads them.
fn load(descriptors: &[u64]) -> Verdict {
    for (index, value) in descriptors.iter().enumerate() {
        paging::word(paging::frame(0) + 8 * index as u64).store(*value, Relaxed);
    }
    let result = abi::call(call::LOAD_LDT, [paging::frame(0), descriptors.len() as u64, 0, 0]);
    equal("LOAD_LDT", result, 0)
}

fn unload() -> Verdict {
    Probe::of(kernel::code::load_fs()).run().finished()?;
    abi::wrmsr(arch::FS_BASE, 0);
    equal("unloading", abi::call(call::LOAD_LDT, [0; 4]), 0)
}

/// SET_CPUNODE: the limit of slot 15 is what the guest says, and only that.
fn cpu_node() -> Verdict {
    equal("SET_CPUNODE", abi::call1(call::SET_CPUNODE, descriptor(0x1234, 0xabcde, 0x9a, 0xf)), 0)?;
    let (rights, limit) = look(0x7b);
    equal("limit", limit.unwrap_or(0), 0xabcde)?;
    equal("access rights", rights.unwrap_or(0), 0xf100)?;
    equal("back", abi::call1(call::SET_CPUNODE, 0), 0)
}

/// Entries are visible while the table is loaded.
fn load_and_unload() -> Verdict {
    load(&[0, descriptor(0, 7, DATA, FLAT)])?;
    let (null, present, behind) = (look(selector(0)).0, look(selector(1)).1, look(selector(2)).0);
    unload()?;
    holds("an empty entry", null.is_none())?;
    equal("limit", present.unwrap_or(0), 0x7fff)?;
    holds("behind the end", behind.is_none())?;
    holds("gone", look(selector(1)).0.is_none())
}

/// The guest's own memory is read once: changing it later changes nothing.
fn copied() -> Verdict {
    load(&[descriptor(0, 7, DATA, FLAT)])?;
    paging::word(paging::frame(0)).store(descriptor(0, 9, 0x9a, 0xa), Relaxed);
    let limit = look(selector(0)).1;
    unload()?;
    equal("limit", limit.unwrap_or(0), 0x7fff)
}

/// DPL 3 code or data, never 64-bit code, never a gate, never a 16-bit stack.
fn sanitizing() -> Verdict {
    let rights = |access: u64, flags: u64| Some(flags << 20 | access << 8);
    for (name, value, expected) in [
        ("data", descriptor(0, 0, DATA, FLAT), rights(0xf3, 0xc)),
        ("DPL 0 data", descriptor(0, 0, 0x92, FLAT), rights(0xf3, 0xc)),
        ("32-bit code", descriptor(0, 0, 0xfa, FLAT), rights(0xfb, 0xc)),
        ("DPL 0 code", descriptor(0, 0, 0x9a, FLAT), rights(0xfb, 0xc)),
        ("conforming code", descriptor(0, 0, 0x9e, FLAT), rights(0xff, 0xc)),
        ("64-bit code", descriptor(0, 0, 0xfa, 0xa), rights(0xfb, 8)),
        ("16-bit code", descriptor(0, 0, 0xfa, 0), rights(0xfb, 0)),
        ("16-bit read-only data", descriptor(0, 0, 0xf0, 0), rights(0xf1, 0)),
        ("16-bit writable data", descriptor(0, 0, DATA, 0), None),
        ("16-bit expand-down data", descriptor(0, 0, 0xf6, 0), None),
        ("absent data", descriptor(0, 0, 0x72, FLAT), rights(0x73, 0xc)),
        ("a call gate", descriptor(0, 0, 0xec, 0), None),
        ("an interrupt gate", descriptor(0, 0, 0xee, 0), None),
        ("a task gate", descriptor(0, 0, 0xe5, 0), None),
        ("a TSS", descriptor(0, 0x67, 0xe9, 0), None),
        ("a table", descriptor(0, 0x67, 0xe2, 0), None),
    ] {
        load(&[0, value])?;
        let found = look(selector(1)).0;
        unload()?;
        equal("access rights", found.unwrap_or(0), expected.unwrap_or(0)).case(name)?;
    }
    Ok(())
}

/// Data segments bring their base, in either mode.
fn bases() -> Verdict {
    load(&[descriptor(0x1234_5000, 0xfffff, DATA, FLAT)])?;
    Probe::of(kernel::code::load_fs()).with(|r| r.rbx = selector(0).into()).run().finished()?;
    let kernel = abi::rdmsr(arch::FS_BASE);
    abi::wrmsr(arch::FS_BASE, 0);
    let trap = Start::of(user::code::load_fs()).with(|r| r.rbx = selector(0).into()).run();
    let user = abi::rdmsr(arch::FS_BASE);
    unload()?;
    trap.is_syscall(user::code::load_fs().end)?;
    equal("base in supervisor mode", kernel, 0x1234_5000)?;
    equal("base in user mode", user, 0x1234_5000)
}

/// LOAD_GS takes selectors of the table, and null for what cannot be loaded.
fn user_gs() -> Verdict {
    load(&[
        0,
        descriptor(0x1234_5000, 0xfffff, DATA, FLAT),
        descriptor(0x1234_5000, 0xfffff, 0x72, FLAT),
        descriptor(0x1234_5000, 0xfffff, 0xf8, FLAT),
    ])?;
    let [data, absent, execute_only, behind] =
        [1, 2, 3, 4].map(|index| abi::call1(hypercall::LOAD_GS, selector(index).into()));
    abi::call1(hypercall::LOAD_GS, 0);
    unload()?;
    equal("base", data, 0x1234_5000)?;
    equal("base of absent data", absent, 0)?;
    equal("base of code that cannot be read", execute_only, 0)?;
    equal("base of what is behind the end", behind, 0)
}

/// #NP and #SS with the selector as error code.
fn absent_segments() -> Verdict {
    load(&[0, descriptor(0, 0xfffff, 0x72, FLAT)])?;
    let error = u64::from(selector(1)) & !3;
    let registers = |r: &mut crate::registers::Registers| r.rbx = selector(1).into();
    let data = Start::of(user::code::load_fs()).with(registers).run();
    let stack = Start::of(user::code::load_ss()).with(registers).run();
    let kernel = Probe::of(kernel::code::load_fs()).with(registers).run().event();
    unload()?;
    data.is(NP, error, user::code::load_fs().start)?;
    stack.is(SS, error, user::code::load_ss().start)?;
    kernel.is(NP, error, kernel::code::load_fs().start)
}

/// 32-bit code in a segment with a base of its own runs, and is saved with its selector.
fn code() -> Verdict {
    let address = paging::set_area(0, paging::frame(2) | P | W | U | A);
    // inc eax; int 0x80
    paging::write_bytes(paging::frame(2), &[0x40, 0xcd, 0x80]);
    load(&[0, descriptor(address as u32, 0xfff, 0xfa, 4)])?;
    let selectors = 0x002b_0000 | u32::from(selector(1));
    let trap = Start { selectors, ..Start::at(0) }.with(|r| r.rax = 1).run();
    unload()?;
    trap.is(INT80, 0, 3)?;
    equal("EAX", trap.registers.rax, 2)?;
    equal("selectors", trap.event.selectors.into(), selectors.into())
}

/// A table of several pages.
fn large() -> Verdict {
    for index in 0..1024 {
        let value = descriptor(0, index, DATA, 4);
        paging::word(paging::frame(0) + 8 * u64::from(index)).store(value, Relaxed);
    }
    equal("LOAD_LDT", abi::call(call::LOAD_LDT, [paging::frame(0), 1024, 0, 0]), 0)?;
    let found = [0, 511, 512, 1023].map(|index| (index, look(selector(index)).1));
    unload()?;
    for (index, limit) in found {
        equal("limit", limit.unwrap_or(u64::MAX), index)?;
    }
    Ok(())
}

/// More entries than a table holds, or a table that cannot be read.
fn refused() -> Verdict {
    equal("8193 entries", abi::call(call::LOAD_LDT, [paging::frame(0), 8193, 0, 0]), EINVAL)?;
    equal("all of them", abi::call(call::LOAD_LDT, [paging::frame(0), u64::MAX, 0, 0]), EINVAL)?;
    for address in [paging::area(9), 1 << 47, 0xffff_8080_0000_3000] {
        equal("unreadable", abi::call(call::LOAD_LDT, [address, 1, 0, 0]), EFAULT)?;
    }
    unload()
}
