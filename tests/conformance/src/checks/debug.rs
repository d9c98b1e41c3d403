//! Debug registers: breakpoints of both modes, and addresses that must never be watched.

use super::{Group, Setting, check};
use crate::{
    abi, clock,
    code::Code,
    event::Event,
    kernel,
    paging::{self, A, D, NX, P, U, W},
    probe::Probe,
    tap::{Case, Verdict, equal, holds},
    user::{self, Start},
};
use pv_abi::{
    event::{BP, DB, GP, INT80, RFLAGS_RF, UD},
    hypercall,
};

pub const GROUP: Group = Group {
    name: "debug",
    setting: Setting::Anywhere,
    checks: &[
        check("reset_values", "INS-10", reset_values),
        check("read_back", "INS-10", read_back),
        check("refused", "INS-10", refused),
        check("user_execution", "INS-10", user_execution),
        check("user_data", "INS-10", user_data),
        check("kernel_execution", "INS-10", kernel_execution),
        check("kernel_data", "INS-10", kernel_data),
        check("disabled", "INS-10", disabled),
        check("hypervisor_addresses", "INS-10", hypervisor_addresses),
        check("edges", "INS-10", edges),
        check("mov_ss", "INS-10", mov_ss),
    ],
};

/// DR6 without anything to tell.
pub const DR6_RESET: u64 = 0xffff_0ff0;
const DR7_RESET: u64 = 0x400;

/// Kinds of breakpoints, as DR7 has them: what is watched, and how many bytes.
const EXECUTE: u64 = 0;
const WRITE_8: u64 = 0b1001;
const ACCESS_4: u64 = 0b1111;

/// DR7 with local breakpoint `number` of `kind`.
const fn armed(number: u64, kind: u64) -> u64 {
    1 << (2 * number) | kind << (16 + 4 * number) | DR7_RESET
}

/// Reads debug register `number`.
pub fn read(number: usize) -> u64 {
    Probe::of(reads(number)).run().registers.rax
}

/// Writes debug register `number`; false after #GP.
pub fn write(number: usize, value: u64) -> bool {
    Probe::of(writes(number)).with(|r| r.rax = value).run().event.is_none()
}

fn reads(number: usize) -> Code {
    use kernel::code;
    [
        code::read_dr0,
        code::read_dr1,
        code::read_dr2,
        code::read_dr3,
        code::read_dr4,
        code::read_dr5,
        code::read_dr6,
        code::read_dr7,
    ][number]()
}

fn writes(number: usize) -> Code {
    use kernel::code;
    [
        code::write_dr0,
        code::write_dr1,
        code::write_dr2,
        code::write_dr3,
        code::write_dr4,
        code::write_dr5,
        code::write_dr6,
        code::write_dr7,
    ][number]()
}

/// Runs `body` with breakpoint `number` of `kind` on `address`, and disarms it.
fn watching<T>(number: u64, kind: u64, address: u64, body: impl FnOnce() -> T) -> T {
    write(6, 0);
    write(number as usize, address);
    write(7, armed(number, kind));
    let result = body();
    // A CPU may report a match of an address that is not armed, too.
    write(7, DR7_RESET);
    write(number as usize, 0);
    result
}

fn hit(event: &Event, number: u64, rip: u64) -> Verdict {
    event.is(DB, 0, rip)?;
    equal("DR6", read(6), DR6_RESET | 1 << number)
}

/// Nothing armed, nothing to tell.
fn reset_values() -> Verdict {
    write(7, 0);
    for number in 0..4 {
        write(number, 0);
        equal("an address", read(number), 0)?;
    }
    write(6, 0);
    equal("DR6", read(6), DR6_RESET)?;
    equal("DR7", read(7), DR7_RESET)
}

/// Addresses read back as written, whatever they are; DR6 and DR7 within their fixed bits.
fn read_back() -> Verdict {
    for number in 0..4 {
        for value in [0x1234_5678, 0xffff_8080_0000_0000, 1 << 47, u64::MAX, 0] {
            holds("accepted", write(number, value))?;
            equal("address", read(number), value)?;
        }
    }
    write(6, 0xffff_ffff);
    equal("DR6", read(6), DR6_RESET | 0xe00f)?;
    write(6, 0);
    equal("DR6", read(6), DR6_RESET)?;
    write(7, 0xffff_2b00);
    equal("DR7 without GD", read(7) & !0x800, 0xffff_0700)?;
    write(7, 0);
    equal("DR7", read(7), DR7_RESET)
}

/// Upper halves of DR6 and DR7, registers that are none, and user mode.
fn refused() -> Verdict {
    for number in [6, 7] {
        let event = Probe::of(writes(number)).with(|r| r.rax = 1 << 32).run().event();
        event.is(GP, 0, writes(number).start)?;
    }
    for number in [4, 5] {
        for code in [reads(number), writes(number)] {
            let vector = Probe::of(code).run().event().vector();
            holds("DR4 and DR5", vector == GP || vector == UD)?;
        }
    }
    for code in [user::code::read_dr7(), user::code::write_dr7()] {
        Start::of(code).run().is(GP, 0, code.start)?;
    }
    Ok(())
}

/// Before the instruction in user mode; RF goes past it once.
fn user_execution() -> Verdict {
    for number in 0..4 {
        let target = user::code::nops().start + 2;
        let start = Start::of(user::code::nops());
        watching(number, EXECUTE, target, || {
            hit(&start.run().event, number, target)?;
            let past = Start { rip: target, ..start }.flags(RFLAGS_RF).run();
            past.is(UD, 0, user::code::nops().end)
        })?;
        start.run().is(UD, 0, user::code::nops().end)?;
    }
    Ok(())
}

/// Behind the instruction that writes; behind any access; not for reads where writes are watched.
fn user_data() -> Verdict {
    let data = paging::set_area(0, paging::frame(0) | P | W | U | A | D | NX);
    let (load, store) = (user::code::load(), user::code::store());
    let run = |code: Code| Start::of(code).with(|r| r.rbx = data).run();
    for number in 0..4 {
        watching(number, WRITE_8, data, || {
            hit(&run(store).event, number, store.start + 3)?;
            run(load).is_syscall(load.end)
        })?;
        watching(number, ACCESS_4, data + 4, || hit(&run(load).event, number, load.start + 3))?;
    }
    Ok(())
}

/// The same in supervisor mode.
fn kernel_execution() -> Verdict {
    let target = kernel::code::nops().start + 2;
    let event = watching(3, EXECUTE, target, || Probe::of(kernel::code::nops()).run().event());
    hit(&event, 3, target)
}

/// And its data.
fn kernel_data() -> Verdict {
    let data = paging::set_area(0, paging::frame(0) | P | W | A | D | NX);
    let store = kernel::code::store();
    let event =
        watching(0, WRITE_8, data, || Probe::of(store).with(|r| r.rbx = data).run().event());
    hit(&event, 0, store.start + 3)
}

/// What DR7 does not enable is not watched.
fn disabled() -> Verdict {
    let target = user::code::nops().start + 2;
    write(0, target);
    write(7, armed(1, EXECUTE));
    write(1, 0);
    let trap = Start::of(user::code::nops()).run();
    write(7, DR7_RESET);
    write(0, 0);
    trap.is(UD, 0, user::code::nops().end)
}

/// L1's own addresses: reported back as written, watched never, whatever L1 does there.
fn hypervisor_addresses() -> Verdict {
    const WINDOW: u64 = 0xffff_8080_0000_0000;
    for (address, kind) in [
        (WINDOW, EXECUTE),
        (WINDOW + 0x40, ACCESS_4),
        (WINDOW + 0x4018, ACCESS_4),
        (WINDOW + 0x6fe0, ACCESS_4),
        (WINDOW + 0x4000_0000, ACCESS_4),
        (0xffff_8000_0000_0000, EXECUTE),
        (0xffff_8100_0000_1000, ACCESS_4),
        (0xffff_8400_0000_0000, ACCESS_4),
        (abi::first_pvcs() | 0xffff_8100_0000_0000, ACCESS_4),
    ] {
        let (address_read, control_read) = watching(0, kind, address, || {
            // System calls, events, hypercalls, and a moment for interrupts.
            Start::of(user::code::syscall()).run();
            Start::of(user::code::undefined()).run();
            abi::call(hypercall::TLB_FLUSH, [0; 4]);
            let start = abi::tsc();
            while abi::tsc() - start < clock::microseconds(100) {}
            (read(0), read(7))
        });
        equal("DR6", read(6), DR6_RESET)?;
        equal("DR0", address_read, address)?;
        equal("DR7", control_read, armed(0, kind))?;
    }
    Ok(())
}

/// Breakpoints that would reach past the guest's addresses are not armed; the last legal one is.
fn edges() -> Verdict {
    for address in [0x7fff_ffff_fff9, 0x7fff_ffff_ffff, 1 << 47, u64::MAX - 3] {
        watching(0, WRITE_8, address, || {
            Start::of(user::code::syscall()).run().is_syscall(user::code::syscall().end)
        })?;
    }
    let last = 0x7fff_ffff_f000;
    paging::map(0, last, paging::frame(0) | P | W | U | A | D, 1);
    let store = user::code::store();
    watching(0, WRITE_8, last + 0xff8, || {
        let trap = Start::of(store).with(|r| r.rbx = last + 0xff8).run();
        hit(&trap.event, 0, store.start + 3)
    })
}

/// MOV SS with a breakpoint on its operand delays the #DB into whatever comes next. There it may
/// be lost; it must not hurt anybody.
fn mov_ss() -> Verdict {
    let data = paging::set_area(0, paging::frame(0) | P | W | U | A | D | NX);
    paging::write_bytes(paging::frame(0), &[0x2b, 0]);
    let cases = [
        ("INT3", user::code::mov_ss_int3(), Some(BP)),
        ("INT 0x80", user::code::mov_ss_int80(), Some(INT80)),
        ("UD2", user::code::mov_ss_undefined(), Some(UD)),
        ("SYSCALL", user::code::mov_ss_syscall(), None),
    ];
    for (name, code, vector) in cases {
        let trap = watching(0, 0b0111, data, || Start::of(code).with(|r| r.rbx = data).run());
        holds("vector", trap.vector == Some(DB) || trap.vector == vector).case(name)?;
    }
    let code = kernel::code::mov_ss_hypercall();
    let done = watching(0, 0b0111, data, || {
        Probe::of(code).with(|r| (r.rbx, r.rax) = (data, hypercall::TLB_FLUSH)).run()
    });
    holds("hypercall", done.event.is_none_or(|event| event.vector() == DB))
}
