//! Builds register groups in which an L2 starts.
//! May: nothing.

use super::layout::{self, selector};
use pv_abi::l0::regs::{Gprs, Segment, Special, Table, attr, gpr};

/// RFLAGS with only the bit that is always set.
pub const FLAGS: u64 = 2;
/// RFLAGS.IF.
pub const INTERRUPTS: u64 = 1 << 9;
/// RFLAGS.IOPL 3.
pub const IOPL_3: u64 = 3 << 12;

const PRESENT: u16 = attr::PRESENT | attr::CODE_OR_DATA;
const CODE_TYPE: u16 = 0xb;
const DATA_TYPE: u16 = 0x3;

const fn flat(selector: u16, attributes: u16) -> Segment {
    let attributes = attributes | PRESENT | attr::GRANULARITY;
    Segment { base: 0, limit: u32::MAX, selector, attributes }
}

const fn with_data(data: Segment, code: Segment) -> Special {
    Special {
        cs: code,
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        // A busy 64-bit (or 32-bit) TSS; a null LDT.
        tr: Segment { base: 0, limit: 0x67, selector: 0, attributes: attr::PRESENT | 0xb },
        ldt: Segment { base: 0, limit: 0xffff, selector: 0, attributes: attr::UNUSABLE },
        gdt: Table { base: layout::GDT, limit: 31 },
        idt: Table { base: layout::IDT, limit: 0xfff },
        cr0: 0x11,
        cr2: 0,
        cr3: 0,
        cr4: 0,
        cr8: 0,
        efer: 0,
        apic_base: 0,
        reserved: 0,
    }
}

/// 64-bit mode at CPL0 with the tables of `layout`.
pub const fn long() -> Special {
    Special {
        // PG, WP, ET, PE; PAE, OSFXSR, OSXMMEXCPT; LMA, LME.
        cr0: 0x8001_0011,
        cr3: layout::ROOT,
        cr4: 0x620,
        efer: 0x500,
        ..with_data(
            flat(selector::DATA, DATA_TYPE | attr::DEFAULT_BIG),
            flat(selector::CODE, CODE_TYPE | attr::LONG),
        )
    }
}

/// 64-bit mode at CPL3.
pub const fn user() -> Special {
    const DPL3: u16 = 3 << attr::DPL_SHIFT;
    let code = flat(selector::CODE | 3, CODE_TYPE | attr::LONG | DPL3);
    let data = flat(selector::DATA | 3, DATA_TYPE | attr::DEFAULT_BIG | DPL3);
    Special { cs: code, ds: data, es: data, fs: data, gs: data, ss: data, ..long() }
}

/// 32-bit protected mode without paging.
pub const fn protected() -> Special {
    with_data(
        flat(selector::DATA, DATA_TYPE | attr::DEFAULT_BIG),
        flat(selector::CODE_32, CODE_TYPE | attr::DEFAULT_BIG),
    )
}

/// General registers of vCPU `vcpu` at the start of its code, those of `set` with values.
pub fn general(vcpu: u32, set: &[(usize, u64)]) -> Gprs {
    let mut gprs = Gprs { rip: layout::code(vcpu), rflags: FLAGS, ..Gprs::default() };
    gprs.gpr[gpr::RSP] = layout::stack_top(vcpu);
    for &(register, value) in set {
        gprs.gpr[register] = value;
    }
    gprs
}

/// IA32_APIC_BASE of a vCPU whose local APIC is on.
pub const fn apic_base(vcpu: u32) -> u64 {
    const ENABLE: u64 = 1 << 11;
    const BOOT_CPU: u64 = 1 << 8;
    0xfee0_0000 | ENABLE | if vcpu == 0 { BOOT_CPU } else { 0 }
}
