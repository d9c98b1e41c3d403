//! Interrupts that one vCPU requests of another, and waiting for them.

use super::devices;
use crate::{
    abi::{self, pvcs, wrmsr},
    interrupts, privileged,
    second::{self, INDEX},
    tap::{Case, Verdict, equal, holds},
    user::{Start, code},
};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use pv_abi::{
    ext::call,
    hypercall::{self as nr, EINVAL},
    msr::x2apic,
    pvcs::{flags, offset},
};
use suite::native::uart::UART;

/// A vector below all others in priority: when it has come, so has what was requested before.
const FENCE: u64 = 0x31;

fn send(mask: u64, vector: u64) -> u64 {
    abi::call(call::SEND_IPI, [mask, vector, 0, 0])
}

/// Takes interrupts in a loop that hardly needs the hypervisor.
fn spin() {
    pvcs().enable_interrupts();
    second::reached(1);
    while !second::quits() {
        for _ in 0..10_000 {
            // As code does that knows nothing of others.
            core::hint::black_box(());
        }
        // On one CPU, so that the other goes on soon.
        abi::call(call::YIELD, [0; 4]);
    }
    pvcs().disable_interrupts();
}

fn spinning() -> Verdict {
    second::start(spin)?;
    second::wait_for(1)
}

/// What `request` brings to vCPU 0 and to the second one: a number of interrupts each, all of
/// `vector`.
fn brings(vector: u64, expected: [u64; 2], request: impl FnOnce()) -> Verdict {
    let before = [0, 1].map(interrupts::count_of);
    request();
    equal("SEND_IPI", send(3, FENCE), 0)?;
    pvcs().enable_interrupts();
    pvcs().disable_interrupts();
    let arrived = |vcpu: usize| {
        let count = interrupts::count_of(vcpu);
        (before[vcpu]..count).any(|number| interrupts::vector_of(vcpu, number) == FENCE)
    };
    for vcpu in [0, INDEX] {
        holds("what comes last", second::wait(|| arrived(vcpu)))?;
        let numbers = before[vcpu]..interrupts::count_of(vcpu);
        let vectors = numbers.map(|number| interrupts::vector_of(vcpu, number));
        let mut found = 0;
        for other in vectors.filter(|&other| other != FENCE) {
            equal("vector", other, vector)?;
            found += 1;
        }
        let what = if vcpu == 0 { "interrupts of vCPU 0" } else { "interrupts of vCPU 1" };
        equal(what, found, expected[vcpu])?;
    }
    Ok(())
}

/// Every way in which an ICR value names vCPUs, from either side of the number.
pub fn destinations() -> Verdict {
    const LOGICAL: u64 = 1 << 11;
    spinning()?;
    for (name, icr, expected) in [
        ("APIC id 0", 0, [1, 0]),
        ("APIC id 1", 1 << 32, [0, 1]),
        ("an id that nobody has", 77 << 32, [0, 0]),
        ("the highest id", 0xffff_fffe << 32, [0, 0]),
        ("broadcast", 0xffff_ffff << 32, [1, 1]),
        ("logical 1", 1 << 32 | LOGICAL, [1, 0]),
        ("logical 2", 2 << 32 | LOGICAL, [0, 1]),
        ("logical 3", 3 << 32 | LOGICAL, [1, 1]),
        ("logical, all bits of the cluster", 0xffff << 32 | LOGICAL, [1, 1]),
        ("logical, another cluster", 1 << 48 | 3 << 32 | LOGICAL, [0, 0]),
        ("logical broadcast", 0xffff_ffff << 32 | LOGICAL, [1, 1]),
        ("self", 1 << 18, [1, 0]),
        ("self, whatever the id", 1 << 32 | 1 << 18, [1, 0]),
        ("all", 2 << 18, [1, 1]),
        ("all but self", 3 << 18, [0, 1]),
        ("lowest priority", 1 << 32 | 1 << 8, [0, 1]),
        ("SMI", 1 << 32 | 2 << 8, [0, 0]),
        ("NMI", 1 << 32 | 4 << 8, [0, 0]),
        ("INIT", 1 << 32 | 5 << 8, [0, 0]),
        ("start-up", 1 << 32 | 6 << 8, [0, 0]),
    ] {
        let request = || {
            wrmsr(x2apic::ICR, icr | 0x65);
        };
        brings(0x65, expected, request).case(name)?;
    }
    for vector in [0, 15] {
        let request = || {
            wrmsr(x2apic::ICR, 2 << 18 | vector);
        };
        brings(vector, [0, 0], request).case("a vector that is none")?;
    }
    holds("it still runs", !second::is_off())
}

/// SEND_IPI: by mask.
pub fn by_hypercall() -> Verdict {
    spinning()?;
    for (name, mask, expected) in [
        ("nobody", 0, [0, 0]),
        ("this vCPU", 1, [1, 0]),
        ("the other", 2, [0, 1]),
        ("both", 3, [1, 1]),
        ("vCPUs that there are not", u64::MAX << 32, [0, 0]),
        ("all", u64::MAX, [1, 1]),
    ] {
        for vector in [0x66, 0xff] {
            let mut result = 1;
            brings(vector, expected, || result = send(mask, vector)).case(name)?;
            equal("result", result, 0).case(name)?;
        }
    }
    for vector in [0, 15, 256, 1 << 32 | 0x66, u64::MAX] {
        let mut result = 0;
        brings(vector, [0, 0], || result = send(3, vector)).case("a vector that is none")?;
        equal("result", result, EINVAL)?;
    }
    Ok(())
}

/// What waits for IF comes by priority, once each, and IP says that it waits.
pub fn priority() -> Verdict {
    static FLAGS: AtomicU64 = AtomicU64::new(0);
    second::start(|| {
        second::reached(1);
        second::wait(|| second::stage() == 2);
        // Requests are told at the latest when L1 is entered for anything else.
        abi::cpuid(1, 0);
        FLAGS.store(pvcs().event_flags(), Relaxed);
        pvcs().enable_interrupts();
        pvcs().disable_interrupts();
        second::reached(3);
    })?;
    second::wait_for(1)?;
    let before = interrupts::count_of(INDEX);
    for vector in [0x41, 0x91, 0x51, 0x91] {
        equal("SEND_IPI", send(2, vector), 0)?;
    }
    equal("taken at once", (interrupts::count_of(INDEX) - before) as u64, 0)?;
    second::reached(2);
    second::ended()?;
    equal("event_flags", FLAGS.load(Relaxed), flags::IP)?;
    equal("interrupts", (interrupts::count_of(INDEX) - before) as u64, 3)?;
    for (number, vector) in (before..).zip([0x91, 0x51, 0x41]) {
        equal("vector", interrupts::vector_of(INDEX, number), vector)?;
    }
    Ok(())
}

/// User mode is interrupted though it never enters the hypervisor.
pub fn in_user_mode() -> Verdict {
    static SEEN: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
    SEEN[0].store(0, Relaxed);
    second::start(|| {
        second::reached(1);
        let trap = Start::of(code::spin()).run();
        SEEN[0].store(trap.event.word.into(), Relaxed);
        SEEN[1].store(trap.event.rip, Relaxed);
    })?;
    second::wait_for(1)?;
    // It is on its way, or there.
    for _ in 0..100 {
        abi::call(call::YIELD, [0; 4]);
    }
    equal("SEND_IPI", send(2, 0x71), 0)?;
    second::ended()?;
    equal("word", SEEN[0].load(Relaxed), 0x171)?;
    equal("RIP", SEEN[1].load(Relaxed), code::spin().start)
}

/// Waits in each of three ways, with IF clear before, and takes what has come.
const WAITS: [fn(); 3] = [
    || {
        abi::call(nr::IRQ_HALT, [0; 4]);
    },
    || {
        privileged::halt();
        pvcs().enable_interrupts();
    },
    || {
        abi::call(call::WAIT_IRQ, [0; 4]);
        pvcs().enable_interrupts();
    },
];

/// Waits until the other has sent one more, and answers. Ends by itself if nothing comes.
fn wait_and_answer(wait: fn()) {
    let mut taken = interrupts::count();
    second::reached(1);
    while !second::quits() {
        wait();
        pvcs().disable_interrupts();
        if interrupts::count() > taken && !second::quits() {
            taken += 1;
            send(1, 0x42);
        }
    }
}

/// Sends `rounds` interrupts to the second vCPU, which waits for them in its way, and waits for each
/// answer in the same way.
fn ping_pong(way: usize, rounds: usize) -> Verdict {
    // A function has no environment.
    const JOBS: [fn(); 3] =
        [|| wait_and_answer(WAITS[0]), || wait_and_answer(WAITS[1]), || wait_and_answer(WAITS[2])];
    second::start(JOBS[way])?;
    second::wait_for(1)?;
    let before = [0, 1].map(interrupts::count_of);
    for round in 1..=rounds {
        equal("SEND_IPI", send(2, 0x41), 0)?;
        // The first few with a limit: if those come, so should the rest.
        if round <= 3 {
            pvcs().enable_interrupts();
            holds("an answer", second::wait(|| interrupts::count() == before[0] + round))?;
        }
        while interrupts::count() < before[0] + round {
            WAITS[way]();
        }
        pvcs().disable_interrupts();
        equal("questions taken", (interrupts::count_of(INDEX) - before[1]) as u64, round as u64)?;
        equal("answers taken", (interrupts::count_of(0) - before[0]) as u64, round as u64)?;
    }
    second::quit();
    Ok(())
}

/// IRQ_HALT, HLT and WAIT_IRQ end when an interrupt comes from another vCPU.
pub fn ends_waits() -> Verdict {
    for (way, name) in ["IRQ_HALT", "HLT", "WAIT_IRQ"].into_iter().enumerate() {
        ping_pong(way, 50).case(name)?;
    }
    Ok(())
}

/// Thousands to and fro: each is answered, none comes twice.
pub fn none_is_lost() -> Verdict {
    ping_pong(0, 3000)
}

/// What is requested of a vCPU that is off never comes; what is requested when it is on does.
pub fn off_takes_none() -> Verdict {
    static REQUESTED: AtomicU64 = AtomicU64::new(0);
    second::needed()?;
    let before = interrupts::count_of(INDEX);
    equal("SEND_IPI", send(2, 0x51), 0)?;
    wrmsr(x2apic::ICR, 1 << 32 | 0x52);
    wrmsr(x2apic::ICR, 3 << 18 | 0x53);
    second::start(|| {
        abi::cpuid(1, 0);
        REQUESTED.store(abi::rdmsr(x2apic::IRR0 + 2), Relaxed);
        spin();
    })?;
    // Now it is on: this comes, at the latest when it lets interrupts in.
    equal("SEND_IPI", send(2, 0x54), 0)?;
    second::wait_for(1)?;
    let taken = || interrupts::count_of(INDEX) - before;
    holds("the one after the start", second::wait(|| taken() > 0))?;
    equal("its vector", interrupts::vector_of(INDEX, before), 0x54)?;
    equal("requested before", REQUESTED.load(Relaxed) & !(1 << 20), 0)?;
    equal("interrupts", taken() as u64, 1)
}

/// Waiting with IF clear: it ends, nothing is taken, and the flag is as it was.
pub fn wait_irq() -> Verdict {
    static SEEN: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];
    second::needed()?;
    let before = interrupts::count();
    wrmsr(x2apic::SELF_IPI, 0x61);
    equal("at once", abi::call(call::WAIT_IRQ, [0; 4]), 0)?;
    equal("event_flags", pvcs().event_flags(), flags::IP)?;
    equal("taken", (interrupts::count() - before) as u64, 0)?;
    // A request that priority holds back does not end it; one above does.
    second::start(|| {
        let before = interrupts::count();
        wrmsr(x2apic::TPR, 0x50);
        wrmsr(x2apic::SELF_IPI, 0x51);
        second::reached(1);
        SEEN[0].store(abi::call(call::WAIT_IRQ, [0; 4]), Relaxed);
        SEEN[1].store(pvcs().event_flags(), Relaxed);
        SEEN[2].store((interrupts::count() - before) as u64, Relaxed);
        SEEN[3].store(abi::rdmsr(x2apic::IRR0 + 3), Relaxed);
        wrmsr(x2apic::TPR, 0);
        second::reached(2);
        pvcs().enable_interrupts();
        pvcs().disable_interrupts();
    })?;
    pvcs().enable_interrupts();
    pvcs().disable_interrupts();
    equal("taken once it may", (interrupts::count() - before) as u64, 1)?;
    second::wait_for(1)?;
    for _ in 0..100 {
        abi::call(call::YIELD, [0; 4]);
    }
    equal("still waiting", second::stage() as u64, 1)?;
    let there = interrupts::count_of(INDEX);
    equal("SEND_IPI", send(2, 0x61), 0)?;
    second::ended()?;
    let [result, event_flags, taken, requested] = SEEN.each_ref().map(|word| word.load(Relaxed));
    equal("result", result, 0)?;
    equal("event_flags of the second vCPU", event_flags, flags::IP)?;
    equal("taken by it", taken, 0)?;
    equal("requested of it", requested, 2)?;
    equal("taken in the end", (interrupts::count_of(INDEX) - there) as u64, 2)?;
    // With the flag set, what ends the wait is taken, and the flag stays.
    let before = interrupts::count();
    wrmsr(x2apic::SELF_IPI, 0x81);
    pvcs().set_word(offset::EVENT_FLAGS, flags::IF);
    abi::call(call::WAIT_IRQ, [0; 4]);
    let left = pvcs().event_flags() & flags::IF;
    pvcs().disable_interrupts();
    equal("IF", left, flags::IF)?;
    equal("taken", (interrupts::count() - before) as u64, 1)
}

/// The UART's line, raised by an access of the second vCPU, with a table entry that names vCPU 1.
pub fn devices() -> Verdict {
    second::needed()?;
    let before = [0, 1].map(interrupts::count_of);
    devices::route_uart(0x52, 1)?;
    let raised = second::run(|| {
        pvcs().enable_interrupts();
        devices::raise_uart();
        abi::cpuid(1, 0);
        pvcs().disable_interrupts();
    });
    pvcs().enable_interrupts();
    let arrived = second::wait(|| interrupts::count() > before[0]);
    pvcs().disable_interrupts();
    privileged::out(UART + 1, 0);
    devices::unroute_uart()?;
    raised?;
    equal("interrupts of vCPU 1", (interrupts::count_of(INDEX) - before[1]) as u64, 0)?;
    holds("it came to vCPU 0", arrived)?;
    equal("vector", interrupts::vector(before[0]), 0x52)
}
