//! Attacks by addresses that are not canonical, wherever one is taken.
//! May: nothing. Context: any. Input: random.

use crate::{
    judge::{Group, Rounds, attack},
    runtime::{
        abi,
        counters::Reason,
        memory::{self, TABLE},
        piece,
        trial::{Mode, Trial, Way},
    },
};
use core::sync::atomic::Ordering::Relaxed;
use hostile::values;
use pv_abi::{
    event::{BP, GP, PF, SS, UD},
    hypercall as nr,
    msr::{self, arch},
};
use suite::{
    holds, same,
    verdict::{Case, Verdict},
};

pub const GROUP: Group = Group {
    name: "bases",
    attacks: &[
        attack("msrs", "MSR-5 MSR-24 MSR-26 MSR-27 MSR-28 ERR-1", 20, msrs),
        attack("instructions", "INS-19 INS-3 INS-4", 20, instructions),
        attack("accesses", "EVT-1 EVT-2 EVT-8 RET-4", 20, accesses),
        attack("last_page", "HC-1 EVT-5 RET-4", 10, last_page),
    ],
};

/// WRMSR by hypercall: refused exactly if it is not canonical.
fn msrs(rounds: &mut Rounds) -> Verdict {
    const BASES: [u32; 5] =
        [arch::FS_BASE, arch::GS_BASE, arch::KERNEL_GS_BASE, arch::LSTAR, msr::PVM_EVENT_ENTRY];
    while let Some(round) = rounds.next() {
        let random = &mut rounds.random;
        let (index, value) = (random.pick(&BASES), values::address(random));
        let before = abi::rdmsr(index);
        let mut good = values::is_canonical(value);
        if index == msr::PVM_EVENT_ENTRY {
            good &= values::is_canonical(value.wrapping_add(msr::EVENT_ENTRY_SUPERVISOR));
        }
        let accepted = abi::wrmsr(index, value);
        let after = abi::rdmsr(index);
        abi::restore();
        same!(accepted, good, "round {round}: WRMSR {index:#x} of {value:#x}");
        same!(after, if good { value } else { before }, "round {round}: {index:#x}");
    }
    rounds.entered(Reason::HypercallMsr, 3 * rounds.count)
}

/// WRFSBASE, WRGSBASE, SWAPGS, and WRMSR by instruction, in either mode.
fn instructions(rounds: &mut Rounds) -> Verdict {
    memory::reset_pages(|| 0);
    let codes = [piece::wrfsbase(), piece::wrgsbase(), piece::wrmsr(), piece::swapgs()];
    let mut chosen = 0;
    while let Some(round) = rounds.next() {
        let random = &mut rounds.random;
        if round % 32 == 0 {
            chosen = random.below(4) as usize;
            memory::write_code(codes[chosen]);
        }
        let mode = if round & 1 == 0 { Mode::User } else { Mode::Supervisor };
        let value = values::address(random);
        let left = Trial::new(mode)
            .with(|r| {
                (r.rax, r.rdx) = (value, value >> 32);
                r.rcx = random.pick(&[arch::FS_BASE, arch::GS_BASE]).into();
            })
            .run();
        let good = values::is_canonical(value);
        let verdict = (|| {
            match (chosen, left.way) {
                (0 | 1, Way::Event(UD)) => {}
                // Emulators take what is not canonical, too.
                (0 | 1, Way::Event(BP)) => same!(left.registers.rbx, value, "the base"),
                (0 | 1, way) => same!(way, Way::Event(GP), "how it was left"),
                (2, Way::Event(BP)) if good && mode == Mode::Supervisor => {}
                (_, way) => same!(way, Way::Event(GP), "how it was left"),
            }
            Ok(())
        })();
        verdict.case(format_args!("round {round}, piece {chosen}, {mode:?}, {value:#x}"))?;
    }
    rounds.raised(GP, rounds.count / 8)
}

/// Jumps, loads, stores and stacks at any address.
fn accesses(rounds: &mut Rounds) -> Verdict {
    memory::reset_pages(|| 0);
    let codes = [
        piece::jump(),
        piece::call(),
        piece::ret(),
        piece::load(),
        piece::store(),
        piece::push(),
        piece::frame(),
    ];
    while let Some(round) = rounds.next() {
        let random = &mut rounds.random;
        if round % 32 == 0 {
            memory::write_code(random.pick(&codes));
        }
        let mut address = values::address(random);
        // What is mapped there is the gate.
        if values::is_canonical(address) && address >> 22 == 0 {
            address |= 1 << 62;
        }
        let mode = if random.once_in(2) { Mode::User } else { Mode::Supervisor };
        let left = Trial::new(mode).with(|r| (r.rax, r.rbx) = (address, address)).run();
        let fitting = match left.way {
            Way::Event(PF) => true,
            Way::Event(GP | SS) => left.error == 0,
            _ => (address + 16) >> 30 == memory::AREA >> 30,
        };
        holds!(fitting, "round {round}: {:?}, {}, at {address:#x}", left.way, left.error);
    }
    rounds.raised(GP, rounds.count / 16)?;
    rounds.raised(PF, rounds.count / 16)
}

/// SYSCALL as the last instruction of the lower half: the return address is not canonical. CPUs
/// fault at SYSRET with the privileges of the hypervisor.
fn last_page(rounds: &mut Rounds) -> Verdict {
    const LAST: u64 = 0x7fff_ffff_fffe;
    memory::reset_pages(|| 0);
    let [upper, directory, leaf, page, page_user] =
        core::array::from_fn(|i| memory::frame(i as u64));
    for frame in [upper, directory, leaf, page, page_user] {
        memory::fill_frame(frame, |_| u64::from_ne_bytes([0xcc; 8]) * u64::from(frame >= page));
    }
    let entry = |frame: u64| memory::word(frame + 8 * 511);
    entry(upper).store(directory | TABLE, Relaxed);
    entry(directory).store(leaf | TABLE, Relaxed);
    entry(page).store(0x050f_cccc_cccc_cccc, Relaxed);
    memory::jail_slot(255).store(upper | TABLE, Relaxed);
    let calls = [nr::IRQ_WIN, nr::TLB_FLUSH, nr::RDMSR, nr::LOAD_GS, 0, u64::MAX, 0x1708_8205];
    let mut before = None;
    while let Some(round) = rounds.next() {
        let random = &mut rounds.random;
        let mode = if random.once_in(2) { Mode::User } else { Mode::Supervisor };
        if before != Some(mode) {
            let user = if mode == Mode::User { memory::U } else { 0 };
            entry(leaf).store(memory::code_page(page) | user, Relaxed);
            memory::flush();
            before = Some(mode);
        }
        let call = random.pick(&calls);
        let flags = 0x202 | random.bits() & 0xcd5;
        let left = Trial::new(mode)
            .but(|t| (t.rip, t.rflags) = (LAST, flags))
            .with(|r| r.rax = call)
            .run();
        let verdict = (|| {
            match (mode, left.way) {
                (Mode::User, Way::Syscall) => same!(left.rip, LAST + 2, "RIP"),
                // The return is refused, and is the guest's #GP at that address.
                (Mode::Supervisor, Way::Event(GP | PF)) => same!(left.rip, LAST + 2, "RIP"),
                (_, way) => same!(way, Way::Event(GP), "how it was left, at {:#x}", left.rip),
            }
            Ok(())
        })();
        verdict.case(format_args!("round {round}, {mode:?}, {call:#x}"))?;
    }
    // An event of the entry that failed, or of the fetch, where the CPU looks only then.
    rounds.raised(GP, rounds.count / 4)
}
