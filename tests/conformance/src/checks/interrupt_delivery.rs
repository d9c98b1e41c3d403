//! When an interrupt is delivered: at once in user mode, by the virtual flag in supervisor mode.

use super::{Group, Setting, check};
use crate::{
    abi::{self, pvcs, tsc},
    clock,
    counters::{Counters, Exit, counted},
    interrupts, kernel, privileged,
    probe::Probe,
    registers::{Equal, Registers},
    tap::{Verdict, equal, holds, skip},
    timer::{self, VECTOR},
    user::{Start, code},
};
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use pv_abi::{
    event::RFLAGS_IF,
    hypercall as nr,
    msr::x2apic,
    pvcs::{flags, vector},
};

pub const GROUP: Group = Group {
    name: "interrupt",
    setting: Setting::Anywhere,
    checks: &[
        check("user", "EVT-9 EVT-1", user),
        check("user_registers", "EVT-1", user_registers),
        check("kernel", "EVT-9 EVT-2", kernel),
        check("kernel_registers", "EVT-2 RET-5", kernel_registers),
        check("held", "EVT-9 HC-4", held),
        check("held_until_eretu", "EVT-9 RET-3", held_until_eretu),
        check("irq_win", "HC-4 EVT-9", irq_win),
        check("irq_win_while_off", "HC-4 EVT-9", irq_win_while_off),
        check("irq_halt", "HC-5", irq_halt),
        check("irq_halt_pending", "HC-5", irq_halt_pending),
        check("irq_halt_long", "HC-5 DEV-5", irq_halt_long),
        check("hlt", "INS-12", hlt),
        check("sti_and_cli", "INS-11", sti_and_cli),
        check("popf_changes_nothing", "INS-20", popf_changes_nothing),
        check("none_is_lost", "EVT-9 DEV-5 HC-5", none_is_lost),
    ],
};

static SLOW: AtomicBool = AtomicBool::new(false);

/// Whether checks that take seconds are made.
pub fn allow_slow(slow: bool) {
    SLOW.store(slow, Relaxed);
}

fn taken_since(before: usize) -> u64 {
    (interrupts::count() - before) as u64
}

/// In user mode it arrives at once, whatever the virtual flag says.
fn user() -> Verdict {
    let start = Start::of(code::spin());
    let (trap, seen) = timer::armed(2000, || Counters::with(|| start.run()));
    // The timer, and the handler's end of interrupt.
    seen.exactly(&[(Exit::Timer, 1), (Exit::HypercallMsr, 1)])?;
    equal("word", trap.event.word.into(), (vector::STANDARD | u16::from(VECTOR)).into())?;
    equal("RIP", trap.event.rip, code::spin().start)?;
    equal("IF in the saved flags", trap.event.rflags & RFLAGS_IF, RFLAGS_IF)?;
    equal("event_flags", trap.event.flags, 0)
}

/// It leaves every register of user mode as it was.
fn user_registers() -> Verdict {
    let mut start = Start::of(code::spin());
    start.registers = Registers { rsp: u64::MAX, ..Registers::pattern() };
    start.gsbase = 0x7000_1000;
    let trap = timer::armed(50, || start.run());
    equal("vector", trap.event.vector().into(), VECTOR.into())?;
    trap.registers.equal(&start.registers)?;
    equal("GS base", trap.event.user_gsbase, start.gsbase)
}

/// In supervisor mode it arrives at once while the flag is set.
fn kernel() -> Verdict {
    let before = interrupts::count();
    let arrived = timer::armed(50, || {
        pvcs().enable_interrupts();
        timer::wait_for(before + 1)
    });
    holds("it arrived", arrived)?;
    equal("vector", interrupts::vector(before), VECTOR.into())
}

/// It leaves every register of supervisor mode as it was, flags included.
fn kernel_registers() -> Verdict {
    let probe = Probe::of(kernel::code::count_down()).with(|r| {
        *r = Registers { rsp: r.rsp, rcx: 200_000, ..Registers::pattern() };
    });
    let before = interrupts::count();
    let done = timer::armed(20, || {
        pvcs().enable_interrupts();
        probe.run()
    });
    holds("it arrived meanwhile", taken_since(before) == 1)?;
    done.finished()?;
    let expected = Registers { rcx: 0, ..probe.registers };
    done.registers.equal(&expected)?;
    equal("IF, and ZF of the last round", done.rflags & 0x240, 0x240)
}

/// Brings an interrupt about while the flag is clear: it must wait, and IP must say so.
fn hold(before: usize) -> Verdict {
    holds("IP is set", clock::wait(clock::tsc_hz(), || pvcs().event_flags() & flags::IP != 0))?;
    equal("interrupts taken", taken_since(before), 0)
}

/// While the flag is clear it waits; setting the flag and calling IRQ_WIN lets it in.
fn held() -> Verdict {
    let before = interrupts::count();
    timer::armed(20, || {
        hold(before)?;
        timer::pass(200);
        equal("interrupts taken", taken_since(before), 0)?;
        pvcs().enable_interrupts();
        equal("interrupts taken after IRQ_WIN", taken_since(before), 1)
    })?;
    equal("event_flags", pvcs().event_flags(), 0)
}

/// An interrupt that waits makes ERETU exit, and comes before the first user instruction.
fn held_until_eretu() -> Verdict {
    let before = interrupts::count();
    let start = Start::of(code::undefined());
    let (held, (trap, seen)) = timer::armed(20, || (hold(before), Counters::with(|| start.run())));
    held?;
    equal("vector", trap.event.vector().into(), VECTOR.into())?;
    equal("RIP", trap.event.rip, start.rip)?;
    // ERETU and the handler's end of interrupt.
    seen.exactly(&[(Exit::Eretu, 1), (Exit::HypercallMsr, 1)])?;
    equal("IP is clear again", trap.event.flags & flags::IP, 0)?;
    // The way is direct again.
    let seen = Counters::of(|| Start::of(code::syscall()).run());
    seen.exactly(&[])?;
    counted("direct switches", seen.direct_switches, 2)
}

/// IRQ_WIN delivers on its return, once, and clears IP.
fn irq_win() -> Verdict {
    let before = interrupts::count();
    abi::wrmsr(x2apic::SELF_IPI, 0x31);
    equal("IP", pvcs().event_flags(), flags::IP)?;
    let seen = Counters::of(|| pvcs().enable_interrupts());
    let flags_after = pvcs().event_flags();
    pvcs().disable_interrupts();
    seen.exactly(&[(Exit::Hypercall, 1), (Exit::HypercallMsr, 1)])?;
    counted("events", seen.events, 1)?;
    equal("interrupts taken", taken_since(before), 1)?;
    equal("event_flags", flags_after, flags::IF)
}

/// With the flag clear, IRQ_WIN delivers nothing and IP is set again.
fn irq_win_while_off() -> Verdict {
    let before = interrupts::count();
    abi::wrmsr(x2apic::SELF_IPI, 0x31);
    abi::call(nr::IRQ_WIN, [0; 4]);
    let taken = taken_since(before);
    let flags_after = pvcs().event_flags();
    pvcs().enable_interrupts();
    pvcs().disable_interrupts();
    equal("interrupts taken", taken, 0)?;
    equal("event_flags", flags_after, flags::IP)?;
    equal("interrupts taken in the end", taken_since(before), 1)
}

/// IRQ_HALT sets the flag and waits; it returns after the interrupt.
fn irq_halt() -> Verdict {
    let before = interrupts::count();
    let (seen, elapsed, on) = timer::armed(500, || {
        let start = tsc();
        let seen = Counters::of(|| {
            abi::call(nr::IRQ_HALT, [0; 4]);
        });
        (seen, tsc() - start, pvcs().event_flags())
    });
    equal("interrupts taken", taken_since(before), 1)?;
    // Arming and starting takes some of it.
    holds("it slept", elapsed > clock::microseconds(300))?;
    equal("event_flags", on, flags::IF)?;
    counted("exits to halt", seen.count(Exit::Halt), 1)
}

/// With something pending it does not wait at all.
fn irq_halt_pending() -> Verdict {
    let before = interrupts::count();
    abi::wrmsr(x2apic::SELF_IPI, 0x31);
    abi::call(nr::IRQ_HALT, [0; 4]);
    pvcs().disable_interrupts();
    equal("interrupts taken", taken_since(before), 1)
}

/// A deadline past what a 32-bit timer below can count is not slept through.
fn irq_halt_long() -> Verdict {
    const MICROSECONDS: u64 = 4_600_000;
    if !SLOW.load(Relaxed) {
        return skip("takes five seconds: ask for it with the word slow");
    }
    let before = interrupts::count();
    let elapsed = timer::armed(MICROSECONDS, || {
        let start = tsc();
        abi::call(nr::IRQ_HALT, [0; 4]);
        tsc() - start
    });
    equal("interrupts taken", taken_since(before), 1)?;
    holds("it slept to the end", elapsed > clock::microseconds(MICROSECONDS - 1000))
}

/// HLT waits too, and goes on behind itself.
fn hlt() -> Verdict {
    let before = interrupts::count();
    let (done, elapsed) = timer::armed(300, || {
        pvcs().enable_interrupts();
        let start = tsc();
        (Probe::of(privileged::kernel::code::hlt()).run(), tsc() - start)
    });
    done.finished()?;
    equal("interrupts taken", taken_since(before), 1)?;
    holds("it slept", elapsed > clock::microseconds(100))
}

/// STI and CLI are emulated on the virtual flag; STI lets in what waits.
fn sti_and_cli() -> Verdict {
    let before = interrupts::count();
    Probe::of(privileged::kernel::code::sti()).run().finished()?;
    let on = pvcs().event_flags();
    Probe::of(privileged::kernel::code::cli()).run().finished()?;
    equal("event_flags after STI", on, flags::IF)?;
    equal("event_flags after CLI", pvcs().event_flags(), 0)?;
    abi::wrmsr(x2apic::SELF_IPI, 0x31);
    equal("it waits", taken_since(before), 0)?;
    let seen = Counters::of(|| Probe::of(privileged::kernel::code::sti()).run());
    pvcs().disable_interrupts();
    equal("it was let in", taken_since(before), 1)?;
    seen.exactly(&[(Exit::Emulated, 1), (Exit::HypercallMsr, 1)])
}

/// POPF and PUSHF do not reach the virtual flag: IF always reads 1.
fn popf_changes_nothing() -> Verdict {
    let done = Probe::of(kernel::code::popf()).run();
    done.finished()?;
    equal("IF as PUSHF shows it", done.registers.rax & RFLAGS_IF, RFLAGS_IF)?;
    equal("event_flags", pvcs().event_flags(), 0)
}

/// Ten thousand deadlines, very near or past, each awaited in another way: none goes missing.
fn none_is_lost() -> Verdict {
    const ROUNDS: usize = 10_000;
    timer::set_mode(timer::DEADLINE);
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut verdict = Ok(());
    for round in 0..ROUNDS {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let before = interrupts::count();
        timer::arm(random % 8192);
        let arrived = match round % 4 {
            0 => {
                pvcs().enable_interrupts();
                timer::wait_for(before + 1)
            }
            1 => {
                abi::call(nr::IRQ_HALT, [0; 4]);
                taken_since(before) == 1
            }
            2 => Start::of(code::spin()).run().event.vector() == VECTOR,
            _ => {
                // Long enough that it is due, then let in.
                clock::wait(8192, || false);
                pvcs().enable_interrupts();
                timer::wait_for(before + 1)
            }
        };
        pvcs().disable_interrupts();
        verdict = holds("it arrived", arrived).and(equal("interrupts", taken_since(before), 1));
        if verdict.is_err() {
            break;
        }
    }
    timer::stop();
    verdict
}
