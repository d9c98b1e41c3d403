//! Two guests on one CPU: one leaves words that can be recognized wherever it can, the other looks
//! for them wherever it can; and one guest that looks through the memory it is given, for what another
//! or its own life before has left there. No such word may be found.
#![expect(unsafe_code, reason = "memory as it is found")]

use crate::{
    abi::{self, pvcs},
    checks::{descriptor, look},
    clock, counters, entry, extension, kernel,
    paging::{self, A, D, NX, P, PS, U, W},
    privileged,
    probe::Probe,
    registers::{Equal, Registers},
    tap::{self, Verdict, equal, holds},
    user::{self, Start},
};
use core::{hint::black_box, sync::atomic::Ordering::Relaxed};
use pv_abi::{
    ext::{Features, call, shutdown},
    hypercall as nr,
    msr::arch,
};
use suite::println;
use suite::tally::Tally;

/// The complement of what canaries have in their upper half: their own is in no image.
const HIDDEN: u32 = 0xa13b_185e;
/// Limit of the segments that the one guest describes.
const LIMIT: u32 = 0x5_ec4e;
/// 32-bit data for everybody, of byte granularity.
const DATA: u8 = 0xf2;
const SIZE32: u8 = 4;
/// What takes longer is looked at once in so many rounds.
const SELDOM: u64 = 64;
/// Where all of the guest's memory is mapped.
const ALL_MEMORY: u64 = 0x80_0000_0000;
const LARGE: u64 = 2 << 20;
/// Selectors of a table that are looked at.
const SELECTORS: u16 = 40;

fn tag() -> u64 {
    u64::from(!black_box(HIDDEN))
}

/// Number `number` of the words that are left.
fn canary(number: u64) -> u64 {
    tag() << 32 | number << 8 | 1
}

fn is_canary(word: u64) -> bool {
    (0..=32).step_by(16).any(|shift| word >> shift & 0xffff_ffff == tag())
}

fn clean(what: &'static str, words: impl IntoIterator<Item = u64>) -> Verdict {
    match words.into_iter().find(|word| is_canary(*word)) {
        Some(word) => equal(what, word, 0),
        None => Ok(()),
    }
}

/// All words of a mapped page.
fn page(address: u64) -> impl Iterator<Item = u64> {
    (0..512).map(move |word| paging::read_word(address + 8 * word))
}

/// Says what was found. The VM powers off in either case: nothing would be gained by another life.
fn end(name: &'static str, verdict: &Verdict) {
    let mut tally = Tally::default();
    println!("1..1");
    tap::report(&mut tally, "EVT-1", "leaks", name, verdict);
    abi::shutdown(shutdown::POWEROFF)
}

/// Gives the CPU to another guest, with `registers`.
fn give_way(registers: Registers) -> Result<Registers, tap::Wrong> {
    let probe = Probe::of(kernel::code::hypercall())
        .with(|r| *r = Registers { rsp: r.rsp, rax: call::YIELD, ..registers });
    let done = probe.run();
    done.finished()?;
    equal("YIELD", done.registers.rax, 0)?;
    done.registers.equal(&Registers {
        rax: 0,
        rcx: done.registers.rcx,
        r11: done.registers.r11,
        ..probe.registers
    })?;
    Ok(done.registers)
}

fn canaries() -> Registers {
    let [rbx, rdx, rsi, rdi, rbp, r8] = [2, 3, 4, 5, 6, 7].map(canary);
    let [r9, r10, r12, r13, r14, r15] = [8, 9, 10, 11, 12, 13].map(canary);
    let [rcx, r11] = [14, 15].map(canary);
    Registers { rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rax: 0, rsp: 0 }
}

fn has_avx() -> bool {
    let has_xsave = abi::native_cpuid(1, 0)[2] >> 27 & 1 == 1;
    has_xsave && Probe::of(kernel::code::xgetbv()).run().registers.rax & 4 != 0
}

/// Leaves canaries everywhere, and gives way `rounds` times.
pub fn leave(rounds: u64) {
    let (words, avx) = (paging::frame(0), has_avx());
    for word in 0..64 {
        paging::word(words + 8 * word).store(canary(0x100 + word), Relaxed);
    }
    let user = paging::set_area(0, words | P | W | U | A | D | NX);
    let verdict = leave_in_tables().and_then(|()| {
        (0..rounds).try_for_each(|_| {
            let load = if avx { user::code::load_ymm() } else { user::code::load_xmm() };
            // The user's registers, and the way through the switcher alone.
            let registers = |r: &mut Registers| {
                *r = Registers { rsp: r.rsp, rax: canary(1), ..canaries() };
                r.rbx = user;
            };
            Start::of(load).with(registers).run().is_syscall(load.end)?;
            // And an exit by an exception.
            let start = Start::of(user::code::undefined());
            start.with(|r| *r = Registers { rax: canary(1), ..canaries() }).run();
            give_way(canaries()).map(|_| ())
        })
    });
    end("leave", &verdict);
}

/// What stays as it is.
fn leave_in_tables() -> Verdict {
    let tag = tag();
    let segment = descriptor(tag as u32, LIMIT, DATA, SIZE32);
    extension::enable(Features::DESCRIPTORS)?;
    equal("LOAD_TLS", abi::call(nr::LOAD_TLS, [segment; 4]), 0)?;
    paging::word(paging::frame(1)).store(segment, Relaxed);
    equal("LOAD_LDT", abi::call(call::LOAD_LDT, [paging::frame(1), 1, 0, 0]), 0)?;
    equal("SET_CPUNODE", abi::call1(call::SET_CPUNODE, segment), 0)?;
    for msr in [arch::FS_BASE, arch::GS_BASE, arch::KERNEL_GS_BASE] {
        holds("a base", abi::wrmsr(msr, tag << 16))?;
    }
    // Not every CPU has it.
    abi::wrmsr(arch::TSC_AUX, tag);
    for (number, code) in [
        kernel::code::write_dr0(),
        kernel::code::write_dr1(),
        kernel::code::write_dr2(),
        kernel::code::write_dr3(),
    ]
    .into_iter()
    .enumerate()
    {
        Probe::of(code).with(|r| r.rax = canary(0x200 + number as u64)).run().finished()?;
    }
    // What the ABI does not use of its page.
    (128..512).for_each(|word| pvcs().set_word(8 * word, canary(0x300 + word as u64)));
    Ok(())
}

/// Looks for canaries, and gives way `rounds` times.
pub fn look_for(rounds: u64) {
    let avx = has_avx();
    let verdict = (0..rounds).try_for_each(|round| {
        let found = give_way(Registers::default())?;
        clean("a general register", [found.rcx, found.r11])?;
        look_at_vectors(avx)?;
        if round % SELDOM == 0 { look_elsewhere() } else { Ok(()) }
    });
    println!("# gave way {rounds} times");
    end("look_for", &verdict);
}

fn look_at_vectors(avx: bool) -> Verdict {
    let words = paging::frame(2);
    let look =
        |bytes: u64| (0..bytes / 8).map(move |word| paging::word(words + 8 * word).load(Relaxed));
    Probe::of(kernel::code::fxsave()).with(|r| r.rbx = words).run().finished()?;
    clean("x87 and SSE registers", look(512))?;
    if avx {
        Probe::of(kernel::code::store_ymm()).with(|r| r.rbx = words).run().finished()?;
        clean("AVX registers", look(512))?;
    }
    Ok(())
}

/// Everything else that a guest can read.
fn look_elsewhere() -> Verdict {
    clean("the PVCS", page(pvcs().address()))?;
    let stack = &raw const entry::probe_stack_top as u64;
    clean("the stack", page(stack - 4096))?;
    clean("a base", [arch::FS_BASE, arch::GS_BASE, arch::KERNEL_GS_BASE].map(abi::rdmsr))?;
    let debug = [
        kernel::code::read_dr0(),
        kernel::code::read_dr1(),
        kernel::code::read_dr2(),
        kernel::code::read_dr3(),
    ];
    clean("a debug register", debug.map(|code| Probe::of(code).run().registers.rax))?;
    clean("a counter", (0..64).map(counters::read))?;
    for (kernel, user) in [
        (privileged::kernel::code::sgdt(), privileged::user::code::sgdt()),
        (privileged::kernel::code::sidt(), privileged::user::code::sidt()),
        (privileged::kernel::code::sldt_memory(), privileged::user::code::sldt_memory()),
        (privileged::kernel::code::smsw_memory(), privileged::user::code::smsw_memory()),
    ] {
        Probe::of(kernel).with(|r| r.rbx = paging::frame(3)).run();
        let at = paging::set_area(3, paging::frame(3) | P | W | U | A | D | NX);
        Start::of(user).with(|r| r.rbx = at).run();
        clean("a descriptor table", page(paging::frame(3)))?;
    }
    if abi::native_cpuid(0x8000_0001, 0)[3] >> 27 & 1 == 1 {
        let aux = Probe::of(kernel::code::rdtscp()).run().registers.rcx;
        clean("TSC_AUX", [aux, Start::of(user::code::rdtscp()).run().registers.rbx])?;
    }
    look_at_selectors()
}

fn look_at_selectors() -> Verdict {
    for selector in (0..SELECTORS).flat_map(|index| [index << 3 | 3, index << 3 | 7]) {
        let (rights, limit) = look(selector);
        holds("no local table", selector & 4 == 0 || rights.or(limit).is_none())?;
        let limit = limit.unwrap_or(0);
        holds("a limit of its own", limit != u64::from(LIMIT))?;
        clean("rights and limit", [rights.unwrap_or(0), limit])?;
    }
    Ok(())
}

/// Looks through all memory, fills it with canaries, and asks for a restart; for `seconds` since the
/// machine's start, then for its end.
pub fn live(memory: u64, seconds: u64) {
    let image = paging::image();
    let outside = |physical: u64| {
        // Its own tables and stacks are there, and in the low part the ABI's first tables.
        physical >= (1 << 20)
            && !image.contains(&physical)
            && !(paging::FRAMES..paging::FRAMES + LARGE).contains(&physical)
    };
    for block in (0..memory).step_by(LARGE as usize) {
        paging::map(0, ALL_MEMORY + block, block | P | W | A | D | PS | NX, 2);
    }
    let words = || (0..memory).step_by(8).filter(|&physical| outside(physical));
    let at = |physical: u64| (ALL_MEMORY + physical) as *mut u64;
    // SAFETY: all memory is mapped there, and nothing is in use where it looks and writes.
    let dirty = words().filter(|&physical| unsafe { at(physical).read_volatile() } != 0).count();
    println!("# life: {} words, {dirty} are not 0", words().count());
    if dirty != 0 {
        end("life", &equal("words that are not 0", dirty as u64, 0));
    }
    for physical in words() {
        // SAFETY: as above.
        unsafe { at(physical).write_volatile(canary(physical)) };
    }
    if abi::tsc() < seconds * clock::tsc_hz() {
        abi::shutdown(shutdown::REBOOT);
    }
    end("life", &Ok(()));
}
