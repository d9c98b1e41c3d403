//! Several vCPUs: starting and stopping the second, and what is its own.

use super::{Group, Setting, check, smp_flush, smp_ipi, smp_state};
use crate::{
    abi::{self, tsc},
    clock,
    counters::{self, Exit},
    entry, paging,
    registers::{Equal, Registers},
    second::{self, ARGUMENT, INDEX},
    tap::{Case, Verdict, equal, holds, skip, within},
    user::{Start, code},
};
use core::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};
use pv_abi::{
    event::{GP, RFLAGS_FORCED},
    ext::{Features, call},
    hypercall::EINVAL,
    msr::{self, PVM_VCPU_STRUCT, arch, steal, x2apic},
    pvcs::offset,
};

pub const GROUP: Group = Group {
    name: "smp",
    setting: Setting::Feature(Features::SMP),
    checks: &[
        check("start", "FEAT-10 SMP-1 SMP-2 XHC-16", start),
        check("start_refused", "SMP-4 XHC-16", start_refused),
        check("state", "SMP-5 XHC-17 XHC-18", state),
        check("numbers", "SMP-9 SEL-2 DET-6 DET-9 DEV-1 MSR-12 MSR-29", numbers),
        check("restart", "SMP-3", smp_state::restart),
        check("own_registers", "SMP-9", smp_state::own_registers),
        check("own_modes", "SMP-9 RET-1 EVT-5", smp_state::own_modes),
        check("own_counters", "SMP-9 CNT-1", own_counters),
        check("ipi_destinations", "SMP-7 DEV-6 SMP-1 EVT-10", smp_ipi::destinations),
        check("ipi_by_hypercall", "SMP-7 XHC-19", smp_ipi::by_hypercall),
        check("ipi_priority", "SMP-7 DEV-7 EVT-9", smp_ipi::priority),
        check("ipi_in_user_mode", "SMP-7 EVT-9", smp_ipi::in_user_mode),
        check("ipi_ends_waits", "SMP-7 HC-5 INS-12", smp_ipi::ends_waits),
        check("ipi_none_is_lost", "SMP-7 HC-5", smp_ipi::none_is_lost),
        check("off_takes_no_interrupts", "SMP-6", smp_ipi::off_takes_none),
        check("wait_irq", "XHC-22 SMP-7", smp_ipi::wait_irq),
        check("yield", "XHC-21", yields),
        check("devices", "DEV-8", smp_ipi::devices),
        check("flush_mask", "SMP-8 XHC-20", smp_flush::mask),
        check("flush_address", "SMP-8 XHC-20 MMU-6", smp_flush::address),
        check("flush_everything", "SMP-8 XHC-20 MMU-6", smp_flush::everything),
        check("flush_other_space", "SMP-8 XHC-20", smp_flush::other_space),
        check("pvcs_changes_meanwhile", "PVCS-3 RET-4", pvcs_changes_meanwhile),
        check("steal_time", "MSR-30", steal_time),
        check("steal_time_refused", "MSR-30 ERR-1", steal_time_refused),
    ],
};

/// PVCS, root and the frame of the stack, as the second vCPU finds them.
static FOUND: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];

/// It starts where it is told, with two registers set, and does something.
fn start() -> Verdict {
    second::run_bare(|| {
        FOUND[0].store(abi::rdmsr(PVM_VCPU_STRUCT), Relaxed);
        FOUND[1].store(smp_state::cr3(), Relaxed);
        FOUND[2].store(smp_state::selectors(), Relaxed);
    })?;
    let started = entry::second_started();
    let expected = Registers { rdi: ARGUMENT, rsi: INDEX as u64, ..Registers::default() };
    started.registers.equal(&expected)?;
    equal("RFLAGS", started.rflags, RFLAGS_FORCED)?;
    let [pvcs, cr3, selectors] = FOUND.each_ref().map(|word| word.load(Relaxed));
    equal("PVCS", pvcs, 0)?;
    equal("CR3", cr3, paging::cr3(0))?;
    equal("CS and SS", selectors, 0x2b_0033)
}

/// What cannot be started is not, and what runs is left alone.
fn start_refused() -> Verdict {
    second::needed()?;
    let root = paging::cr3(0);
    let [vcpus, entry] = [entry::boot().vcpus.into(), second::entry()];
    let attempt = |vcpu, entry, root| abi::call(call::VCPU_START, [vcpu, entry, 0, root]);
    for (name, vcpu, entry, root) in [
        ("no such vCPU", vcpus, entry, root),
        ("number 64", 64, entry, root),
        ("a number with an upper half", 1 << 32 | 1, entry, root),
        ("number -1", u64::MAX, entry, root),
        ("itself", 0, entry, root),
        ("an entry that is not canonical", 1, 1 << 47, root),
        ("an entry between the halves", 1, 0xffff_7fff_ffff_f000, root),
        ("a root without RAM", 1, entry, 1 << 36),
    ] {
        equal("result", attempt(vcpu, entry, root), EINVAL).case(name)?;
        equal("state", abi::call1(call::VCPU_STATE, 1), 0).case(name)?;
    }
    second::start(|| {
        second::reached(1);
        second::wait(second::quits);
    })?;
    second::wait_for(1)?;
    equal("one that runs", attempt(1, entry, root), EINVAL)?;
    second::quit();
    // Low bits of CR3, and those above the address, do not count.
    second::run(|| second::reached(1))?;
    equal("its job", second::stage() as u64, 1)
}

fn state_of(vcpu: u64) -> u64 {
    abi::call1(call::VCPU_STATE, vcpu)
}

/// On and off, as all see it.
fn state() -> Verdict {
    second::needed()?;
    equal("itself", state_of(0), 1)?;
    equal("before the start", state_of(1), 0)?;
    let vcpus = u64::from(entry::boot().vcpus);
    for vcpu in [vcpus, 64, 1 << 32, u64::MAX] {
        equal("of none", state_of(vcpu), EINVAL)?;
    }
    for other in 2..vcpus {
        equal("of one that nobody started", state_of(other), 0)?;
    }
    for _ in 0..3 {
        second::start(|| {
            FOUND[0].store(state_of(1), Relaxed);
            FOUND[1].store(state_of(0), Relaxed);
            second::reached(1);
            second::wait(second::quits);
        })?;
        second::wait_for(1)?;
        equal("while it runs", state_of(1), 1)?;
        second::quit();
        equal("as it sees itself", FOUND[0].load(Relaxed), 1)?;
        equal("as it sees vCPU 0", FOUND[1].load(Relaxed), 1)?;
        equal("afterwards", state_of(1), 0)?;
    }
    Ok(())
}

static NUMBERS: [AtomicU64; 8] = [const { AtomicU64::new(0) }; 8];

/// Whatever tells a vCPU's number.
fn numbers() -> Verdict {
    second::run(|| {
        let found = [
            smp_state::limit(0x83),
            smp_state::limit(0x7b),
            (abi::cpuid(1, 0)[1] >> 24).into(),
            abi::cpuid(0xb, 0)[3].into(),
            abi::rdmsr(x2apic::ID),
            abi::rdmsr(x2apic::LDR),
            abi::rdmsr(arch::APIC_BASE),
            abi::rdmsr(arch::TSC_AUX),
        ];
        for (word, value) in NUMBERS.iter().zip(found) {
            word.store(value, Relaxed);
        }
    })?;
    for (word, (name, expected)) in NUMBERS.iter().zip([
        ("limit of slot 16", 1),
        ("limit of slot 15", 1),
        ("CPUID leaf 1", 1),
        ("CPUID leaf 0xb", 1),
        ("APIC id", 1),
        ("logical id", 2),
        ("APIC base", 0xfee0_0c00),
        ("TSC_AUX", smp_state::has_rdtscp().into()),
    ]) {
        equal(name, word.load(Relaxed), expected)?;
    }
    equal("limit of vCPU 0", smp_state::limit(0x83), 0)
}

/// What the second vCPU does is counted there, and not here.
fn own_counters() -> Verdict {
    const CALLS: u64 = 1000;
    counters::needed()?;
    second::start(|| {
        second::reached(1);
        second::wait(|| second::stage() == 2);
        let before = counters::read(Exit::Invlpg as u64);
        for _ in 0..CALLS {
            paging::invlpg(paging::area(0));
        }
        FOUND[0].store(counters::read(Exit::Invlpg as u64) - before, Relaxed);
        second::reached(3);
        second::wait(second::quits);
    })?;
    second::wait_for(1)?;
    let before = counters::read(Exit::Invlpg as u64);
    second::reached(2);
    second::wait_for(3)?;
    let after = counters::read(Exit::Invlpg as u64);
    equal("there", FOUND[0].load(Relaxed), CALLS)?;
    equal("here", after - before, 0)?;
    // They go on when it is started again.
    second::quit();
    second::run(|| FOUND[0].store(counters::read(Exit::Invlpg as u64), Relaxed))?;
    within("after the next start", FOUND[0].load(Relaxed), CALLS, u64::MAX)
}

/// YIELD gives way and changes nothing.
fn yields() -> Verdict {
    const ROUNDS: u64 = 200;
    static BALL: AtomicU64 = AtomicU64::new(0);
    second::needed()?;
    equal("alone", abi::call(call::YIELD, [0; 4]), 0)?;
    BALL.store(0, Relaxed);
    second::start(|| {
        while !second::quits() {
            if BALL.load(Acquire) % 2 == 1 {
                BALL.fetch_add(1, Release);
            }
            abi::call(call::YIELD, [0; 4]);
        }
    })?;
    let mut fastest = u64::MAX;
    for round in 0..ROUNDS {
        let start = tsc();
        BALL.store(2 * round + 1, Release);
        holds("the other goes on", second::wait(|| BALL.load(Acquire) == 2 * round + 2))?;
        fastest = fastest.min(tsc() - start);
    }
    // On one CPU, each would take a slice.
    within("ticks of the fastest", fastest, 0, clock::microseconds(1000))
}

/// A user RIP that the second vCPU changes while this one returns to it: one value or the other, all
/// the way, and never a mixture of both.
fn pvcs_changes_meanwhile() -> Verdict {
    const ROUNDS: u64 = 20_000;
    const NOWHERE: u64 = 0x8000_0000_0000_0000;
    static FIELD: AtomicU64 = AtomicU64::new(0);
    static VALUES: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
    let good = code::syscall();
    FIELD.store(abi::pvcs().address() + offset::RIP as u64, Relaxed);
    VALUES[0].store(good.start, Relaxed);
    VALUES[1].store(NOWHERE, Relaxed);
    second::start(|| {
        let shared = abi::Shared::at_address(FIELD.load(Relaxed) - offset::RIP as u64);
        let values = VALUES.each_ref().map(|value| value.load(Relaxed));
        let mut round = 0usize;
        second::reached(1);
        while !second::quits() {
            // Only what the first has put there is replaced: its events stay as they are.
            for value in [values[round % 2], values[0]] {
                shared.exchange_word(offset::RIP, values[0], value);
                shared.exchange_word(offset::RIP, values[1], value);
            }
            round += 1;
        }
    })?;
    second::wait_for(1)?;
    let mut refused = 0;
    for round in 0..ROUNDS {
        let mut start = Start::of(good);
        if round % 2 == 0 {
            // Not a direct switch: the selectors are others.
            start.selectors = 0x002b_0030;
        }
        let trap = start.run();
        // What says where it came from may have been replaced as well.
        match trap.vector {
            None => {}
            Some(GP) => {
                refused += 1;
                equal("error code", trap.event.error, 0)?;
            }
            Some(other) => return equal("vector", other.into(), GP.into()),
        }
    }
    second::quit();
    let trap = Start::of(good).run();
    trap.is_syscall(good.end)?;
    within("refused returns", refused, 0, ROUNDS)
}

/// Steal time as the page at `physical` tells it.
fn told(physical: u64) -> Option<u64> {
    let version = || paging::word(physical + steal::VERSION as u64).load(Acquire) as u32;
    let before = version();
    let time = paging::word(physical + steal::TIME as u64).load(Acquire);
    (before % 2 == 0 && version() == before).then_some(time)
}

/// Two vCPUs that never wait. Where they share a CPU, the time that one lacks is the time it is told.
fn steal_time() -> Verdict {
    static PROGRESS: AtomicU64 = AtomicU64::new(0);
    let page = paging::frame(0);
    for word in 0..16 {
        paging::word(page + 8 * word).store(u64::MAX, Relaxed);
    }
    second::needed()?;
    let value = page | 1;
    holds("registered", abi::wrmsr(msr::KVM_STEAL_TIME, value))?;
    equal("reads back", abi::rdmsr(msr::KVM_STEAL_TIME), value)?;
    for word in 2..8 {
        equal("the rest", paging::word(page + 8 * word).load(Relaxed), 0)?;
    }
    equal("behind it", paging::word(page + 64).load(Relaxed), u64::MAX)?;
    let first = told(page);
    holds("it is stable", first.is_some())?;
    second::start(|| {
        second::reached(1);
        while !second::quits() {
            PROGRESS.fetch_add(1, Relaxed);
        }
    })?;
    second::wait_for(1)?;
    let (start, mut last) = (tsc(), told(page).unwrap_or(0));
    let (mut before, mut progress) = ([start; 2], PROGRESS.load(Relaxed));
    let (mut gaps, mut parallel, mut falls) = (0, 0, 0);
    // A busy host may run two CPUs by turns: then it takes longer to see how many there are.
    let most = if second::patient() { 20_000_000 } else { 500_000 };
    let enough = |last, parallel: u32, elapsed| {
        let least = if last != first.unwrap_or(0) || parallel > 3 { 60_000 } else { most };
        elapsed > clock::microseconds(least)
    };
    while !enough(last, parallel, tsc() - start) {
        let (earlier, found, later) = (tsc(), PROGRESS.load(Relaxed), tsc());
        // Whatever happened between the two loads happened between these.
        if found != progress && later - before[0] < clock::microseconds(1000) {
            parallel += 1;
        }
        let pieces = [earlier - before[1], later - earlier];
        gaps += pieces.into_iter().filter(|&gap| gap > clock::microseconds(1000)).sum::<u64>();
        if let Some(time) = told(page) {
            falls += u64::from(time < last);
            last = time;
        }
        (before, progress) = ([earlier, later], found);
    }
    let elapsed = tsc() - start;
    second::quit();
    abi::wrmsr(msr::KVM_STEAL_TIME, 0);
    equal("falls of the time", falls, 0)?;
    let nanoseconds = |ticks: u64| ticks * 1000 / clock::microseconds(1);
    let stolen = last - first.unwrap_or(0);
    if parallel > 3 {
        return Ok(());
    }
    // One CPU for both: they never ran at the same time.
    within("nanoseconds", stolen, nanoseconds(gaps) / 2, nanoseconds(elapsed) * 2)?;
    within("of them", stolen, 1, u64::MAX)
}

/// Reserved bits, and a page that is no memory.
fn steal_time_refused() -> Verdict {
    if abi::cpuid(pv_abi::cpuid::KVM_BASE + 1, 0)[0] & pv_abi::cpuid::KVM_FEATURE_STEAL_TIME == 0 {
        return skip("no steal time is offered");
    }
    let page = paging::frame(0);
    for bit in 1..6 {
        super::msr_access::refuses(msr::KVM_STEAL_TIME, page | 1 << bit)?;
        super::msr_access::refuses(msr::KVM_STEAL_TIME, page | 1 << bit | 1)?;
    }
    super::msr_access::refuses(msr::KVM_STEAL_TIME, 1 << 36 | 1)?;
    super::msr_access::keeps(msr::KVM_STEAL_TIME, page, page)?;
    super::msr_access::keeps(msr::KVM_STEAL_TIME, 0, 0)
}
