//! What each vCPU has for itself, and what it has when it starts again.
#![expect(unsafe_code, reason = "registers that only instructions reach")]

use super::segments::{DATA, FLAT, descriptor};
use crate::{
    abi::{self, wrmsr},
    entry, extension, paging,
    second::{self, INDEX},
    tap::{Verdict, equal},
    user::{self, Start},
};
use core::{
    arch::asm,
    sync::atomic::{
        AtomicU64, AtomicUsize,
        Ordering::{Acquire, Relaxed, Release},
    },
};
use pv_abi::{
    ext::{Features, call},
    hypercall as nr,
    msr::{self, arch, x2apic},
};

/// CR3.
pub fn cr3() -> u64 {
    let value;
    // SAFETY: reading it changes nothing.
    unsafe { asm!("mov {}, cr3", out(reg) value, options(nomem, nostack)) };
    value
}

/// `cs | ss << 16`.
pub fn selectors() -> u64 {
    let (cs, ss): (u64, u64);
    // SAFETY: as above.
    unsafe {
        asm!("mov {:e}, cs", "mov {:e}, ss", out(reg) cs, out(reg) ss, options(nomem, nostack))
    };
    cs | ss << 16
}

/// The limit that LSL finds at `selector`; all ones if there is none to see.
pub fn limit(selector: u16) -> u64 {
    let found;
    // SAFETY: LSL changes nothing but its destination and the flags.
    unsafe {
        asm!("lsl {found:r}, {selector:r}", found = inout(reg) u64::MAX => found,
            selector = in(reg) u64::from(selector), options(nomem, nostack));
    }
    found
}

/// Bit-wise: DS, ES, FS, GS.
fn data_selectors() -> u64 {
    let (ds, es, fs, gs): (u64, u64, u64, u64);
    // SAFETY: reading them changes nothing.
    unsafe {
        asm!("mov {:e}, ds", "mov {:e}, es", "mov {:e}, fs", "mov {:e}, gs",
            out(reg) ds, out(reg) es, out(reg) fs, out(reg) gs, options(nomem, nostack));
    }
    ds | es << 16 | fs << 32 | gs << 48
}

/// True if the CPU has RDTSCP, and so TSC_AUX.
pub fn has_rdtscp() -> bool {
    abi::native_cpuid(0x8000_0001, 0)[3] >> 27 & 1 == 1
}

/// TSC_AUX as the CPU has it; 0 if it has none.
fn tsc_aux() -> u64 {
    if !has_rdtscp() {
        return 0;
    }
    let value: u32;
    // SAFETY: the CPU has it, and it changes nothing but three registers.
    unsafe {
        asm!("rdtscp", out("ecx") value, out("eax") _, out("edx") _, options(nomem, nostack));
    }
    value.into()
}

macro_rules! register {
    ($read:ident, $write:ident, $name:literal) => {
        fn $read() -> u64 {
            let value;
            // SAFETY: the hypervisor answers for it; nothing is changed.
            unsafe { asm!(concat!("mov {}, ", $name), out(reg) value, options(nomem, nostack)) };
            value
        }

        fn $write(value: u64) {
            // SAFETY: no breakpoint is armed, and no flag that matters to this program is set.
            unsafe { asm!(concat!("mov ", $name, ", {}"), in(reg) value, options(nostack)) };
        }
    };
}

register!(dr0, set_dr0, "dr0");
register!(dr1, set_dr1, "dr1");
register!(dr2, set_dr2, "dr2");
register!(dr3, set_dr3, "dr3");
register!(dr6, set_dr6, "dr6");
register!(dr7, set_dr7, "dr7");
register!(cr0, set_cr0, "cr0");
register!(cr4, set_cr4, "cr4");

/// MSRs that hold any small value, or one that is made of it.
const MSRS: [u32; 9] = [
    arch::FS_BASE,
    arch::GS_BASE,
    arch::KERNEL_GS_BASE,
    arch::CSTAR,
    arch::SFMASK,
    arch::SYSENTER_ESP,
    arch::SYSENTER_EIP,
    arch::TSC_AUX,
    arch::PAT,
];

/// Names of what [`state`] reads.
const NAMES: [&str; 25] = [
    "FS base",
    "GS base",
    "kernel GS base",
    "CSTAR",
    "SFMASK",
    "SYSENTER ESP",
    "SYSENTER EIP",
    "TSC_AUX",
    "PAT",
    "DR0",
    "DR1",
    "DR2",
    "DR3",
    "DR6",
    "DR7",
    "CR0",
    "CR4",
    "TLS 0",
    "TLS 1",
    "TLS 2",
    "CPU number",
    "LDT",
    "task priority",
    "data selectors",
    "TSC_AUX by RDTSCP",
];

type State = [u64; NAMES.len()];

fn has_descriptors() -> bool {
    extension::enabled().contains(Features::DESCRIPTORS)
}

fn state() -> State {
    let mut state = [0; NAMES.len()];
    for (value, index) in state.iter_mut().zip(MSRS) {
        *value = abi::rdmsr(index);
    }
    let others = [
        dr0(),
        dr1(),
        dr2(),
        dr3(),
        dr6(),
        dr7(),
        cr0(),
        cr4(),
        limit(0x63),
        limit(0x6b),
        limit(0x73),
        limit(0x7b),
        limit(0xf),
        abi::rdmsr(x2apic::TPR),
        data_selectors(),
        tsc_aux(),
    ];
    state[MSRS.len()..].copy_from_slice(&others);
    state
}

/// Gives everything a value of its own. `page` is for a descriptor table.
fn fill(seed: u64, page: u64) {
    for index in MSRS {
        let value = if index == arch::PAT {
            0x0006_0406_0007_0000 | seed & 1 | (seed & 4)
        } else {
            seed << 8 | u64::from(index & 0xf)
        };
        wrmsr(index, value);
    }
    for (number, set) in [set_dr0, set_dr1, set_dr2, set_dr3].into_iter().enumerate() {
        set(seed << 4 | number as u64);
    }
    set_dr6(0xffff_0ff0 | seed & 15);
    // Conditions only: nothing is armed.
    set_dr7(0x400 | (seed & 3) << 16);
    // MP and PGE say nothing of what a native guest can do.
    const MP: u64 = 1 << 1;
    const PGE: u64 = 1 << 7;
    set_cr0((cr0() & !MP) | ((seed & 1) * MP));
    set_cr4((cr4() & !PGE) | ((seed & 1) * PGE));
    let tls = |number: u32| descriptor(0, seed as u32 & 0xff | number << 8, DATA, FLAT);
    abi::call(nr::LOAD_TLS, [tls(1), tls(2), tls(3), 0]);
    if has_descriptors() {
        abi::call1(call::SET_CPUNODE, descriptor(0, seed as u32 & 0xfff, DATA, FLAT));
        paging::word(page).store(0, Relaxed);
        paging::word(page + 8).store(descriptor(0, seed as u32 & 0xff, DATA, FLAT), Relaxed);
        abi::call(call::LOAD_LDT, [page, 2, 0, 0]);
    }
    wrmsr(x2apic::TPR, seed & 0xf);
}

/// Back to what the other checks expect.
fn restore(before: &State) {
    for (index, value) in MSRS.into_iter().zip(before) {
        wrmsr(index, *value);
    }
    for (set, value) in [set_dr0, set_dr1, set_dr2, set_dr3, set_dr6, set_dr7, set_cr0, set_cr4]
        .into_iter()
        .zip(&before[MSRS.len()..])
    {
        set(*value);
    }
    abi::call(nr::LOAD_TLS, [0; 4]);
    if has_descriptors() {
        abi::call1(call::SET_CPUNODE, 0);
        abi::call(call::LOAD_LDT, [0; 4]);
    }
    wrmsr(x2apic::TPR, 0);
}

type Vectors = [u64; 33];

/// x87 control word and MXCSR as after reset.
const CONTROL: u64 = 0x1f80_0000_037f;

fn vectors() -> Vectors {
    let mut found = [0; 33];
    // SAFETY: it has room for what is stored. This program is compiled without these registers.
    unsafe { entry::store_vectors(&raw mut found) };
    found
}

fn load_vectors(seed: u64) -> Vectors {
    let mut values =
        core::array::from_fn(|word| seed.wrapping_mul(0x0123_4567_89ab_cdef) ^ word as u64);
    // Rounding of both.
    values[32] = CONTROL | (seed & 3) << 10 | (seed & 3) << 45;
    // SAFETY: as above; no exception is unmasked.
    unsafe { entry::load_vectors(&raw const values) };
    values
}

/// The first difference: what it is, found and expected.
fn difference(
    found: (&State, &Vectors),
    expected: (&State, &Vectors),
) -> Option<(usize, u64, u64)> {
    let all = found.0.iter().chain(found.1).zip(expected.0.iter().chain(expected.1));
    let mut all = all.enumerate();
    all.find(|(_, (found, expected))| found != expected)
        .map(|(index, (found, expected))| (index, *found, *expected))
}

fn name(index: usize) -> &'static str {
    NAMES.get(index).copied().unwrap_or("x87 and vector registers")
}

/// How often two vCPUs compare.
const ROUNDS: usize = 200;

/// Fills everything, lets the other run, and looks.
fn hold(vcpu: usize, rounds: usize) -> Option<(usize, u64, u64)> {
    let before = state();
    let page = paging::frame(120 + vcpu);
    let mut wrong = None;
    for round in 0..rounds {
        // Never the other's, whichever of its rounds it is in.
        let seed = 0x40 + 2 * (round as u64 % 16) + vcpu as u64;
        fill(seed, page);
        let (filled, values) = (state(), load_vectors(seed));
        for _ in 0..3 {
            abi::call(call::YIELD, [0; 4]);
        }
        let found = vectors();
        wrong = difference((&state(), &found), (&filled, &values));
        if wrong.is_some() || second::quits() {
            break;
        }
    }
    load_vectors(0);
    restore(&before);
    wrong
}

static WRONG: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];
static DONE: AtomicUsize = AtomicUsize::new(0);

/// Both fill their registers and find in them what they put there.
pub fn own_registers() -> Verdict {
    if extension::offered().contains(Features::DESCRIPTORS) {
        extension::enable(Features::DESCRIPTORS)?;
    }
    WRONG[0].store(u64::MAX, Relaxed);
    DONE.store(0, Relaxed);
    second::start(|| {
        second::reached(1);
        while DONE.load(Acquire) == 0 && !second::quits() {
            if let Some((index, found, expected)) = hold(INDEX, 20) {
                WRONG[1].store(found, Relaxed);
                WRONG[2].store(expected, Relaxed);
                WRONG[0].store(index as u64, Release);
                break;
            }
        }
    })?;
    second::wait_for(1)?;
    let wrong = hold(0, ROUNDS);
    DONE.store(1, Release);
    second::ended()?;
    if let Some((index, found, expected)) = wrong {
        equal(name(index), found, expected)?;
    }
    match WRONG[0].load(Acquire) {
        u64::MAX => Ok(()),
        index => equal(name(index as usize), WRONG[1].load(Relaxed), WRONG[2].load(Relaxed)),
    }
}

/// Both go to user mode and back all the time, each by its own entries and with its own PVCS and GS.
pub fn own_modes() -> Verdict {
    fn round_trip(number: u64) -> Verdict {
        let start = Start { gsbase: 0x1000 + number, ..Start::of(user::code::syscall()) };
        let start = start.with(|registers| registers.rbx = number);
        let trap = start.run();
        trap.is_syscall(user::code::syscall().end)?;
        equal("RBX", trap.registers.rbx, number)?;
        equal("GS base", trap.event.user_gsbase, 0x1000 + number)?;
        let trap = Start::of(user::code::undefined()).run();
        trap.is(pv_abi::event::UD, 0, user::code::undefined().start)
    }
    DONE.store(0, Relaxed);
    WRONG[0].store(0, Relaxed);
    second::start(|| {
        second::reached(1);
        for number in 0.. {
            if DONE.load(Acquire) == 1 || second::quits() {
                break;
            }
            if round_trip(number * 2 + 1).is_err() {
                WRONG[0].store(number + 1, Relaxed);
                break;
            }
            if number % 4 == 0 {
                abi::call(call::YIELD, [0; 4]);
            }
        }
    })?;
    second::wait_for(1)?;
    let mut verdict = Ok(());
    for number in 0..1000 {
        verdict = verdict.and_then(|()| round_trip(number * 2));
        if number % 4 == 0 {
            abi::call(call::YIELD, [0; 4]);
        }
    }
    DONE.store(1, Release);
    second::ended()?;
    verdict?;
    equal("round of the second vCPU that went wrong", WRONG[0].load(Relaxed), 0)
}

/// What else a start makes new: MSRs that [`state`] does not read.
const RESET: [(&str, u32, u64); 9] = [
    ("VCPU_STRUCT", msr::PVM_VCPU_STRUCT, 0),
    ("EVENT_ENTRY", msr::PVM_EVENT_ENTRY, 0),
    ("RETU_RIP", msr::PVM_RETU_RIP, 0),
    ("LSTAR", arch::LSTAR, 0),
    ("STEAL_TIME", msr::KVM_STEAL_TIME, 0),
    ("SYSTEM_TIME", msr::KVM_SYSTEM_TIME_NEW, 0),
    ("timer's LVT", x2apic::LVT_TIMER, 1 << 16),
    ("ICR", x2apic::ICR, 0),
    ("requested interrupts", x2apic::IRR0 + 2, 0),
];

static STARTED: [AtomicU64; RESET.len() + NAMES.len() + 33] =
    [const { AtomicU64::new(0) }; RESET.len() + NAMES.len() + 33];

/// Started again, it has forgotten everything.
pub fn restart() -> Verdict {
    if extension::offered().contains(Features::DESCRIPTORS) {
        extension::enable(Features::DESCRIPTORS)?;
    }
    let look = || {
        let found = vectors();
        let msrs = RESET.map(|(_, index, _)| abi::rdmsr(index));
        let all = msrs.into_iter().chain(state()).chain(found);
        for (word, value) in STARTED.iter().zip(all) {
            word.store(value, Relaxed);
        }
    };
    second::run_bare(look)?;
    let first = STARTED.each_ref().map(|word| word.load(Relaxed));
    second::run(|| {
        load_vectors(0x77);
        fill(0x77, paging::frame(120));
        wrmsr(msr::KVM_STEAL_TIME, paging::frame(0) | 1);
        wrmsr(msr::KVM_SYSTEM_TIME_NEW, (paging::frame(0) + 64) | 1);
        wrmsr(x2apic::LVT_TIMER, 0x45);
        wrmsr(x2apic::SELF_IPI, 0x51);
        wrmsr(x2apic::ICR, 1 << 18 | 0x52);
        // SAFETY: data segments; FS and GS are not used.
        unsafe {
            asm!("mov ds, {0:e}", "mov es, {0:e}", "mov fs, {0:e}", "mov gs, {0:e}", in(reg) 0x2b);
        }
    })?;
    second::run_bare(look)?;
    let again = STARTED.each_ref().map(|word| word.load(Relaxed));
    for (index, (again, first)) in again.into_iter().zip(first).enumerate() {
        let reset = RESET.get(index);
        let name = reset.map_or_else(|| name(index - RESET.len()), |(name, ..)| name);
        equal(name, again, first)?;
        if let Some((_, _, expected)) = reset {
            equal(name, first, *expected)?;
        }
    }
    let found = |name: &str| {
        let index = NAMES.iter().position(|known| *known == name);
        index.map_or(u64::MAX, |index| first[RESET.len() + index])
    };
    equal("CR0", found("CR0"), 0x8005_0033)?;
    equal("DR6", found("DR6"), 0xffff_0ff0)?;
    equal("DR7", found("DR7"), 0x400)?;
    equal("CPU number", found("CPU number"), INDEX as u64)?;
    equal("data selectors", found("data selectors"), 0)?;
    let control = first[RESET.len() + NAMES.len() + 32];
    equal("x87 control word and MXCSR", control, CONTROL)
}
