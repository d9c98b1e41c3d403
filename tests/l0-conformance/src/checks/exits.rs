//! Exits of L2 and how L1 answers them (spec section 6.4).

use super::{Group, check};
use crate::{
    env::Env,
    holds,
    l0::lists,
    l2::{
        code,
        guest::{Guest, control},
        layout::{self, DEVICE, HOLE, LOW},
        registers,
    },
    runtime::ram,
    same, skip,
    tap::{Case, Verdict},
    wrong,
};
use pv_abi::l0::{
    Exit, Features,
    exit::Direction,
    page::{IO_BYTES, offset},
    regs::{Groups, gpr},
    run::{RunControl, VcpuState},
};

pub const GROUP: Group = Group {
    name: "exits",
    checks: &[
        check("out_and_in", "L0-EXIT-1 L0-EXIT-3", out_and_in),
        check("every_port", "L0-EXIT-1 L0-APIC-5", every_port),
        check("string_out", "L0-EXIT-1", string_out),
        check("string_in", "L0-EXIT-1", string_in),
        check("long_strings", "L0-EXIT-1", long_strings),
        check("mmio_stores", "L0-EXIT-2 L0-REG-1", mmio_stores),
        check("mmio_loads", "L0-EXIT-2 L0-EXIT-3", mmio_loads),
        check("mmio_16_bytes", "L0-EXIT-2", mmio_16_bytes),
        check("mmio_across_a_border", "L0-EXIT-2", mmio_across_a_border),
        check("mmio_where_the_apic_is_not", "L0-APIC-5", mmio_where_the_apic_is_not),
        check("hlt", "L0-EXIT-4", hlt),
        check("fetch_outside", "L0-REG-2", fetch_outside),
        check("fetch_unmapped", "L0-REG-1 L0-EXIT-5", fetch_unmapped),
        check("shutdown", "L0-EXIT-8", shutdown),
        check("hypercalls", "L0-EXIT-7 L0-GEN-2", hypercalls),
        check("hypercalls_of_user_code", "L0-EXIT-7", hypercalls_of_user_code),
        check("task_priority", "L0-APIC-5", task_priority),
        check("state", "L0-EXIT-3 L0-EVT-2", state),
        check("protected_mode", "L0-REGS-3", protected_mode),
        check("other_modes", "L0-REGS-3 L0-EXIT-8", other_modes),
    ],
};

fn io(port: u16, size: u8, count: u32, direction: Direction) -> Exit {
    Exit::Io { port, size, count, direction }
}

fn out_and_in(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    guest.start(0, code::ports(), &[(gpr::RDX, 0x1234), (gpr::RAX, 0x8765_4321)])?;
    for size in [1, 2, 4] {
        env.l0.put(offset::IO, &u64::MAX);
        let (exit, raw) = guest.exit(&control())?;
        same!(exit, io(0x1234, size, 1, Direction::Write), "OUT");
        let mask = u32::MAX >> (32 - 8 * u32::from(size));
        same!(
            env.l0.get::<u32>(offset::IO) & mask,
            0x8765_4321 & mask,
            "data of OUT of {size} bytes"
        );
        same!(raw.state & 8, 8, "state.KERNEL");
    }
    for (size, expected) in [(4, 0x1122_3344), (2, 0xffff_3344), (1, 0xffff_ff44_u32)] {
        let (exit, raw) = guest.exit(&control())?;
        same!(exit, io(0x1234, size, 1, Direction::Read), "IN");
        same!(raw.state & 4, 4, "state.AWAITS_REPLY of IN");
        env.l0.put(offset::IO, &0x1122_3344_u32);
        same!(guest.done()?, expected, "EAX after IN of {size} bytes");
    }
    Ok(())
}

/// Ports where PCs have devices are L1's too: L0 has none for a VM without APIC.
fn every_port(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    for port in [
        0, 0x20, 0x40, 0x60, 0x61, 0x64, 0x80, 0x92, 0xa1, 0xb2, 0x3f8, 0x4d0, 0xcf8, 0xcfc,
        0x5658, 0xffff,
    ] {
        let set = [(gpr::RDX, u64::from(port)), (gpr::RAX, 0x41)];
        guest.start(0, code::ports(), &set)?;
        same!(guest.run()?, io(port, 1, 1, Direction::Write), "OUT to {port:#x}");
        // From the first IN on.
        guest.start(0, &code::ports()[4..], &set)?;
        let size = 4;
        if port < 0xfffd {
            same!(guest.run()?, io(port, size, 1, Direction::Read), "IN from {port:#x}");
            guest.settle()?;
        }
    }
    Ok(())
}

/// Serves a string until the program is done; `piece` gets (offset, bytes) of each exit.
fn serve_string(
    guest: &Guest,
    port: u16,
    size: u8,
    direction: Direction,
    mut piece: impl FnMut(u64, u64) -> Verdict,
) -> Verdict<u64> {
    let mut moved = 0;
    loop {
        let exit = guest.run()?;
        match exit {
            Exit::Io { port: found, size: found_size, count, direction: found_direction }
                if found == port =>
            {
                same!((found_size, found_direction), (size, direction), "size and direction");
                let bytes = u64::from(count) * u64::from(size);
                holds!(bytes <= IO_BYTES as u64, "{bytes} bytes in one exit");
                piece(moved, bytes)?;
                moved += bytes;
            }
            other => {
                guest.said(other)?;
                return Ok(moved);
            }
        }
    }
}

fn pattern(at: u64) -> u8 {
    (at * 7 + at / 256) as u8
}

fn outs(env: &Env<'_>, guest: &Guest, program: &[u8], size: u8, count: u64) -> Verdict {
    let bytes = count * u64::from(size);
    for at in 0..bytes {
        ram::write_bytes(guest.at(layout::DATA) + at, &[pattern(at)]);
    }
    let set = [(gpr::RDX, 0x300), (gpr::RSI, layout::DATA), (gpr::RCX, count)];
    guest.start(0, program, &set)?;
    let moved = serve_string(guest, 0x300, size, Direction::Write, |start, length| {
        for at in 0..length {
            let found: u8 = env.l0.get(offset::IO + at as usize);
            same!(found, pattern(start + at), "byte {} of a string", start + at);
        }
        Ok(())
    })?;
    same!(moved, bytes, "bytes of the string");
    Ok(())
}

fn string_out(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    for count in [1, 2, 13, 100] {
        outs(env, &guest, code::out_string(), 1, count).case(format_args!("{count} bytes"))?;
        outs(env, &guest, code::out_string_32(), 4, count).case(format_args!("{count} words"))?;
    }
    Ok(())
}

fn ins(env: &Env<'_>, guest: &Guest, count: u64) -> Verdict {
    ram::fill(guest.at(layout::DATA), count + 8, 0xee);
    let set = [(gpr::RDX, 0x300), (gpr::RDI, layout::DATA), (gpr::RCX, count)];
    guest.start(0, code::in_string(), &set)?;
    let moved = serve_string(guest, 0x300, 1, Direction::Read, |start, length| {
        for at in 0..length {
            env.l0.put(offset::IO + at as usize, &pattern(start + at));
        }
        Ok(())
    })?;
    same!(moved, count, "bytes of the string");
    for at in 0..count {
        let found: u8 = ram::read(guest.at(layout::DATA) + at);
        same!(found, pattern(at), "byte {at} in L2's memory");
    }
    same!(ram::read::<u8>(guest.at(layout::DATA) + count), 0xee, "the byte behind");
    Ok(())
}

fn string_in(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    [1, 2, 13, 100]
        .into_iter()
        .try_for_each(|count| ins(env, &guest, count).case(format_args!("{count} bytes")))
}

/// More than one exit moves, across pages.
fn long_strings(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    outs(env, &guest, code::out_string(), 1, 5000)?;
    outs(env, &guest, code::out_string_32(), 4, 1500)?;
    ins(env, &guest, 5000)
}

fn mmio_stores(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    let value = 0x8877_6655_4433_2211;
    for gpa in [DEVICE, DEVICE + 0x38, LOW.gpa + LOW.pages * 4096, 0xfec0_0000 - 4096] {
        guest.start(0, code::stores(), &[(gpr::RDI, gpa), (gpr::RAX, value)])?;
        for size in [1, 2, 4, 8] {
            let data = value & (u64::MAX >> (64 - 8 * u32::from(size)));
            let expected = Exit::Mmio { gpa, size, data, direction: Direction::Write };
            same!(guest.run()?, expected, "a store of {size} bytes to {gpa:#x}");
        }
        guest.done()?;
    }
    Ok(())
}

fn mmio_loads(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    let reply = 0x8877_6655_4433_2211;
    guest.start(0, code::loads(), &[(gpr::RDI, DEVICE + 8)])?;
    let mut control = control();
    for size in [8, 4, 2, 1] {
        let (exit, raw) = guest.exit(&control)?;
        let expected = Exit::Mmio { gpa: DEVICE + 8, size, data: 0, direction: Direction::Read };
        same!(exit, expected, "a load of {size} bytes");
        same!(raw.state & 4, 4, "state.AWAITS_REPLY of a load");
        control.reply = reply;
    }
    let (exit, _) = guest.exit(&RunControl { read: Groups::GPRS.bits(), ..control })?;
    guest.said(exit)?;
    let gprs: pv_abi::l0::regs::Gprs = env.l0.get(offset::GPRS);
    let found = [gpr::RAX, gpr::RBX, gpr::RCX, gpr::RDX].map(|register| gprs.gpr[register]);
    same!(found, [reply, 0x4433_2211, 0x2211, 0x11], "what the loads found");
    Ok(())
}

/// An access of more than 8 bytes is several exits, in some order, of all its bytes.
fn mmio_16_bytes(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    guest.start(0, code::store_16(), &[(gpr::RDI, DEVICE), (gpr::RAX, 0x1122_3344_5566_7788)])?;
    let mut seen = 0_u32;
    for _ in 0..16 {
        match guest.run()? {
            Exit::Mmio { gpa, size, data, direction: Direction::Write }
                if (DEVICE..DEVICE + 16).contains(&gpa) =>
            {
                let at = (gpa - DEVICE) as u32;
                seen |= ((1 << size) - 1) << at;
                let whole = 0x1122_3344_5566_7788_u128 >> (8 * at);
                let mask = u64::MAX >> (64 - 8 * u32::from(size));
                same!(data, whole as u64 & mask, "data at {gpa:#x}");
            }
            Exit::Failed(code) => {
                return skip!("this L0 fails 16-byte stores to devices (code {code:#x})");
            }
            other => {
                guest.said(other)?;
                break;
            }
        }
    }
    same!(seen, 0xffff, "bytes seen, as a mask");
    Ok(())
}

/// Half in a region's last page, half behind it.
fn mmio_across_a_border(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    let frame = ram::pages(1);
    let border = LOW.gpa + LOW.pages * 4096;
    guest.map(&[lists::map(border - 4096, frame, 1)])?;
    guest.start(0, code::store(), &[(gpr::RDI, border - 4), (gpr::RAX, 0x8877_6655_4433_2211)])?;
    let mut outside = 0_u32;
    for _ in 0..8 {
        match guest.run()? {
            Exit::Mmio { gpa, size, direction: Direction::Write, .. }
                if gpa >= border && gpa + u64::from(size) <= border + 4 =>
            {
                outside |= ((1 << size) - 1) << (gpa - border);
            }
            Exit::Failed(code) => return wrong!("FAILED, code {code:#x}"),
            other => {
                guest.said(other)?;
                break;
            }
        }
    }
    same!(outside, 0xf, "bytes that exited behind the border, as a mask");
    same!(ram::load32(frame + 4092), 0x4433_2211, "bytes before the border");
    Ok(())
}

fn mmio_where_the_apic_is_not(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    for gpa in [0xfee0_0020, 0xfec0_0000, 0xfee0_0300] {
        guest.start(0, &code::stores()[5..], &[(gpr::RDI, gpa), (gpr::RAX, 0)])?;
        let expected = Exit::Mmio { gpa, size: 4, data: 0, direction: Direction::Write };
        same!(guest.run()?, expected, "a store of 4 bytes to {gpa:#x}");
    }
    Ok(())
}

fn hlt(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    for flags in [registers::FLAGS, registers::FLAGS | registers::INTERRUPTS] {
        let general = registers::general(0, &[(gpr::RAX, 0)]);
        let general = pv_abi::l0::regs::Gprs { rflags: flags, ..general };
        guest.start_in(0, code::halts(), &general, &registers::long())?;
        for round in 1..5 {
            let (exit, _) = guest.exit(&control())?;
            same!(exit, Exit::Hlt, "the exit");
            if round == 1 {
                guest.settle()?;
                same!(guest.gprs()?.rip, layout::code(0) + 1, "RIP after HLT");
            }
            same!(guest.done()?, round, "EAX behind HLT");
        }
    }
    Ok(())
}

fn fetch_outside(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    let exit = guest.exits(code::jumps(), &[(gpr::RDI, DEVICE)])?;
    holds!(
        matches!(exit, Exit::Unmapped { .. } | Exit::Failed(_)),
        "a fetch from {DEVICE:#x} gave {exit:x?}"
    );
    // The VM is none the worse for it.
    same!(guest.does(code::counts(), &[(gpr::RAX, 6)])?, 6, "EAX afterwards");
    Ok(())
}

fn fetch_unmapped(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    let frame = ram::pages(1);
    ram::write_bytes(frame, code::counts());
    for _ in 0..2 {
        let exit = guest.exits(code::jumps(), &[(gpr::RDI, HOLE), (gpr::RAX, 6)])?;
        holds!(matches!(exit, Exit::Unmapped { .. }), "a fetch from {HOLE:#x} gave {exit:x?}");
    }
    guest.map(&[lists::map(HOLE, frame, 1)])?;
    same!(guest.done()?, 6, "EAX of the program in the page that was mapped then");
    Ok(())
}

fn shutdown(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    for _ in 0..3 {
        let exit = guest.exits(code::faults_thrice(), &[(gpr::RDI, layout::DATA)])?;
        same!(exit, Exit::Shutdown, "the exit of a triple fault");
    }
    Ok(())
}

fn hypercalls(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    let set = [
        (gpr::RAX, 0x1_0000_1234),
        (gpr::RBX, 1),
        (gpr::RCX, 2),
        (gpr::RDX, 3),
        (gpr::RSI, 4),
        (gpr::RDI, 5),
        (8, 6),
    ];
    for program in [code::vmcall(), code::vmmcall()] {
        guest.start(0, program, &set)?;
        if env.has(Features::HYPERCALL_EXIT) {
            let expected = Exit::Hypercall { number: 0x1_0000_1234, args: [1, 2, 3, 4, 5, 6] };
            same!(guest.run()?, expected, "the exit");
            let (exit, _) = guest.exit(&RunControl { reply: 0x77, ..control() })?;
            same!(guest.said(exit)?, 0x77, "RAX: the reply");
        } else {
            refused(&guest)?;
        }
    }
    Ok(())
}

/// The hypercall that was started gives #UD, or an error that is not 0.
fn refused(guest: &Guest) -> Verdict {
    let exit = guest.run()?;
    match exit {
        Exit::Io { port: layout::VECTOR_PORT, .. } => guest.took(exit, 6),
        other => {
            holds!(guest.said(other)? != 0, "a hypercall that no L1 asked for gave 0");
            Ok(())
        }
    }
}

/// From CPL3 a hypercall never exits to L1: it is #UD, #GP (what some KVMs give for the other
/// vendor's instruction) or an error value.
fn hypercalls_of_user_code(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    let general = registers::general(0, &[(gpr::RAX, 0x1234)]);
    let general =
        pv_abi::l0::regs::Gprs { rflags: registers::FLAGS | registers::IOPL_3, ..general };
    let mut special = registers::user();
    // A TSS whose RSP0 is the top of the block's first page.
    special.tr.base = layout::DATA;
    ram::write(guest.at(layout::DATA) + 4, &0x1000_u64);
    for program in [code::vmcall(), code::vmmcall()] {
        guest.start_in(0, program, &general, &special)?;
        match guest.run()? {
            exit @ Exit::Io { port: layout::VECTOR_PORT, .. } => {
                guest.took(exit, 6).or_else(|_| guest.took(exit, 13))?;
            }
            other => holds!(guest.said(other)? != 0, "a hypercall at CPL3 gave 0"),
        }
    }
    Ok(())
}

/// CR8 lowered is an exit where L1 has the APIC; raised it is not.
fn task_priority(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    guest.start(0, code::lowers_priority(), &[])?;
    same!(guest.run()?, Exit::Tpr(3), "the exit");
    same!(guest.done()?, 3, "EAX");
    Ok(())
}

fn state(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    let flags = |raw: &pv_abi::l0::run::RunExit| VcpuState::from_bits_truncate(raw.state);
    guest.start(0, code::sti_between(), &[])?;
    let (_, raw) = guest.exit(&control())?;
    let closed = VcpuState::INTERRUPTS_ENABLED | VcpuState::INTERRUPT_READY;
    same!(flags(&raw) & closed, VcpuState::empty(), "IF and READY before STI");
    holds!(flags(&raw).contains(VcpuState::KERNEL), "KERNEL");
    let (exit, raw) = guest.exit(&control())?;
    guest.said(exit)?;
    holds!(flags(&raw).contains(VcpuState::INTERRUPTS_ENABLED), "IF after STI");
    let general = registers::general(0, &[(gpr::RAX, 1)]);
    let general =
        pv_abi::l0::regs::Gprs { rflags: registers::FLAGS | registers::IOPL_3, ..general };
    guest.start_in(0, code::counts(), &general, &registers::user())?;
    let (exit, raw) = guest.exit(&control())?;
    same!(guest.said(exit)?, 1, "EAX of user code");
    holds!(!flags(&raw).contains(VcpuState::KERNEL), "KERNEL is set for user code");
    Ok(())
}

fn protected_mode(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    let general = registers::general(0, &[(gpr::RAX, 40), (gpr::RBX, 2), (gpr::RDI, layout::DATA)]);
    guest.start_in(0, code::protected_sum(), &general, &registers::protected())?;
    same!(guest.done()?, 42, "EAX");
    same!(ram::load(guest.at(layout::DATA)), 42, "what the program stored");
    Ok(())
}

/// Real mode, from the state after power-on but for CS: it runs, or RUN says FAILED.
fn other_modes(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    let mut special = registers::protected();
    special.cr0 = 0x10;
    let real = pv_abi::l0::regs::Segment { base: 0, limit: 0xffff, selector: 0, attributes: 0x93 };
    special.cs = pv_abi::l0::regs::Segment {
        base: layout::code(0),
        selector: (layout::code(0) >> 4) as u16,
        attributes: 0x9b,
        ..real
    };
    (special.ds, special.es, special.ss) = (real, real, real);
    (special.fs, special.gs) = (real, real);
    let general = pv_abi::l0::regs::Gprs { rip: 0, ..registers::general(0, &[]) };
    guest.start_in(0, code::started(), &general, &special)?;
    match guest.run()? {
        Exit::Hlt => {
            let found: u8 = ram::read(guest.at(layout::code(0) + 0xff0));
            same!(found, 0x77, "what the real-mode program stored");
            Ok(())
        }
        Exit::Failed(code) => skip!("this L0 runs no real mode (code {code:#x})"),
        other => wrong!("{other:x?}"),
    }
}
