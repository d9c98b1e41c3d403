//! Ends the guest by attacks that leave it no way on, each with the reason that L1 is to give.
//! May: nothing. Context: any. Input: random.

use crate::{
    println,
    runtime::{
        abi::{self, pvcs},
        entry,
        memory::{self, P, STACK_OFFSET, TABLE, W},
        piece, second,
        trial::{Mode, Trial, stack},
    },
};
use hostile::values;
use pv_abi::{ext::call, hypercall as nr, msr, pvcs::offset};
use suite::random::Random;

/// A way to die.
struct Case {
    name: &'static str,
    rules: &'static str,
    die: fn(&mut Random),
}

const fn death(name: &'static str, rules: &'static str, die: fn(&mut Random)) -> Case {
    Case { name, rules, die }
}

const CASES: &[Case] = &[
    death("guard", "EVT-3", |random| {
        // Any bit of the guard, stored through an alias by the code that faults next.
        let page = memory::FREE_PAGE;
        memory::leaf(page).store(memory::data_page(pvcs().address()), RELAXED);
        memory::flush();
        let at = memory::area(page) + offset::USER_CS as u64;
        let word = random.bits() | 1 << (56 + random.below(8));
        Trial::of(Mode::Supervisor, piece::guard()).with(|r| (r.rbx, r.rax) = (at, word)).run();
    }),
    death("stack-segment", "EVT-4", |_| {
        const DATA: u64 = 0x00cf_f300_0000_ffff;
        abi::call(nr::LOAD_TLS, [DATA; 4]);
        Trial::of(Mode::Supervisor, piece::mov_ss()).with(|r| r.rax = 0x63).run();
    }),
    death("code-segment", "EVT-4", |_| {
        let to = Trial::new(Mode::Supervisor).rip + 16;
        Trial::of(Mode::Supervisor, piece::far_return())
            .with(|r| (r.rax, r.rbx) = (0x23, to))
            .run();
    }),
    death("garbage-root", "HC-3 EVT-3", |random| {
        let root = memory::frame(0);
        memory::fill_frame(root, |_| values::number(random) & !P);
        abi::call(nr::LOAD_PGTBL, [1, root, 0, 0]);
    }),
    death("random-root", "HC-3 EVT-3", |random| {
        // Whatever it is, the guest is not in it.
        let root = memory::frame(0);
        memory::fill_frame(root, |_| random.bits() & 0x3ff_f000 | TABLE);
        (1..64).for_each(|index| memory::fill_frame(memory::frame(index), |_| random.bits()));
        memory::word(root).store(0, RELAXED);
        abi::call(nr::LOAD_PGTBL, [1, root, 0, 0]);
    }),
    death("root-of-code", "HC-3 EVT-3", |_| {
        Trial::of(Mode::Supervisor, piece::fetch_nowhere())
            .with(|r| r.rax = memory::code_frame())
            .run();
    }),
    death("entry-anywhere", "MSR-5 EVT-3", |random| {
        let at = values::address(random) | 1 << 46;
        let at = at & 0x7fff_ffff_f000;
        Trial::of(Mode::Supervisor, piece::disable_events())
            .with(|r| {
                (r.rcx, r.rax, r.rdx) = (msr::PVM_EVENT_ENTRY.into(), at, at >> 32);
                r.rsp = stack();
            })
            .run();
    }),
    death("no-pvcs", "PVCS-2 END-5", |_| {
        Trial::of(Mode::Supervisor, piece::disable_events())
            .with(|r| r.rcx = msr::PVM_VCPU_STRUCT.into())
            .run();
    }),
    death("syscall-without-pvcs", "PVCS-2 END-5", |_| {
        abi::wrmsr(msr::PVM_VCPU_STRUCT, 0);
        Trial::new(Mode::User).run();
    }),
    death("fetch-from-a-device", "DEV-3 END-6", |random| {
        let at = device(random.pick(&[0xfec0_0000, 0xfee0_0000, 1 << 36]));
        Trial::of(Mode::User, piece::jump()).with(|r| r.rbx = at).run();
    }),
    // What no CPU does, but QEMU's emulator: see docs/hostile.md.
    death("virtual-8086", "RET-5 END-6", |_| {
        const VM: u64 = 1 << 17;
        // EIP 0, CS 0, flags, ESP, and six segments: anything that is executed there faults.
        memory::set_data(STACK_OFFSET, 0);
        memory::set_data(STACK_OFFSET + 8, VM | 0x202);
        Trial::of(Mode::User, piece::iret32()).with(|r| r.rsp = stack()).run();
    }),
    death("debug-in-debug", "EVT-8 END-6", |_| {
        // A single step that stores where a breakpoint watches.
        const WRITES: u64 = 1 << 16;
        let at = stack();
        Trial::of(Mode::Supervisor, piece::set_debug())
            .with(|r| (r.rbx, r.rax) = (at, 0x401 | WRITES))
            .run();
        Trial::of(Mode::User, piece::touch_at_once())
            .but(|t| t.rflags |= 0x100)
            .with(|r| r.rbx = at)
            .run();
    }),
    death("start-anywhere", "SMP-2 END-5", |random| {
        let at = values::address(random) & 0x7fff_ffff_f000 | 1 << 46;
        start(at, memory::kernel_root());
    }),
    death("start-on-garbage", "SMP-2 SMP-4 END-5", |random| {
        let root = memory::frame(0);
        memory::fill_frame(root, |_| values::number(random) & !P);
        start(&raw const entry::stop_start as u64, root);
    }),
    death("locked-device", "DEV-3 END-6", |_| {
        let at = device(0xfec0_0000);
        Trial::of(Mode::User, piece::locked()).with(|r| r.rbx = at).run();
    }),
];

const RELAXED: core::sync::atomic::Ordering = core::sync::atomic::Ordering::Relaxed;

/// Starts the second vCPU where it cannot go on.
fn start(entry: u64, root: u64) {
    if let Err(wrong) = second::needed() {
        println!("{wrong}");
        return;
    }
    second::start(second::INDEX, entry, 0, root);
    let start = abi::tsc();
    // It may have to wait for its turn.
    while abi::tsc() - start < 1 << 34 {
        abi::call(call::YIELD, [0; 4]);
    }
}

/// Maps what is no memory for all uses.
fn device(gpa: u64) -> u64 {
    let page = memory::FREE_PAGE;
    memory::leaf(page).store(gpa | TABLE | W, RELAXED);
    memory::flush();
    memory::area(page)
}

/// Runs case `name`. Comes back only if the guest survived it, or if there is no such case.
pub fn run_case(name: &str, seed: u64) {
    memory::reset_pages(|| 0);
    match CASES.iter().find(|case| case.name == name) {
        Some(case) => {
            (case.die)(&mut Random::new(seed));
            println!("Bail out! the guest survived {name}");
        }
        None => {
            println!("Bail out! there is no case {name}; there are:");
            CASES.iter().for_each(|case| println!("#   {} {}", case.name, case.rules));
        }
    }
}
