//! Goes every way into the hypervisor and out of it, again and again, with other values in the
//! registers each time: none may be changed. Whoever disturbs these ways sees here what that does.

use crate::{
    abi,
    code::Code,
    counters, entry, extension, interrupts, kernel,
    paging::{self, A, D, NX, P, U, W},
    privileged,
    probe::Probe,
    registers::{Equal, Registers},
    tap::{self, Verdict, equal, holds, skip},
    timer,
    user::{self, Start, Trap},
};
use core::sync::atomic::Ordering::Relaxed;
use pv_abi::{
    event::{BP, BR, DE, GP, INT80, MF, NP, OF, PF, RFLAGS_RF, SS, UD, pf},
    ext::{self, Features, shutdown},
    hypercall as nr,
    msr::x2apic,
};
use suite::tally::Tally;
use suite::{native::uart::Uart, println};

/// Arithmetic flags, DF, AC and ID.
const FLAGS: u64 = 0x24_0cd5;
/// A page of the area that is never mapped.
const ABSENT: usize = 100;
/// One with 32-bit code, and one for its data.
const CODE32: usize = 101;
/// `push 0; push 0; bound esp, [esp]; int 0x80`: the stack is beyond both bounds.
const BOUND: [u8; 9] = [0x6a, 0, 0x6a, 0, 0x62, 0x24, 0x24, 0xcd, 0x80];
/// Data that is not present, and the selector of such an entry of the local table.
const ABSENT_DATA: u64 = 0x00cf_7200_0000_ffff;
const ABSENT_SELECTOR: u64 = 0xf;
/// Memory that nobody is to touch.
const QUIET: usize = 60;
/// Words of a page.
const WORDS: u64 = 512;

/// Numbers by chance.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn registers(&mut self, rsp: u64) -> Registers {
        Registers {
            r15: self.next(),
            r14: self.next(),
            r13: self.next(),
            r12: self.next(),
            r11: self.next(),
            r10: self.next(),
            r9: self.next(),
            r8: self.next(),
            rbp: self.next(),
            rdi: self.next(),
            rsi: self.next(),
            rdx: self.next(),
            rcx: self.next(),
            rbx: self.next(),
            rax: self.next(),
            rsp,
        }
    }
}

/// A way, and what is done on it.
type Way = (&'static str, fn(&mut Random) -> Verdict);

const WAYS: &[Way] = &[
    ("system_call_and_sysret", |random| syscall(random, Start::by_sysret)),
    ("system_call_and_iret", |random| syscall(random, |start| start)),
    ("system_call_and_slow_return", |random| syscall(random, slowly)),
    ("undefined", |random| exception(random, user::code::undefined(), UD, 0)),
    ("breakpoint_instruction", |random| exception(random, user::code::int3(), BP, 1)),
    ("overflow", |random| exception(random, user::code::int4(), OF, 2)),
    ("software_interrupt", |random| exception(random, user::code::int80(), INT80, 2)),
    ("general_protection", |random| exception(random, user::code::int21(), GP, 0)),
    ("privileged", |random| exception(random, privileged::user::code::rdmsr(), GP, 0)),
    ("divide", divide),
    ("x87", x87),
    ("stack", stack),
    ("absent_segment", |random| absent(random, user::code::load_fs(), NP)),
    ("absent_stack_segment", |random| absent(random, user::code::load_ss(), SS)),
    ("page_fault", page_fault),
    ("prefault", prefault),
    ("early_page_fault", early_page_fault),
    ("interrupt", interrupt),
    ("bad_code_selector", |random| bad_selectors(random, 0x002b_0000)),
    ("bad_stack_selector", |random| bad_selectors(random, 0x0000_0033)),
    ("foreign_selector", |random| bad_selectors(random, 0x002b_0043)),
    ("compat", |random| compat(random, &[0xcd, 0x80], INT80, 2)),
    ("compat_bound", |random| compat(random, &BOUND, BR, 4)),
    ("compat_system_call", |random| compat(random, &[0x0f, 0x05], UD, 0)),
    ("hypercall", hypercall),
    ("kernel_undefined", kernel_undefined),
    ("kernel_page_fault", kernel_page_fault),
    ("kernel_emulated", kernel_emulated),
    ("kernel_interrupt", kernel_interrupt),
    ("halt", halt),
];

/// Goes all ways `rounds` times.
pub fn run(rounds: u64) {
    println!("1..{}", WAYS.len() + 1);
    timer::set_mode(timer::DEADLINE);
    let prefault = &raw const entry::retu_prefault_instruction as u64;
    if extension::present() {
        let _ =
            extension::enable(Features::PREFAULT | Features::EARLY_FAULTS | Features::DESCRIPTORS);
        paging::word(paging::frame(0)).store(0, Relaxed);
        paging::word(paging::frame(0) + 8).store(ABSENT_DATA, Relaxed);
        abi::call(ext::call::LOAD_LDT, [paging::frame(0), 2, 0, 0]);
        abi::wrmsr(ext::msr::RETU_PREFAULT_RIP, prefault);
    }
    let quiet = |word: u64| paging::word(paging::frame(QUIET) + 8 * word);
    let value = |word: u64| 0x0123_4567_89ab_cdef_u64.wrapping_mul(2 * word + 1);
    (0..WORDS).for_each(|word| quiet(word).store(value(word), Relaxed));
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let mut verdicts: [Verdict; WAYS.len()] = [const { Ok(()) }; WAYS.len()];
    let before = counters::read(ext::counter::EXITS);
    for _ in 0..rounds {
        for ((_, way), verdict) in WAYS.iter().zip(&mut verdicts) {
            if verdict.is_ok() {
                *verdict = way(&mut random);
            }
        }
    }
    println!(
        "# {rounds} rounds, {} exits",
        counters::read(ext::counter::EXITS).wrapping_sub(before)
    );
    let mut tally = Tally::default();
    for ((name, _), verdict) in WAYS.iter().zip(&verdicts) {
        tap::report(&mut tally, "EVT-1 EVT-2 EVT-5 RET-1", "way", name, verdict);
    }
    let memory =
        (0..WORDS).try_for_each(|word| equal("word", quiet(word).load(Relaxed), value(word)));
    tap::report(&mut tally, "EVT-1", "way", "memory", &memory);
    let _ = tally.end(&mut Uart);
    if tally.all.failed > 0 {
        abi::shutdown(shutdown::CRASH);
    }
}

/// The user's side with random values everywhere.
fn start(random: &mut Random, code: Code) -> Start {
    let start = Start { gsbase: random.next() >> 17, ..Start::of(code) };
    let rsp = user::stack_top() - random.next() % 512 * 8;
    start.with(|r| *r = random.registers(rsp)).flags(random.next() & FLAGS)
}

fn slowly(start: Start) -> Start {
    Start { selectors: 0x0028_0030, ..start }
}

/// One of the ways to user mode.
fn any_way(random: &mut Random, start: Start) -> Start {
    match random.next() % 3 {
        0 => start.by_sysret(),
        1 => start,
        _ => slowly(start),
    }
}

/// Registers, flags and GS base are as they were at `start`, but for what `change` says, and RF, which CPUs
/// set in what a fault saves.
fn unchanged(trap: &Trap, start: &Start, change: impl FnOnce(&mut Registers)) -> Verdict {
    let mut expected = start.registers;
    change(&mut expected);
    trap.registers.equal(&expected)?;
    equal("flags", trap.event.rflags & !RFLAGS_RF, start.rflags)?;
    equal("GS base", trap.event.user_gsbase, start.gsbase)
}

fn syscall(random: &mut Random, way: fn(Start) -> Start) -> Verdict {
    let code = user::code::syscall();
    let start = way(start(random, code));
    let trap = start.run();
    trap.is_syscall(code.end)?;
    unchanged(&trap, &start, |r| (r.rcx, r.r11) = (code.end, start.rflags))
}

fn exception(random: &mut Random, code: Code, vector: u8, past: u64) -> Verdict {
    let start = start(random, code);
    let start = any_way(random, start);
    let trap = start.run();
    trap.is(vector, trap.event.error, start.rip + past)?;
    unchanged(&trap, &start, |_| ())
}

/// The snippet changes registers and flags before it faults.
fn divide(random: &mut Random) -> Verdict {
    let start = start(random, user::code::divide());
    let trap = start.run();
    trap.is(DE, 0, start.rip + 4)?;
    let start = Start { rflags: trap.event.rflags & !RFLAGS_RF, ..start };
    unchanged(&trap, &start, |r| (r.rax, r.rdx) = (0, 0))
}

fn x87(random: &mut Random) -> Verdict {
    let code = user::code::x87_error();
    let start = start(random, code);
    let trap = start.run();
    trap.is(MF, 0, code.end - 1)?;
    unchanged(&trap, &start, |r| r.rsp -= 8)?;
    let code = user::code::reset_x87();
    Start::of(code).run().is_syscall(code.end)
}

fn stack(random: &mut Random) -> Verdict {
    let start = start(random, user::code::load_stack()).with(|r| r.rbp = 1 << 47);
    let trap = start.run();
    // Emulators say #GP.
    holds("#SS or #GP", matches!(trap.vector, Some(SS | GP)))?;
    unchanged(&trap, &start, |_| ())
}

/// Loading a selector of the local table whose segment is absent.
fn absent(random: &mut Random, code: Code, vector: u8) -> Verdict {
    extension::needed()?;
    let start = start(random, code).with(|r| r.rbx = ABSENT_SELECTOR);
    let start = any_way(random, start);
    let trap = start.run();
    trap.is(vector, ABSENT_SELECTOR & !3, start.rip)?;
    unchanged(&trap, &start, |_| ())
}

fn page_fault(random: &mut Random) -> Verdict {
    let address = paging::area(ABSENT);
    let start = start(random, user::code::load()).with(|r| r.rbx = address);
    let start = any_way(random, start);
    let trap = start.run();
    trap.is(PF, trap.event.error, start.rip)?;
    equal("CR2", trap.event.cr2, address)?;
    unchanged(&trap, &start, |_| ())
}

/// A page is mapped after its fault, and the ERETU says so.
fn prefault(random: &mut Random) -> Verdict {
    let code = user::code::load();
    let address = paging::set_area(ABSENT, 0);
    let start = start(random, code).with(|r| r.rbx = address);
    let trap = start.run();
    trap.is(PF, trap.event.error, start.rip)?;
    let value = random.next();
    paging::word(paging::frame(ABSENT)).store(value, Relaxed);
    paging::area_entry(0, ABSENT).store(paging::frame(ABSENT) | P | U | A | NX, Relaxed);
    let trap = if extension::present() { start.run_prefault() } else { start.run() };
    paging::set_area(ABSENT, 0);
    trap.is_syscall(code.end)?;
    unchanged(&trap, &start, |r| (r.rax, r.rcx, r.r11) = (value, code.end, start.rflags))
}

/// After that, the page behind it: unless something else was an exit, the fault is none.
fn early_page_fault(random: &mut Random) -> Verdict {
    let way = prefault(random);
    let address = paging::set_area(ABSENT + 1, 0);
    let start = start(random, user::code::load()).with(|r| r.rbx = address);
    let start = any_way(random, start);
    let trap = start.run();
    way?;
    trap.is(PF, pf::USER, start.rip)?;
    equal("CR2", trap.event.cr2, address)?;
    unchanged(&trap, &start, |_| ())
}

fn interrupt(random: &mut Random) -> Verdict {
    let start = start(random, user::code::spin());
    let start = any_way(random, start);
    timer::arm(random.next() % 8192);
    let trap = start.run();
    equal("vector", trap.event.vector().into(), timer::VECTOR.into())?;
    unchanged(&trap, &start, |_| ())
}

/// The IRETQ to user mode fails, after all registers were loaded.
fn bad_selectors(random: &mut Random, selectors: u32) -> Verdict {
    let start = Start { selectors, ..start(random, user::code::syscall()) };
    let trap = start.run();
    trap.is(GP, trap.event.error, start.rip)?;
    unchanged(&trap, &start, |_| ())
}

/// Only the lower halves of eight registers outlive 32-bit code.
fn compat(random: &mut Random, bytes: &[u8], vector: u8, past: u64) -> Verdict {
    let address = paging::set_area(CODE32, paging::frame(CODE32) | P | W | U | A | D);
    paging::write_bytes(paging::frame(CODE32), bytes);
    let mut start = Start { selectors: 0x002b_0023, ..Start::at(address) };
    let registers = random.registers(start.registers.rsp);
    let low = |value: u64| value & 0xffff_ffff;
    start = start.with(|r| {
        (r.rax, r.rbx, r.rcx, r.rdx) =
            (low(registers.rax), low(registers.rbx), low(registers.rcx), low(registers.rdx));
        (r.rsi, r.rdi, r.rbp) = (low(registers.rsi), low(registers.rdi), low(registers.rbp));
    });
    let trap = start.run();
    trap.is(vector, trap.event.error, address + past)?;
    let with = |r: Registers| [r.rax, r.rbx, r.rdx, r.rsi, r.rdi, r.rbp].map(low);
    let same = with(trap.registers) == with(start.registers);
    holds("the registers of 32-bit code", same)
}

/// Supervisor-mode code with random values in its registers.
fn probe(random: &mut Random, code: Code) -> Probe {
    Probe::of(code).with(|r| *r = random.registers(r.rsp))
}

fn hypercall(random: &mut Random) -> Verdict {
    let code = kernel::code::hypercall();
    let probe = probe(random, code).with(|r| r.rax = nr::TLB_FLUSH_CURRENT);
    let done = probe.run();
    done.finished()?;
    let expected = Registers {
        rax: done.registers.rax,
        rcx: done.registers.rcx,
        r11: done.registers.r11,
        ..probe.registers
    };
    done.registers.equal(&expected)
}

/// What an event of supervisor mode saved is what there was.
fn kernel_event(probe: &Probe, vector: u8, rip: u64) -> Verdict {
    let done = probe.run();
    done.event().is(vector, done.event().error, rip)?;
    done.registers.equal(&probe.registers)
}

fn kernel_undefined(random: &mut Random) -> Verdict {
    let code = kernel::code::undefined();
    kernel_event(&probe(random, code), UD, code.start)
}

fn kernel_page_fault(random: &mut Random) -> Verdict {
    let code = kernel::code::load();
    let probe = probe(random, code).with(|r| r.rbx = paging::area(ABSENT));
    kernel_event(&probe, PF, code.start)
}

fn kernel_emulated(random: &mut Random) -> Verdict {
    let probe = probe(random, privileged::kernel::code::read_cr8());
    let done = probe.run();
    done.finished()?;
    done.registers.equal(&Registers { rax: done.registers.rax, ..probe.registers })
}

fn kernel_interrupt(random: &mut Random) -> Verdict {
    let probe = probe(random, kernel::code::count_down()).with(|r| r.rcx = 2000);
    let before = interrupts::count();
    abi::pvcs().enable_interrupts();
    timer::arm(random.next() % 8192);
    let done = probe.run();
    let arrived = timer::wait_for(before + 1);
    abi::pvcs().disable_interrupts();
    holds("it arrived", arrived)?;
    done.finished()?;
    done.registers.equal(&Registers { rcx: 0, ..probe.registers })
}

/// The hypervisor has nothing to do meanwhile.
fn halt(random: &mut Random) -> Verdict {
    if abi::rdmsr(x2apic::LVT_TIMER) & timer::MASKED != 0 {
        return skip("the timer is off");
    }
    let before = interrupts::count();
    timer::arm(100_000 + random.next() % 100_000);
    abi::call(nr::IRQ_HALT, [0; 4]);
    abi::pvcs().disable_interrupts();
    equal("interrupts", (interrupts::count() - before) as u64, 1)
}
