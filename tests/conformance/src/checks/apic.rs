//! The local APIC: inter-processor interrupts to oneself, priority, end of interrupt, the timer.

use super::{
    Group, Setting, check,
    msr_access::{keeps, reads},
};
use crate::{
    abi::{self, pvcs, tsc, wrmsr},
    clock, interrupts,
    tap::{Case, Verdict, equal, holds, within},
    timer::{self, VECTOR},
};
use pv_abi::msr::{arch, x2apic};

pub const GROUP: Group = Group {
    name: "apic",
    setting: Setting::Anywhere,
    checks: &[
        check("self_ipi", "EVT-7 DEV-1 DEV-7", self_ipi),
        check("icr_destinations", "DEV-6 SMP-1 EVT-10", icr_destinations),
        check("icr_reads_back", "DEV-1 DEV-6", icr_reads_back),
        check("priority", "DEV-7", priority),
        check("nesting", "DEV-7", nesting),
        check("task_priority", "DEV-7", task_priority),
        check("one_request_per_vector", "DEV-7", one_request_per_vector),
        check("one_shot", "DEV-5", one_shot),
        check("periodic", "DEV-5", periodic),
        check("divide", "DEV-5", divide),
        check("masked", "DEV-5", masked),
        check("deadline", "DEV-5 MSR-20", deadline),
        check("deadline_in_the_past", "DEV-5 MSR-20", deadline_in_the_past),
        check("mode_change_disarms", "DEV-5 MSR-20", mode_change_disarms),
    ],
};

/// Lets in what is pending; returns how many interrupts that were.
fn let_in() -> usize {
    let before = interrupts::count();
    pvcs().enable_interrupts();
    pvcs().disable_interrupts();
    interrupts::count() - before
}

fn last() -> u64 {
    interrupts::vector(interrupts::count() - 1)
}

/// SELF_IPI; vectors below 16 are none.
fn self_ipi() -> Verdict {
    for vector in [0x20, 0x7f, 0x81, 0xff] {
        holds("accepted", wrmsr(x2apic::SELF_IPI, vector))?;
        equal("requested", abi::rdmsr(x2apic::IRR0 + vector as u32 / 32), 1 << (vector % 32))?;
        equal("interrupts", let_in() as u64, 1)?;
        equal("vector", last(), vector)?;
    }
    wrmsr(x2apic::SELF_IPI, 15);
    equal("a vector that is none", abi::rdmsr(x2apic::IRR0), 0)
}

/// What reaches this vCPU, by shorthand, number, or mask.
fn icr_destinations() -> Verdict {
    for (name, icr, count) in [
        ("self", 1 << 18, 1),
        ("all", 2 << 18, 1),
        ("all but self", 3 << 18, 0),
        ("APIC id 0", 0, 1),
        ("APIC id 1", 1 << 32, 0),
        ("broadcast", 0xffff_ffff << 32, 1),
        ("logical 1", 1 << 32 | 1 << 11, 1),
        ("logical 2", 2 << 32 | 1 << 11, 0),
        ("lowest priority", 1 << 8, 1),
        ("NMI", 4 << 8, 0),
        ("INIT", 5 << 8, 0),
        ("start-up", 6 << 8, 0),
    ] {
        holds("accepted", wrmsr(x2apic::ICR, icr | 0x35)).case(name)?;
        equal("interrupts", let_in() as u64, count).case(name)?;
    }
    equal("vector", last(), 0x35)
}

/// All 64 bits, delivery status clear.
fn icr_reads_back() -> Verdict {
    keeps(x2apic::ICR, 7 << 32 | 0x4035, 7 << 32 | 0x4035)?;
    keeps(x2apic::ICR, 7 << 32 | 0x1035, 7 << 32 | 0x35)
}

/// Of what is pending, the highest vector comes first.
fn priority() -> Verdict {
    let before = interrupts::count();
    for vector in [0x41, 0x91, 0x51] {
        wrmsr(x2apic::SELF_IPI, vector);
    }
    // Each handler ends its interrupt, which lets the next one in once the flag is set again.
    equal("interrupts", let_in() as u64, 3)?;
    for (index, vector) in [0x91, 0x51, 0x41].into_iter().enumerate() {
        equal("vector", interrupts::vector(before + index), vector)?;
    }
    Ok(())
}

/// Without an end of interrupt only a higher class gets in; EOI ends the highest in service.
fn nesting() -> Verdict {
    interrupts::without_eoi(|| {
        wrmsr(x2apic::SELF_IPI, 0x51);
        equal("the first", let_in() as u64, 1)?;
        reads(x2apic::PPR, 0x50)?;
        equal("in service", abi::rdmsr(x2apic::ISR0 + 2), 1 << 17)?;
        wrmsr(x2apic::SELF_IPI, 0x58);
        wrmsr(x2apic::SELF_IPI, 0x41);
        equal("the same class and a lower one", let_in() as u64, 0)?;
        wrmsr(x2apic::SELF_IPI, 0x61);
        equal("a higher one", let_in() as u64, 1)?;
        equal("it", last(), 0x61)?;
        wrmsr(x2apic::EOI, 0);
        reads(x2apic::PPR, 0x50)?;
        equal("still the first", let_in() as u64, 0)?;
        wrmsr(x2apic::EOI, 0);
        equal("its class", let_in() as u64, 1)?;
        equal("it", last(), 0x58)?;
        wrmsr(x2apic::EOI, 0);
        equal("the lowest", let_in() as u64, 1)?;
        equal("it", last(), 0x41)?;
        wrmsr(x2apic::EOI, 0);
        reads(x2apic::PPR, 0)?;
        wrmsr(x2apic::EOI, 0);
        Ok(())
    })
}

/// TPR holds back its class and lower ones; lowering it lets them in.
fn task_priority() -> Verdict {
    wrmsr(x2apic::TPR, 0x50);
    wrmsr(x2apic::SELF_IPI, 0x5f);
    equal("held back", let_in() as u64, 0)?;
    wrmsr(x2apic::SELF_IPI, 0x60);
    equal("higher", let_in() as u64, 1)?;
    equal("it", last(), 0x60)?;
    let before = interrupts::count();
    pvcs().enable_interrupts();
    wrmsr(x2apic::TPR, 0x40);
    let at_once = interrupts::count() - before;
    pvcs().disable_interrupts();
    wrmsr(x2apic::TPR, 0);
    equal("at once when TPR falls", at_once as u64, 1)?;
    equal("it", last(), 0x5f)
}

/// A vector that is requested twice comes once; requested again in service, once more.
fn one_request_per_vector() -> Verdict {
    wrmsr(x2apic::SELF_IPI, 0x51);
    wrmsr(x2apic::SELF_IPI, 0x51);
    equal("requested twice", let_in() as u64, 1)?;
    interrupts::without_eoi(|| {
        wrmsr(x2apic::SELF_IPI, 0x51);
        let_in();
        wrmsr(x2apic::SELF_IPI, 0x51);
        equal("in service", let_in() as u64, 0)?;
        wrmsr(x2apic::EOI, 0);
        equal("afterwards", let_in() as u64, 1)?;
        wrmsr(x2apic::EOI, 0);
        Ok(())
    })
}

fn ticks(microseconds: u64) -> u64 {
    clock::microseconds(microseconds)
}

/// The count runs down once.
fn one_shot() -> Verdict {
    let before = interrupts::count();
    timer::set_mode(0);
    pvcs().enable_interrupts();
    let start = tsc();
    wrmsr(x2apic::TIMER_INITIAL, ticks(1000));
    let current = [abi::rdmsr(x2apic::TIMER_CURRENT), abi::rdmsr(x2apic::TIMER_CURRENT)];
    let arrived = timer::wait_for(before + 1);
    let elapsed = tsc() - start;
    timer::pass(1500);
    let again = interrupts::count() - before;
    let [initial, at_end] = [x2apic::TIMER_INITIAL, x2apic::TIMER_CURRENT].map(abi::rdmsr);
    timer::stop();
    pvcs().disable_interrupts();
    holds("it fired", arrived)?;
    holds("not early", elapsed >= ticks(1000))?;
    within("the count runs", current[0], 1, ticks(1000))?;
    holds("downwards", current[1] < current[0])?;
    equal("once", again as u64, 1)?;
    equal("initial count", initial, ticks(1000))?;
    equal("count at the end", at_end, 0)
}

/// It fires again and again, at its rate.
fn periodic() -> Verdict {
    let before = interrupts::count();
    timer::set_mode(timer::PERIODIC);
    pvcs().enable_interrupts();
    let start = tsc();
    wrmsr(x2apic::TIMER_INITIAL, ticks(400));
    let arrived = timer::wait_for(before + 5);
    let elapsed = tsc() - start;
    timer::stop();
    let count = interrupts::count();
    timer::pass(1000);
    let after = interrupts::count();
    pvcs().disable_interrupts();
    holds("five times", arrived)?;
    holds("not early", elapsed >= ticks(2000))?;
    within("nor after it was stopped", (after - count) as u64, 0, 1)?;
    equal("vector", interrupts::vector(before + 4), VECTOR.into())
}

/// The divisor stretches the count.
fn divide() -> Verdict {
    timer::set_mode(0);
    wrmsr(x2apic::LVT_TIMER, timer::MASKED);
    for (code, divisor) in [(0b1011, 1), (0, 2), (0b0011, 16), (0b1010, 128)] {
        wrmsr(x2apic::TIMER_DIVIDE, code);
        wrmsr(x2apic::TIMER_INITIAL, u32::MAX.into());
        let before = tsc();
        timer::pass(200);
        let elapsed = tsc() - before;
        let counted = u64::from(u32::MAX) - abi::rdmsr(x2apic::TIMER_CURRENT);
        let most = elapsed + ticks(100_000);
        within("ticks counted", counted * divisor, elapsed - divisor, most)?;
        wrmsr(x2apic::TIMER_INITIAL, 0);
    }
    timer::stop();
    Ok(())
}

/// Masked, it runs and says nothing.
fn masked() -> Verdict {
    timer::set_mode(timer::MASKED);
    wrmsr(x2apic::TIMER_INITIAL, ticks(50));
    timer::pass(300);
    let count = let_in();
    timer::stop();
    equal("interrupts", count as u64, 0)
}

/// The deadline reads back while it is armed, and 0 after it has fired.
fn deadline() -> Verdict {
    timer::set_mode(timer::DEADLINE);
    let value = tsc() + clock::tsc_hz();
    keeps(arch::TSC_DEADLINE, value, value)?;
    reads(x2apic::TIMER_CURRENT, 0)?;
    wrmsr(x2apic::TIMER_INITIAL, 1000);
    reads(x2apic::TIMER_CURRENT, 0).case("counts do nothing in this mode")?;
    let before = interrupts::count();
    pvcs().enable_interrupts();
    timer::arm(ticks(100));
    let arrived = timer::wait_for(before + 1);
    pvcs().disable_interrupts();
    holds("it fired", arrived)?;
    reads(arch::TSC_DEADLINE, 0)?;
    // Far enough that it cannot pass on its way, whatever L1 runs on.
    wrmsr(arch::TSC_DEADLINE, tsc() + ticks(5000));
    wrmsr(arch::TSC_DEADLINE, 0);
    timer::pass(7000);
    let count = let_in();
    timer::stop();
    equal("0 disarms", count as u64, 0)
}

/// A deadline that is past fires at once.
fn deadline_in_the_past() -> Verdict {
    timer::set_mode(timer::DEADLINE);
    for value in [1, tsc()] {
        wrmsr(arch::TSC_DEADLINE, value);
        equal("interrupts", let_in() as u64, 1)?;
    }
    timer::stop();
    Ok(())
}

/// Going from one mode to another disarms; the deadline register is deaf in the others.
fn mode_change_disarms() -> Verdict {
    timer::set_mode(timer::DEADLINE);
    timer::arm(ticks(5000));
    timer::set_mode(0);
    wrmsr(arch::TSC_DEADLINE, tsc() + ticks(50));
    reads(arch::TSC_DEADLINE, 0)?;
    timer::pass(7000);
    equal("the deadline is gone", let_in() as u64, 0)?;
    wrmsr(x2apic::TIMER_INITIAL, ticks(5000));
    wrmsr(x2apic::LVT_TIMER, timer::DEADLINE | u64::from(VECTOR));
    timer::pass(7000);
    let count = let_in();
    timer::stop();
    equal("so is the count", count as u64, 0)
}
