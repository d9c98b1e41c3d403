//! Accesses to a device's memory: the I/O APIC in several forms of operands, and its interrupt.

use super::{Group, Setting, check};
use crate::{
    abi,
    code::Code,
    counters::{self, Counters, Exit},
    interrupts,
    kernel::code,
    paging::{self, A, D, NX, P, U, W},
    privileged,
    probe::Probe,
    registers::{Equal, Registers},
    tap::{Case, Verdict, equal},
    user::{self, Start},
};
use core::sync::atomic::Ordering::Relaxed;
use pv_abi::msr::arch;
use suite::native::uart::UART;

pub const GROUP: Group = Group {
    name: "device",
    setting: Setting::Anywhere,
    checks: &[
        check("loads", "DEV-2 DEV-3 MMU-8", loads),
        check("stores", "DEV-2 DEV-3", stores),
        check("addressing", "DEV-3", addressing),
        check("registers", "DEV-3", registers),
        check("user_mode", "DEV-3 INS-1", user_mode),
        check("nobody_there", "DEV-3 MMU-8", nobody_there),
        check("cost", "CNT-2", cost),
        check("uart_interrupt", "DEV-2", uart_interrupt),
    ],
};

const IOAPIC: u64 = 0xfec0_0000;
/// The window register behind the select register.
const DATA: u64 = 0x10;
/// Register 1: version 0x11, 24 lines.
const VERSION: u64 = 0x0017_0011;

/// Maps the I/O APIC for the kernel; its address.
fn map() -> u64 {
    paging::set_area(0, IOAPIC | P | W | A | D | NX)
}

/// Runs `code` with the device in RBX and `rax` in RAX; RAX afterwards.
fn run(code: Code, address: u64, rax: u64) -> Result<u64, crate::tap::Wrong> {
    let done = Probe::of(code).with(|r| (r.rbx, r.rax) = (address, rax)).run();
    done.finished()?;
    Ok(done.registers.rax)
}

fn select(register: u64) -> Verdict {
    run(code::store_32(), map(), register).map(|_| ())
}

/// Register `register` of the I/O APIC.
fn read(register: u64) -> Result<u64, crate::tap::Wrong> {
    select(register)?;
    run(code::load_32(), map() + DATA, 0)
}

fn write(register: u64, value: u64) -> Verdict {
    select(register)?;
    run(code::store_32(), map() + DATA, value).map(|_| ())
}

/// MOV, MOVZX, MOVSX from a device, in every size. It knows 32-bit accesses only.
fn loads() -> Verdict {
    const RAX: u64 = 0x1122_3344_5566_7788;
    select(1)?;
    let device = map() + DATA;
    for (name, code, expected) in [
        ("mov eax", code::load_32(), VERSION),
        ("mov al", code::load_8(), RAX | 0xff),
        ("mov ah", code::load_high(), RAX | 0xff00),
        ("mov ax", code::load_16(), RAX | 0xffff),
        ("mov rax", code::load(), u64::MAX),
        ("movzx eax, byte", code::load_zx_8(), 0xff),
        ("movzx eax, word", code::load_zx_16(), 0xffff),
        ("movzx rax, word", code::load_zx_16_64(), 0xffff),
        ("movsx eax, byte", code::load_sx_8(), 0xffff_ffff),
        ("movsx rax, word", code::load_sx_16_64(), u64::MAX),
        ("movsxd rax, dword", code::load_sx_32(), VERSION),
    ] {
        equal("RAX", run(code, device, RAX).case(name)?, expected).case(name)?;
    }
    Ok(())
}

/// MOV to a device from registers and immediates; sizes that it does not know change nothing.
fn stores() -> Verdict {
    write(0x12, 0x1_0042)?;
    equal("a route", read(0x12)?, 0x1_0042)?;
    select(0x12)?;
    let device = map() + DATA;
    run(code::store_imm(), device, 0)?;
    equal("by an immediate", read(0x12)?, 0x1_0055)?;
    run(code::store_r15(), device, 0)?;
    equal("by R15D, which is 0", read(0x12)?, 0)?;
    write(0x12, 0x1_0000)?;
    for code in [code::store_8(), code::store_16(), code::store(), code::store_imm_8()] {
        run(code, device, 0x77)?;
    }
    equal("after bytes, words and quadwords", read(0x12)?, 0x1_0000)
}

/// Base, index, displacement, absolute address, segment base, 32-bit addresses.
fn addressing() -> Verdict {
    select(1)?;
    let device = map();
    for (name, code, registers) in [
        ("[rbx + rcx * 4]", code::load_indexed(), (device - 0x10, 8)),
        ("[rbx + 0x10]", code::load_displaced(), (device, 0)),
        ("[ebx + 0x10]", code::load_32_bit_address(), (0xdead_0000_0000_0000 | device, 0)),
        ("absolute", code::load_absolute(), (0, 0)),
    ] {
        let done = Probe::of(code).with(|r| (r.rbx, r.rcx) = registers).run();
        done.finished().case(name)?;
        equal("RAX", done.registers.rax, VERSION).case(name)?;
    }
    abi::wrmsr(arch::GS_BASE, device);
    let done = Probe::of(code::load_gs_relative()).with(|r| r.rbx = DATA).run();
    abi::wrmsr(arch::GS_BASE, 0);
    done.finished()?;
    equal("GS-relative", done.registers.rax, VERSION)?;
    run(code::store_absolute(), 0, 0)?;
    equal("register selected by an absolute store", run(code::load_32(), device, 7)?, 0)
}

/// Nothing but the target changes, the flags neither.
fn registers() -> Verdict {
    let device = map();
    for code in [code::load_32(), code::store_32(), code::load_zx_16()] {
        let probe = Probe::of(code).with(|r| {
            *r = Registers { rsp: r.rsp, rbx: device, ..Registers::pattern() };
        });
        let done = probe.run();
        done.finished()?;
        done.registers.equal(&Registers { rax: done.registers.rax, ..probe.registers })?;
        equal("RFLAGS", done.rflags, 0x202)?;
    }
    Ok(())
}

/// A user page may lead to a device just as well.
fn user_mode() -> Verdict {
    select(1)?;
    let device = paging::set_area(1, IOAPIC | P | W | U | A | D | NX);
    let code = user::code::load_32();
    let trap = Start::of(code).with(|r| r.rbx = device + DATA).run();
    trap.is_syscall(code.end)?;
    equal("RAX", trap.registers.rax, VERSION)
}

/// Where neither RAM nor a device is, loads read ones and stores are dropped.
fn nobody_there() -> Verdict {
    for gpa in [0xd000_0000, 0xfee0_0000, 1 << 36] {
        let address = paging::set_area(0, gpa | P | W | NX);
        run(code::store(), address, 0x1234)?;
        equal("RAX", run(code::load(), address, 0)?, u64::MAX)?;
        let entry = paging::area_entry(0, 0).load(Relaxed);
        equal("A and D", entry & (A | D), A | D)?;
    }
    Ok(())
}

/// One exit for each access.
fn cost() -> Verdict {
    counters::needed()?;
    let device = map();
    let seen = Counters::of(|| {
        for _ in 0..10 {
            let _ = run(code::load_32(), device, 0);
        }
    });
    seen.exactly(&[(Exit::Mmio, 10)])
}

/// The UART's line.
const UART_LINE: u64 = 4;

/// Has `line` request `vector` of APIC id `id`.
pub fn route(line: u64, vector: u64, id: u64) -> Verdict {
    write(0x11 + 2 * line, id << 24)?;
    write(0x10 + 2 * line, vector)
}

/// Masks `line` again.
pub fn unroute(line: u64) -> Verdict {
    write(0x10 + 2 * line, 1 << 16)
}

/// Has the UART's line request `vector` of APIC id `id`.
pub fn route_uart(vector: u64, id: u64) -> Verdict {
    route(UART_LINE, vector, id)
}

/// Masks the line again.
pub fn unroute_uart() -> Verdict {
    unroute(UART_LINE)
}

/// Raises the UART's line: the transmitter is empty, and interrupts.
pub fn raise_uart() {
    privileged::out(UART + 1, 0);
    privileged::out(UART + 1, 2);
}

/// The UART's transmitter interrupts through line 4 of the I/O APIC.
fn uart_interrupt() -> Verdict {
    use privileged::kernel::code::{in_al, out_al};
    let port = |code: Code, port: u16, value: u64| {
        let done = Probe::of(code).with(|r| (r.rdx, r.rax) = (port.into(), value)).run();
        done.registers.rax & 0xff
    };
    let before = interrupts::count();
    write(0x19, 0)?;
    write(0x18, 0x52)?;
    // The transmitter is empty already: enabling its interrupt raises the line.
    port(out_al(), UART + 1, 2);
    let identity = port(in_al(), UART + 2, 0);
    abi::pvcs().enable_interrupts();
    abi::pvcs().disable_interrupts();
    let once = interrupts::count() - before;
    // Masked: the next edge is not delivered.
    write(0x18, 0x1_0052)?;
    port(out_al(), UART + 1, 0);
    port(out_al(), UART + 1, 2);
    abi::pvcs().enable_interrupts();
    abi::pvcs().disable_interrupts();
    port(in_al(), UART + 2, 0);
    port(out_al(), UART + 1, 0);
    equal("interrupt identification", identity & 0xf, 2)?;
    equal("interrupts", once as u64, 1)?;
    equal("vector", interrupts::vector(before), 0x52)?;
    equal("after masking", (interrupts::count() - before) as u64, 1)
}
