//! x87, SSE and AVX registers: L1 never touches them.

use super::{Group, Setting, check};
use crate::{
    abi,
    code::Code,
    kernel,
    paging::{self, A, D, NX, P, U, W},
    privileged,
    probe::Probe,
    tap::{Case, Verdict, equal, skip},
    timer,
    user::{self, Start},
};
use core::sync::atomic::Ordering::Relaxed;
use pv_abi::hypercall;

pub const GROUP: Group = Group {
    name: "vector_state",
    setting: Setting::Anywhere,
    checks: &[
        check("sse", "EVT-1 EVT-2 HC-1", sse),
        check("avx", "EVT-1 EVT-2 HC-1", avx),
        check("control_words", "EVT-1 EVT-2 HC-1", control_words),
    ],
};

/// Fills a page for user mode to load from, and returns where it and the page to store to are.
fn pages(bytes: u64) -> (u64, u64) {
    for word in 0..bytes / 8 {
        let value = 0x0123_4567_89ab_cdef_u64.wrapping_mul(2 * word + 1);
        paging::word(paging::frame(0) + 8 * word).store(value, Relaxed);
        paging::word(paging::frame(1) + 8 * word).store(0, Relaxed);
    }
    let map = |index| paging::set_area(index, paging::frame(index) | P | W | U | A | D | NX);
    (map(0), map(1))
}

/// Everything that enters L1, and the direct ways past it.
fn disturb() {
    abi::call(hypercall::TLB_FLUSH, [0; 4]);
    abi::cpuid(7, 0);
    Probe::of(privileged::kernel::code::read_cr0()).run();
    Probe::of(kernel::code::undefined()).run();
    Probe::of(kernel::code::load()).with(|r| r.rbx = paging::area(9)).run();
    Start::of(user::code::syscall()).run();
    Start::of(user::code::undefined()).run();
    Start { selectors: 0x002b_0030, ..Start::of(user::code::syscall()) }.run();
    timer::armed(20, || Start::of(user::code::spin()).run());
}

fn same(bytes: u64) -> Verdict {
    for word in 0..bytes / 8 {
        let [loaded, stored] =
            [0, 1].map(|index| paging::word(paging::frame(index) + 8 * word).load(Relaxed));
        equal("word", stored, loaded)?;
    }
    Ok(())
}

fn survives(bytes: u64, load: Code, kernel_store: Code, user_store: Code) -> Verdict {
    let (from, to) = pages(bytes);
    Start::of(load).with(|r| r.rbx = from).run().is_syscall(load.end)?;
    Probe::of(kernel_store).with(|r| r.rbx = to).run().finished()?;
    same(bytes).case("in supervisor mode")?;
    disturb();
    pages(bytes);
    Start::of(user_store).with(|r| r.rbx = to).run().is_syscall(user_store.end)?;
    same(bytes).case("in user mode again")
}

/// XMM0 to XMM15.
fn sse() -> Verdict {
    survives(16 * 16, user::code::load_xmm(), kernel::code::store_xmm(), user::code::store_xmm())
}

/// YMM0 to YMM15.
fn avx() -> Verdict {
    let has_xsave = abi::native_cpuid(1, 0)[2] >> 27 & 1 == 1;
    if !has_xsave || Probe::of(kernel::code::xgetbv()).run().registers.rax & 4 == 0 {
        return skip("this CPU has no AVX");
    }
    survives(16 * 32, user::code::load_ymm(), kernel::code::store_ymm(), user::code::store_ymm())
}

/// The x87 control word and MXCSR, and a number on the x87 stack.
fn control_words() -> Verdict {
    let (from, to) = pages(64);
    paging::word(paging::frame(0)).store(0x0000_1fc0_0000_027f, Relaxed);
    let load = user::code::load_control();
    Start::of(load).with(|r| r.rbx = from).run().is_syscall(load.end)?;
    disturb();
    let store = user::code::store_control();
    Start::of(store).with(|r| r.rbx = to).run().is_syscall(store.end)?;
    Start::of(user::code::reset_x87()).run().is_syscall(user::code::reset_x87().end)?;
    let found = paging::word(paging::frame(1)).load(Relaxed);
    equal("x87 control word", found & 0xffff, 0x27f)?;
    equal("MXCSR", found >> 32 & 0xffff, 0x1fc0)?;
    equal("pi", paging::word(paging::frame(1) + 8).load(Relaxed), 0x4009_21fb_5444_2d18)
}
