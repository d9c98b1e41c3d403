//! Attacks by two vCPUs on memory that the hypervisor looks at: tables and code which one of them
//! changes while the other is on its way through them.
//! May: nothing. Context: any. Input: random.

use super::tables::{self, TABLES};
use crate::{
    judge::Rounds,
    runtime::{
        abi,
        counters::Reason,
        memory, piece, second,
        trial::{Interrupts, Mode, Trial, Way, code},
    },
};
use core::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};
use hostile::values;
use pv_abi::{
    event::{BP, GP, PF, UD},
    ext::call,
    hypercall as nr,
    msr::arch,
};
use suite::{
    holds,
    random::Random,
    same,
    verdict::{Case, Verdict},
};

/// What the jail and the random roots have in slot 0.
static GATE: AtomicU64 = AtomicU64::new(0);

/// Changes tables, but for the slots that the guest runs by.
fn edit(random: &mut Random) {
    for _ in 0..random.below(8) {
        let place = tables::table(random) + 8 * (1 + random.below(511));
        memory::word(place).store(tables::entry(random), Relaxed);
    }
}

/// Loads a root that is garbage but for the slot that the guest runs by, and reads through it.
fn load(random: &mut Random) -> Verdict {
    let root = tables::table(random);
    let at = if random.once_in(2) { values::address(random) & !7 } else { tables::address(random) };
    let at = ((at << 16) as i64 >> 16) as u64;
    // The lowest slot is the guest's own.
    let at = if at >> 39 == 0 { at | 1 << 46 } else { at };
    tables::access(random, root, at)
}

/// Both vCPUs load roots and read through them, and change them.
pub fn tables(rounds: &mut Rounds) -> Verdict {
    fn other(random: &mut Random) -> Verdict {
        memory::write_code(piece::load());
        for _ in 0..8 {
            edit(random);
            load(random)?;
            if random.once_in(4) {
                let address = tables::address(random);
                let address = random.pick(&[call::FLUSH_ALL, address]);
                abi::call(call::FLUSH_VCPUS, [u64::MAX, address, 0, 0]);
            }
        }
        Ok(())
    }
    tables::start();
    GATE.store(memory::jail_slot(0).load(Relaxed), Relaxed);
    for index in 0..TABLES {
        let table = memory::frame(index);
        memory::fill_frame(table, |_| tables::entry(&mut rounds.random));
        memory::word(table).store(GATE.load(Relaxed), Relaxed);
    }
    memory::write_code(piece::load());
    second::beside(rounds, other, |rounds| {
        while let Some(round) = rounds.next() {
            second::meet(&mut rounds.random)?;
            let random = &mut rounds.random;
            edit(random);
            load(random).case(format_args!("round {round}"))?;
            if random.once_in(4) {
                abi::call(nr::TLB_FLUSH, [0; 4]);
            }
            if round % 4096 == 4095 {
                same!(abi::call(call::CHECK_ROOTS, [0; 4]), 0, "round {round}: CHECK_ROOTS");
            }
        }
        rounds.entered(Reason::LoadPgtbl, rounds.count)?;
        rounds.raised(PF, rounds.count / 8)
    })
}

/// Pages that come and go, and the frames that they show.
const PAGES: u64 = 4;
/// What the second vCPU waits for whether somebody still writes.
const LOOKS: u32 = 300;

/// The second vCPU takes pages away from the first, which writes them all the time: after a flush it
/// writes them no more.
pub fn flushes(rounds: &mut Rounds) -> Verdict {
    fn other(random: &mut Random) -> Verdict {
        let page = random.below(PAGES);
        let leaf = memory::leaf(memory::FREE_PAGE + page as usize);
        let frame = memory::frame(random.below(PAGES));
        leaf.store(memory::data_page(frame), Release);
        let first = memory::word(frame).load(Acquire);
        let seen = || memory::word(frame).load(Acquire);
        for _ in 0..LOOKS {
            if seen() != first {
                break;
            }
            abi::call(call::YIELD, [0; 4]);
        }
        // Away, or somewhere else, or read-only.
        let elsewhere = memory::frame(PAGES + random.below(PAGES));
        let next = [0, memory::data_page(elsewhere), memory::data_page(frame) & !memory::W];
        leaf.store(random.pick(&next), Release);
        let address = memory::area(memory::FREE_PAGE + page as usize);
        let address = random.pick(&[address, call::FLUSH_ALL]);
        abi::call(call::FLUSH_VCPUS, [random.pick(&[1, 3, u64::MAX]), address, 0, 0]);
        let after = seen();
        for _ in 0..random.below(u64::from(LOOKS)) {
            same!(seen(), after, "a word of a page that was taken away, flushed by {address:#x}");
        }
        // One page shows a frame at a time.
        leaf.store(0, Release);
        abi::call(call::FLUSH_VCPUS, [u64::MAX, call::FLUSH_ALL, 0, 0]);
        Ok(())
    }
    memory::reset_pages(|| 0);
    memory::write_code(piece::stores());
    second::beside(rounds, other, |rounds| {
        while let Some(round) = rounds.next() {
            second::meet(&mut rounds.random)?;
            let random = &mut rounds.random;
            let at = memory::area(memory::FREE_PAGE + random.below(PAGES) as usize);
            let times = 1 + random.below(200);
            let mode = if random.once_in(2) { Mode::User } else { Mode::Supervisor };
            let left = Trial::new(mode).with(|r| (r.rbx, r.rcx) = (at, times)).run();
            let fitting = match left.way {
                Way::Event(BP) => left.registers.rcx == 0,
                Way::Event(PF) => left.cr2 == at && left.registers.rcx <= times,
                _ => false,
            };
            holds!(fitting, "round {round}: {:?}, CR2 {:#x}, not {at:#x}", left.way, left.cr2);
        }
        rounds.raised(BP, 1)?;
        rounds.raised(PF, 1)
    })
}

/// Instructions that are emulated, padded by INT3; and some that are not.
const INSTRUCTIONS: [[u8; 8]; 10] = [
    padded(&[0x0f, 0x32]),
    padded(&[0xe4, 0x42]),
    padded(&[0xe5, 0x44]),
    padded(&[0x0f, 0x20, 0xe0]),
    padded(&[0x0f, 0x01, 0xe0]),
    padded(&[0xfb]),
    padded(&[0x0f, 0x06]),
    padded(&[0x0f, 0x09]),
    padded(&[]),
    padded(&[0x0f, 0x0b]),
];

const fn padded(instruction: &[u8]) -> [u8; 8] {
    let mut bytes = [0xcc; 8];
    let (start, _) = bytes.split_at_mut(instruction.len());
    start.copy_from_slice(instruction);
    bytes
}

/// An instruction becomes another between its fault and its emulation.
pub fn rewritten(rounds: &mut Rounds) -> Verdict {
    fn other(random: &mut Random) -> Verdict {
        let at = memory::word(memory::code_frame() + memory::CODE_START);
        for _ in 0..64 {
            at.store(u64::from_le_bytes(random.pick(&INSTRUCTIONS)), Relaxed);
        }
        Ok(())
    }
    memory::reset_pages(|| 0);
    second::beside(rounds, other, |rounds| {
        while let Some(round) = rounds.next() {
            second::meet(&mut rounds.random)?;
            let left = Trial::new(Mode::Supervisor)
                .but(|t| t.interrupts = Interrupts::Masked)
                .with(|r| (r.rax, r.rcx) = (0, arch::EFER.into()))
                .run();
            let fitting = matches!(left.way, Way::Event(BP | GP | UD));
            holds!(fitting, "round {round}: {:?} at {:#x}", left.way, left.rip);
            // What an instruction leaves of another may be a jump, but a short one.
            let page = |address: u64| address >> 12;
            same!(page(left.rip), page(code(Mode::Supervisor)), "round {round}: the page of RIP");
        }
        let emulated = rounds.counted();
        let emulated = emulated.of(Reason::Emulated) + emulated.of(Reason::RdmsrWrmsr);
        holds!(emulated >= rounds.count / 4, "{emulated} instructions were emulated");
        Ok(())
    })
}
