//! Registers by groups, XSAVE, MSRs by GET and SET (spec sections 6.3, 7.2, 6.7).

use super::{Group, check, vcpu::tsc_msr};
use crate::{
    env::Env,
    holds,
    l0::{
        args::{self, List, With},
        lists,
    },
    l2::{code, guest::Guest, layout, registers},
    runtime::{clock, cpu, ram},
    same,
    tap::{Case, Cases, Verdict},
};
use pv_abi::l0::{
    Op, Status,
    list::{MsrAction, MsrRange, MsrValue},
    page::offset,
    regs::{Debug, EventFlags, Events, Gprs, Groups, Special, gpr},
    run::Event,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

pub const GROUP: Group = Group {
    name: "registers",
    checks: &[
        check("general", "L0-REGS-1", general),
        check("general_in_l2", "L0-REGS-1", general_in_l2),
        check("special", "L0-REGS-1", special),
        check("debug", "L0-REGS-1", debug),
        check("events", "L0-REGS-1 L0-EVT-1", events),
        check("in_l2", "L0-REGS-1 L0-APIC-5", in_l2),
        check("undefined_groups", "L0-REGS-1", undefined_groups),
        check("refused_general", "L0-REGS-2", refused_general),
        check("refused_special", "L0-REGS-2", refused_special),
        check("refused_debug", "L0-REGS-2", refused_debug),
        check("refused_events", "L0-REGS-8", refused_events),
        check("order_of_groups", "L0-REGS-2 L0-OP-2", order_of_groups),
        check("only_those_named", "L0-REGS-7", only_those_named),
        check("xsave", "L0-REGS-6", xsave),
        check("xsave_in_l2", "L0-REGS-6", xsave_in_l2),
        check("refused_xsave", "L0-REGS-6 L0-SEC-4", refused_xsave),
        check("msrs", "L0-MSR-5", msrs),
        check("msrs_in_l2", "L0-MSR-5 L0-MSR-1", msrs_in_l2),
        check("refused_msrs", "L0-MSR-5 L0-LIST-2", refused_msrs),
        check("tsc", "L0-TIME-1", tsc),
        check("tsc_goes_on", "L0-TIME-2", tsc_goes_on),
    ],
};

/// Stores a group's content and reads it back.
fn round_trip<T>(env: &Env<'_>, group: Groups, at: usize, value: &T) -> Verdict<T>
where
    T: FromBytes + IntoBytes + Immutable,
{
    env.l0.put(at, value);
    env.l0.ok(Op::SetRegs, &args::vcpu(0, 0).flags(group.bits()))?;
    ram::fill(env.l0.page + at as u64, size_of::<T>() as u64, 0xee);
    env.l0.ok(Op::GetRegs, &args::vcpu(0, 0).flags(group.bits()))?;
    Ok(env.l0.get(at))
}

fn sample() -> Gprs {
    Gprs {
        gpr: core::array::from_fn(|number| 0x0123_4567_89ab_0000 + number as u64 * 0x1111),
        rip: layout::code(0),
        rflags: registers::FLAGS | 0x8d5,
    }
}

fn general(env: &mut Env<'_>) -> Verdict {
    Guest::new(env)?;
    let top = Gprs { rip: 0xffff_8000_0000_0000, gpr: [u64::MAX; 16], ..sample() };
    env.l0.put(offset::SPECIAL, &registers::long());
    env.l0.ok(Op::SetRegs, &args::vcpu(0, 0).flags(Groups::SPECIAL.bits()))?;
    for value in [sample(), top] {
        same!(round_trip(env, Groups::GPRS, offset::GPRS, &value)?, value, "the group");
    }
    Ok(())
}

fn general_in_l2(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    let mut gprs = sample();
    gprs.gpr[gpr::RDI] = layout::DATA;
    guest.start_in(0, code::shows_registers(), &gprs, &registers::long())?;
    guest.done()?;
    for (number, expected) in gprs.gpr.into_iter().enumerate() {
        same!(
            ram::load(guest.at(layout::DATA) + 8 * number as u64),
            expected,
            "register {number} in L2"
        );
    }
    Ok(())
}

fn special(env: &mut Env<'_>) -> Verdict {
    Guest::new(env)?;
    // What an L0 gives for a state that it took; some fields have no place in some CPUs.
    let mut value = registers::long();
    value.fs.base = 0x7fff_1234_5000;
    value.gs.base = 0xffff_8800_0000_0000;
    value.gdt.base = 0xffff_ffff_0000_1000;
    value.idt.limit = 0x7ff;
    value.cr2 = 0xdead_beef_0000;
    value.cr8 = 5;
    for value in [value, registers::protected()] {
        let found = round_trip(env, Groups::SPECIAL, offset::SPECIAL, &value)?;
        for ((found, wanted), name) in [
            ((found.cs, value.cs), "CS"),
            ((found.ds, value.ds), "DS"),
            ((found.es, value.es), "ES"),
            ((found.fs, value.fs), "FS"),
            ((found.gs, value.gs), "GS"),
            ((found.ss, value.ss), "SS"),
        ] {
            // The accessed bit of the type may be set.
            same!(
                (found.selector, found.base, found.attributes & !1),
                (wanted.selector, wanted.base, wanted.attributes & !1),
                "{name}"
            );
            same!(found.limit, wanted.limit, "limit of {name}");
        }
        same!((found.gdt, found.idt), (value.gdt, value.idt), "GDT and IDT");
        same!(
            (found.cr0, found.cr2, found.cr3),
            (value.cr0, value.cr2, value.cr3),
            "CR0, CR2, CR3"
        );
        same!(
            (found.cr4, found.cr8, found.efer),
            (value.cr4, value.cr8, value.efer),
            "CR4, CR8, EFER"
        );
        same!((found.tr.base, found.tr.limit, found.tr.selector), (0, 0x67, 0), "TR");
        same!(found.reserved, 0, "the reserved word");
    }
    Ok(())
}

fn debug(env: &mut Env<'_>) -> Verdict {
    Guest::new(env)?;
    let value = Debug {
        address: [0x1000, 0x2008, 0xffff_8000_0000_0010, 0x7fff_ffff_fff8],
        dr6: 0xffff_0ff1,
        dr7: 0x0000_0700 | 0x2 | 0x8 | 0x9_0000,
    };
    let found = round_trip(env, Groups::DEBUG, offset::DEBUG, &value)?;
    same!(found.address, value.address, "DR0 to DR3");
    same!((found.dr6, found.dr7), (value.dr6, value.dr7), "DR6, DR7");
    Ok(())
}

fn events(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    guest.start(0, code::counts(), &[])?;
    let pending = Events { flags: EventFlags::NMI_PENDING.bits(), ..Events::default() };
    let masked = Events { flags: EventFlags::NMI_MASKED.bits(), ..Events::default() };
    for value in [Events::default(), masked, pending] {
        same!(round_trip(env, Groups::EVENTS, offset::EVENTS, &value)?, value, "the group");
    }
    let (injected, error) = Event::Exception { vector: 13, error: Some(0x1238) }.encode();
    let value = Events { injected, error, ..Events::default() };
    same!(round_trip(env, Groups::EVENTS, offset::EVENTS, &value)?, value, "the group");
    // It is delivered by the next RUN.
    guest.takes(13)
}

/// Special and debug registers as a program finds them.
fn in_l2(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    let special = Special { cr2: 0x1234_5678_9abc, cr8: 0xb, ..registers::long() };
    guest.start_in(
        0,
        code::shows_special(),
        &registers::general(0, &[(gpr::RDI, layout::DATA)]),
        &special,
    )?;
    let address = [0x1000, 0x2000, 0x3000, 0x4000];
    env.l0.put(offset::DEBUG, &Debug { address, dr6: 0xffff_0ff2, dr7: 0x400 });
    env.l0.ok(Op::SetRegs, &args::vcpu(0, 0).flags(Groups::DEBUG.bits()))?;
    guest.done()?;
    let expected = [0x1000, 0x2000, 0x3000, 0x4000, 0xffff_0ff2, 0x400, 0x1234_5678_9abc, 0xb];
    for (index, expected) in expected.into_iter().enumerate() {
        let found = ram::load(guest.at(layout::DATA) + 8 * index as u64);
        same!(found, expected, "DR0 to DR3, DR6, DR7, CR2, CR8: number {index}");
    }
    Ok(())
}

fn undefined_groups(env: &mut Env<'_>) -> Verdict {
    Guest::new(env)?;
    for bit in 4..32 {
        for op in [Op::GetRegs, Op::SetRegs] {
            env.l0.refuses(Status::BadArg, op, &args::vcpu(0, 0).flags(1 << bit))?;
            env.l0.refuses(Status::BadArg, op, &args::vcpu(0, 0).flags(1 << bit | 1))?;
        }
    }
    env.l0.ok(Op::GetRegs, &args::vcpu(0, 0))?;
    env.l0.ok(Op::SetRegs, &args::vcpu(0, 0))?;
    Ok(())
}

/// SET_REGS of one bad group: BAD_ARG, index is the group's bit.
fn refused<T: IntoBytes + Immutable>(env: &Env<'_>, group: Groups, at: usize, bad: &T) -> Verdict {
    env.l0.put(at, bad);
    let with = args::vcpu(0, 0).flags(group.bits());
    env.l0.fails_at(group.bits().trailing_zeros(), Status::BadArg, Op::SetRegs, &with)?;
    Ok(())
}

fn refused_general(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    guest.start_in(0, code::counts(), &sample(), &registers::long())?;
    let mut cases = Cases::default();
    for rip in [1 << 63, 1 << 57, 0xfeff_ffff_ffff_ffff].into_iter().chain(not_canonical()) {
        let bad = Gprs { rip, ..sample() };
        cases
            .add(refused(env, Groups::GPRS, offset::GPRS, &bad).case(format_args!("RIP {rip:#x}")));
    }
    cases.verdict()?;
    same!(guest.gprs()?, sample(), "the registers afterwards");
    Ok(())
}

/// Addresses that are not canonical for a CPU without five levels of page tables.
fn not_canonical() -> impl Iterator<Item = u64> {
    const LA57: u32 = 1 << 16;
    let five = cpu::cpuid(0, 0)[0] >= 7 && cpu::cpuid(7, 0)[2] & LA57 != 0;
    let addresses = [1 << 47, 1 << 48, 0xffff_7fff_ffff_ffff];
    addresses.into_iter().filter(move |_| !five)
}

fn refused_special(env: &mut Env<'_>) -> Verdict {
    Guest::new(env)?;
    let good = registers::long();
    let far = not_canonical().next().unwrap_or(1 << 57);
    let table = |base| pv_abi::l0::regs::Table { base, ..good.gdt };
    let cases = [
        ("CR0 bit 63", Special { cr0: good.cr0 | 1 << 63, ..good }),
        ("CR0 bit 32", Special { cr0: good.cr0 | 1 << 32, ..good }),
        ("paging without protection", Special { cr0: good.cr0 & !1, ..good }),
        ("NW without CD", Special { cr0: good.cr0 | 1 << 29, ..good }),
        ("CR4 bit 63", Special { cr4: good.cr4 | 1 << 63, ..good }),
        ("CR4 bit 30", Special { cr4: good.cr4 | 1 << 30, ..good }),
        ("long mode without PAE", Special { cr4: good.cr4 & !0x20, ..good }),
        ("EFER bit 63", Special { efer: good.efer | 1 << 63, ..good }),
        ("EFER bit 1", Special { efer: good.efer | 2, ..good }),
        ("LMA without LME", Special { efer: 0x400, ..good }),
        ("LMA without paging", Special { cr0: 0x11, ..good }),
        ("base of FS", Special { fs: pv_abi::l0::regs::Segment { base: far, ..good.fs }, ..good }),
        (
            "base of GS",
            Special { gs: pv_abi::l0::regs::Segment { base: 1 << 63, ..good.gs }, ..good },
        ),
        ("base of GDT", Special { gdt: table(far), ..good }),
        ("base of IDT", Special { idt: table(1 << 60), ..good }),
        ("CR8", Special { cr8: 16, ..good }),
        (
            "L and D in CS",
            Special {
                cs: pv_abi::l0::regs::Segment {
                    attributes: good.cs.attributes | 1 << 10,
                    ..good.cs
                },
                ..good
            },
        ),
    ];
    let mut all = Cases::default();
    for (name, bad) in cases {
        all.add(refused(env, Groups::SPECIAL, offset::SPECIAL, &bad).case(format_args!("{name}")));
    }
    all.verdict()?;
    same!(
        round_trip(env, Groups::SPECIAL, offset::SPECIAL, &good)?.cr0,
        good.cr0,
        "CR0 afterwards"
    );
    Ok(())
}

fn refused_debug(env: &mut Env<'_>) -> Verdict {
    Guest::new(env)?;
    let good = Debug { address: [0; 4], dr6: 0xffff_0ff0, dr7: 0x400 };
    for bit in [32, 47, 63] {
        refused(env, Groups::DEBUG, offset::DEBUG, &Debug { dr7: good.dr7 | 1 << bit, ..good })?;
    }
    Ok(())
}

fn refused_events(env: &mut Env<'_>) -> Verdict {
    Guest::new(env)?;
    let good = Events::default();
    let cases = [
        ("an event that is none", Events { injected: 0x30, ..good }),
        ("interrupt 3", Events { injected: 1 << 31 | 3, ..good }),
        ("NMI with vector 5", Events { injected: 1 << 31 | 2 << 8 | 5, ..good }),
        ("exception 40", Events { injected: 1 << 31 | 3 << 8 | 40, ..good }),
        ("an unknown mp_state", Events { mp_state: 3, ..good }),
        ("a huge mp_state", Events { mp_state: u32::MAX, ..good }),
        ("waiting for SIPI without APIC", Events { mp_state: 1, ..good }),
        ("halted without APIC", Events { mp_state: 2, ..good }),
    ];
    let mut all = Cases::default();
    for (name, bad) in cases {
        all.add(refused(env, Groups::EVENTS, offset::EVENTS, &bad).case(format_args!("{name}")));
    }
    all.verdict()
}

/// All groups at once, one of them bad: those before it are loaded, those after it are not.
fn order_of_groups(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    guest.start(0, code::counts(), &[])?;
    let old = guest.gprs()?;
    let with = args::vcpu(0, 0).flags(15);
    let good_debug = Debug { address: [8; 4], dr6: 0xffff_0ff0, dr7: 0x400 };
    let (special, bad_special) = (registers::long(), Special { cr0: 1 << 63, ..registers::long() });
    for (bad, special, debug) in
        [(1, bad_special, good_debug), (2, special, Debug { dr7: 1 << 40, ..good_debug })]
    {
        env.l0.put(offset::GPRS, &sample());
        env.l0.put(offset::SPECIAL, &special);
        env.l0.put(offset::DEBUG, &debug);
        env.l0.put(offset::EVENTS, &Events::default());
        env.l0.fails_at(bad, Status::BadArg, Op::SetRegs, &with)?;
        same!(guest.gprs()?, sample(), "the group before");
        env.l0.ok(Op::GetRegs, &args::vcpu(0, 0).flags(Groups::DEBUG.bits()))?;
        same!(
            env.l0.get::<Debug>(offset::DEBUG).address,
            [0; 4],
            "the group after, or the bad one"
        );
        env.l0.put(offset::GPRS, &old);
        env.l0.ok(Op::SetRegs, &args::vcpu(0, 0).flags(1))?;
    }
    Ok(())
}

/// SET_REGS takes only the groups it names, and GET_REGS writes only those.
fn only_those_named(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    guest.start(0, code::counts(), &[(gpr::RBX, 5)])?;
    let garbage = [0xee_u8; 48];
    for at in [offset::GPRS, offset::SPECIAL, offset::EVENTS] {
        env.l0.put(at, &garbage);
    }
    env.l0.put(offset::DEBUG, &Debug { address: [0; 4], dr6: 0xffff_0ff0, dr7: 0x400 });
    env.l0.ok(Op::SetRegs, &args::vcpu(0, 0).flags(Groups::DEBUG.bits()))?;
    env.l0.ok(Op::GetRegs, &args::vcpu(0, 0).flags(Groups::DEBUG.bits()))?;
    for at in [offset::GPRS, offset::SPECIAL, offset::EVENTS] {
        same!(env.l0.get::<[u8; 48]>(at), garbage, "a group that was not named, at {at:#x}");
    }
    same!(guest.gprs()?.gpr[gpr::RBX], 5, "RBX");
    Ok(())
}

/// A buffer with the XSAVE area of vCPU 0, and its XCR0.
fn get_xsave(env: &Env<'_>) -> Verdict<(List, u64)> {
    let count = env.info.limits.xsave_bytes;
    let list = List { address: ram::pages(u64::from(count).div_ceil(ram::PAGE) + 1), count };
    ram::fill(list.address, u64::from(count) + 8, 0xee);
    let answer = env.l0.ok(Op::GetXsave, &args::vcpu(0, 0).list(list))?;
    same!(ram::read::<u8>(list.address + u64::from(count)), 0xee, "the byte behind the buffer");
    Ok((list, answer.value))
}

const HEADER: u64 = 512;
const XMM_0: u64 = 160;
const MXCSR: u64 = 24;

fn xsave(env: &mut Env<'_>) -> Verdict {
    Guest::new(env)?;
    let (list, xcr0) = get_xsave(env)?;
    holds!(xcr0 & 1 == 1, "XCR0 is {xcr0:#x}, without x87");
    same!(ram::load(list.address + HEADER) & !xcr0, 0, "XSTATE_BV outside XCR0");
    same!(ram::load(list.address + HEADER + 8), 0, "XCOMP_BV");
    let xcr0 = xcr0 | 3;
    ram::store(list.address + HEADER, 3);
    ram::store32(list.address + MXCSR, 0x1f80);
    for word in 0..32 {
        ram::store(list.address + XMM_0 + 8 * word, 0x1000 + word);
    }
    env.l0.ok(Op::SetXsave, &args::vcpu(0, 0).list(list).arg(0, xcr0))?;
    let (found, value) = get_xsave(env)?;
    same!(value, xcr0, "XCR0");
    for word in 0..32 {
        same!(
            ram::load(found.address + XMM_0 + 8 * word),
            0x1000 + word,
            "half {word} of XMM registers"
        );
    }
    // The legacy area and the header alone.
    ram::store(list.address + XMM_0, 77);
    let short = List { count: 576, ..list };
    env.l0.ok(Op::SetXsave, &args::vcpu(0, 0).list(short).arg(0, 3))?;
    let (found, value) = get_xsave(env)?;
    same!((value, ram::load(found.address + XMM_0)), (3, 77), "XCR0 and XMM0");
    Ok(())
}

fn xsave_in_l2(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    guest.start(0, code::shows_vectors(), &[(gpr::RDI, layout::DATA)])?;
    let (list, xcr0) = get_xsave(env)?;
    ram::store(list.address + HEADER, ram::load(list.address + HEADER) | 3);
    ram::store32(list.address + MXCSR, 0x1f80);
    ram::store(list.address + XMM_0, 0x1111_2222_3333);
    ram::store(list.address + XMM_0 + 15 * 16, 0x4444_5555);
    env.l0.ok(Op::SetXsave, &args::vcpu(0, 0).list(list).arg(0, xcr0 | 3))?;
    guest.done()?;
    same!(ram::load(guest.at(layout::DATA)), 0x1111_2222_3333, "XMM0 in L2");
    same!(ram::load(guest.at(layout::DATA) + 8), 0x4444_5555, "XMM15 in L2");
    let (list, _) = get_xsave(env)?;
    same!(ram::load(list.address + XMM_0), 0x1111_2222_3334, "XMM0 that L2 has changed");
    Ok(())
}

fn refused_xsave(env: &mut Env<'_>) -> Verdict {
    Guest::new(env)?;
    let (list, xcr0) = get_xsave(env)?;
    let bytes = list.count;
    let with = |count| args::vcpu(0, 0).list(List { count, ..list });
    env.l0.refuses(Status::BadArg, Op::GetXsave, &with(bytes - 1))?;
    env.l0.refuses(Status::BadArg, Op::GetXsave, &with(0))?;
    for count in [0, 512, 575, bytes.saturating_add(1), u32::MAX] {
        env.l0
            .refuses(Status::BadArg, Op::SetXsave, &with(count).arg(0, xcr0))
            .case(format_args!("{count} bytes"))?;
    }
    // Bits that no CPU has, SSE without x87, AVX without SSE.
    for bad in [0, 2, 5, xcr0 | 1 << 62, xcr0 | 1 << 63, u64::MAX] {
        env.l0
            .refuses(Status::BadArg, Op::SetXsave, &with(bytes).arg(0, bad))
            .case(format_args!("XCR0 {bad:#x}"))?;
    }
    let restore = |at: u64, value: u64, name: &str| -> Verdict {
        let old = ram::load(list.address + at);
        ram::store(list.address + at, value);
        let verdict = env.l0.refuses(Status::BadArg, Op::SetXsave, &with(bytes).arg(0, xcr0));
        ram::store(list.address + at, old);
        verdict.case(format_args!("{name}"))
    };
    restore(HEADER, 1 << 62, "XSTATE_BV outside XCR0")?;
    restore(HEADER, u64::MAX, "XSTATE_BV of ones")?;
    restore(HEADER + 8, 1 << 63, "a compacted form")?;
    restore(HEADER + 16, 1, "a reserved word of the header")?;
    ram::store(list.address + HEADER, ram::load(list.address + HEADER) | 3);
    let mxcsr = ram::load(list.address + MXCSR);
    ram::store(list.address + MXCSR, 0xffff_0000 | mxcsr & !0xffff_ffff);
    env.l0
        .refuses(Status::BadArg, Op::SetXsave, &with(bytes).arg(0, xcr0 | 3))
        .case(format_args!("MXCSR"))?;
    ram::store(list.address + MXCSR, mxcsr);
    env.l0.ok(Op::SetXsave, &with(bytes).arg(0, xcr0 | 3))?;
    Ok(())
}

/// MSRs held always, with values that any CPU takes.
const HELD: [(u32, u64); 13] = [
    (0x174, 0x10),
    (0x175, 0x7000_1000),
    (0x176, 0x7000_2000),
    (0x277, 0x0007_0406_0007_0106),
    (0xc000_0081, 0x0023_0010_0000_0000),
    (0xc000_0082, 0xffff_8000_0000_3000),
    (0xc000_0083, 0xffff_8000_0000_4000),
    (0xc000_0084, 0x4_7700),
    (0xc000_0100, 0x7fff_0000_1000),
    (0xc000_0101, 0xffff_8000_0000_5000),
    (0xc000_0102, 0x1234_5000),
    (0x0000_0277, 0x0007_0406_0007_0406),
    (0xc000_0102, 0xffff_ffff_8000_0000),
];

fn values(entries: &[(u32, u64)]) -> List {
    lists::made(entries.len() as u32, |index| {
        let (index, value) = entries[index as usize];
        MsrValue { index, reserved: 0, value }
    })
}

fn msrs(env: &mut Env<'_>) -> Verdict {
    Guest::new(env)?;
    let answer = env.l0.ok(Op::SetMsrs, &args::vcpu(0, 0).list(values(&HELD)))?;
    same!(answer.index, HELD.len() as u32, "index");
    let asked = values(&HELD.map(|(index, _)| (index, 0xeeee)));
    let answer = env.l0.ok(Op::GetMsrs, &args::vcpu(0, 0).list(asked))?;
    same!(answer.index, HELD.len() as u32, "index");
    for (place, (index, value)) in HELD.into_iter().enumerate() {
        // The last entry of an index counts.
        let last =
            HELD.iter().rev().find(|(other, _)| *other == index).map_or(value, |(_, value)| *value);
        let found = ram::load(asked.address + 16 * place as u64 + 8);
        same!(found, last, "MSR {index:#x}");
    }
    // As many as a list may have.
    let most = env.info.limits.entries.min(512);
    let many = lists::made(most, |_| MsrValue { index: 0x277, ..MsrValue::default() });
    let answer = env.l0.ok(Op::GetMsrs, &args::vcpu(0, 0).list(many))?;
    same!(answer.index, most, "index of {most} entries");
    same!(
        ram::load(many.address + 16 * u64::from(most) - 8),
        0x0007_0406_0007_0406,
        "the last value"
    );
    Ok(())
}

/// What SET_MSRS set is what L2 reads, and GET_MSRS gives what L2 wrote.
fn msrs_in_l2(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    env.l0.ok(Op::SetMsrs, &args::vcpu(0, 0).list(values(&HELD[..11])))?;
    // Starting a program loads the bases of FS and GS anew.
    let asked = HELD[..11].iter().filter(|(msr, _)| !matches!(msr, 0xc000_0100 | 0xc000_0101));
    for (index, (msr, value)) in asked.enumerate() {
        guest.does(code::rdmsrs(), &[(gpr::RCX, (*msr).into()), (gpr::RDI, layout::DATA)])?;
        same!(ram::load(guest.at(layout::DATA)), *value, "MSR {msr:#x} (number {index}) in L2");
    }
    let value = 0xffff_9000_1234_5000_u64;
    let set = [(gpr::RCX, 0xc000_0102), (gpr::RAX, value & 0xffff_ffff), (gpr::RDX, value >> 32)];
    guest.does(code::wrmsrs(), &set)?;
    let asked = values(&[(0xc000_0102, 0)]);
    env.l0.ok(Op::GetMsrs, &args::vcpu(0, 0).list(asked))?;
    same!(ram::load(asked.address + 8), value, "KERNEL_GS_BASE that L2 wrote");
    Ok(())
}

/// A bad entry: index, status, and the entries before it are done.
fn refused_msrs(env: &mut Env<'_>) -> Verdict {
    Guest::new(env)?;
    let rules = lists::of(&[MsrRange {
        first: 0x4000_0100,
        count: 1,
        action: MsrAction::Value.raw(),
        ..MsrRange::default()
    }]);
    env.l0.ok(Op::SetMsrPolicy, &args::vm(0).list(rules))?;
    let read = |msr| -> Verdict<u64> {
        let asked = values(&[(msr, 0)]);
        env.l0.ok(Op::GetMsrs, &args::vcpu(0, 0).list(asked))?;
        Ok(ram::load(asked.address + 8))
    };
    let mut expected = 0x1000;
    for (name, msr, value, status) in [
        ("an MSR that nobody holds", 0x4000_0000, 0, Status::NoSuch),
        ("an MSR under VALUE", 0x4000_0100, 0, Status::NoSuch),
        ("MISC_ENABLE, which no rule names", 0x1a0, 0, Status::NoSuch),
        ("FS_BASE that is not canonical", 0xc000_0100, 1 << 63, Status::BadArg),
        ("LSTAR that is not canonical", 0xc000_0082, 0x8000_0000_0000, Status::BadArg),
        ("PAT with type 2", 0x277, 0x0202_0202_0202_0202, Status::BadArg),
        ("EFER with bit 63", 0xc000_0080, 1 << 63, Status::BadArg),
    ] {
        expected += 0x1000;
        let list = values(&[(0xc000_0101, expected), (msr, value), (0xc000_0101, 0)]);
        env.l0
            .fails_at(1, status, Op::SetMsrs, &args::vcpu(0, 0).list(list))
            .case(format_args!("{name}"))?;
        same!(read(0xc000_0101)?, expected, "GS_BASE, set before {name}");
    }
    let list = values(&[(0xc000_0101, 0), (0x4000_0000, 0xee)]);
    env.l0.fails_at(1, Status::NoSuch, Op::GetMsrs, &args::vcpu(0, 0).list(list))?;
    same!(ram::load(list.address + 8), expected, "the entry before the one that fails");
    same!(ram::load(list.address + 24), 0xee, "the one that fails");
    let reserved = lists::of(&[MsrValue { index: 0x277, reserved: 1, value: 0 }]);
    env.l0.fails_at(0, Status::BadArg, Op::GetMsrs, &args::vcpu(0, 0).list(reserved))?;
    Ok(())
}

/// L2's TSC, read by L2; L1's before and after.
fn tsc_in_l2(guest: &Guest) -> Verdict<(u64, u64, u64)> {
    let before = cpu::tsc();
    guest.does(code::tells_time(), &[(gpr::RDI, layout::DATA)])?;
    let after = cpu::tsc();
    Ok((before, ram::load(guest.at(layout::DATA)), after))
}

/// Set to a value, it goes on from there, as fast as L1's.
fn tsc(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    let slack = clock::microseconds(2000);
    for start in [1 << 40, 1_000_000] {
        let set_before = cpu::tsc();
        env.l0.ok(Op::SetMsrs, &args::vcpu(0, 0).list(values(&[(0x10, start)])))?;
        let set_after = cpu::tsc();
        clock::nap(20_000);
        let (before, found, after) = tsc_in_l2(&guest)?;
        let (least, most) = (start + before - set_after, start + after - set_before);
        holds!(
            found + slack >= least && found <= most + slack,
            "L2's TSC is {found:#x}, not {least:#x} to {most:#x}"
        );
        let by_get = tsc_msr(env)?;
        holds!(by_get >= found, "GET_MSRS gives {by_get:#x} after {found:#x}");
    }
    Ok(())
}

fn tsc_goes_on(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    let (_, first, middle) = tsc_in_l2(&guest)?;
    clock::nap(30_000);
    let (again, second, _) = tsc_in_l2(&guest)?;
    let (passed, least) = (second.wrapping_sub(first), again - middle);
    holds!(passed >= least, "L2's TSC went on by {passed}, L1's by {least} at least");
    Ok(())
}
