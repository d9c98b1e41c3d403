//! Attacks by needing more of the hypervisor's memory than there is.
//! May: nothing. Context: any. Input: random.

use crate::{
    judge::{Group, Rounds, attack},
    runtime::{
        abi,
        counters::Reason,
        memory::{self, D, P, TABLE, U, W},
        piece,
        trial::{Mode, Trial, Way},
    },
};
use core::sync::atomic::Ordering::Relaxed;
use pv_abi::{event::BP, hypercall as nr};
use suite::{same, verdict::Verdict};

pub const GROUP: Group = Group {
    name: "memory_limit",
    attacks: &[attack("spaces", "HC-3 END-6", 20, spaces), attack("wide", "MMU-1 END-6", 20, wide)],
};

/// Frames of one address space: a root and three tables.
const TABLES: u64 = 4;
const BASE: u64 = 0x2a55_1234_5000;

const fn index(address: u64, level: u64) -> u64 {
    address >> (3 + 9 * level) & 511
}

/// As many address spaces as the guest's memory holds, each with tables of its own, touched in any
/// order.
fn spaces(rounds: &mut Rounds) -> Verdict {
    memory::reset_pages(|| 0);
    let count = memory::frames() / TABLES;
    let gate = memory::jail_slot(0).load(Relaxed);
    for space in 0..count {
        let [root, upper, directory, leaf] =
            core::array::from_fn(|table| memory::frame(TABLES * space + table as u64));
        for frame in [root, upper, directory, leaf] {
            memory::fill_frame(frame, |_| 0);
        }
        let put = |table: u64, level: u64, value: u64| {
            memory::word(table + 8 * index(BASE, level)).store(value, Relaxed);
        };
        memory::word(root).store(gate, Relaxed);
        put(root, 4, upper | TABLE);
        put(upper, 3, directory | TABLE);
        put(directory, 2, leaf | TABLE);
        // A page that says whose it is: the space's own root, whose word 511 is its number.
        put(leaf, 1, root | P | U);
        memory::word(root + 8 * 300).store(0, Relaxed);
        memory::word(leaf + 8 * 511).store(0, Relaxed);
        memory::word(root + 8 * 255).store(space << 1, Relaxed);
    }
    memory::write_code(piece::load());
    while let Some(round) = rounds.next() {
        let random = &mut rounds.random;
        let space = if round < count { round } else { random.below(count) };
        let mode = if random.once_in(2) { Mode::User } else { Mode::Supervisor };
        let left = Trial::new(mode)
            .but(|t| t.root = memory::frame(TABLES * space))
            .with(|r| r.rbx = BASE & !0xfff | (8 * 255))
            .run();
        same!(left.way, Way::Event(BP), "space {space}: how it was left");
        same!(left.registers.rax, space << 1, "the page of space {space}");
        if random.once_in(64) {
            abi::call(nr::TLB_FLUSH, [0; 4]);
        }
    }
    rounds.entered(Reason::LoadPgtbl, rounds.count)?;
    rounds.entered(Reason::PageFaultFilled, count.min(rounds.count))
}

/// One address space as wide as can be: each access needs shadow tables of its own, at every level.
fn wide(rounds: &mut Rounds) -> Verdict {
    memory::reset_pages(|| 0);
    // Few tables of the guest's lead everywhere: each entry of a table leads to the same next one.
    let [upper, directory, leaf, page] = core::array::from_fn(|table| memory::frame(table as u64));
    memory::fill_frame(upper, |_| directory | TABLE);
    memory::fill_frame(directory, |_| leaf | TABLE);
    memory::fill_frame(leaf, |_| page | P | W | U | D);
    memory::fill_frame(page, |word| word);
    for slot in (1..256).chain(472..504) {
        memory::jail_slot(slot).store(upper | TABLE, Relaxed);
    }
    memory::flush();
    memory::write_code(piece::load());
    while rounds.next().is_some() {
        let random = &mut rounds.random;
        let slot = 1 + random.below(255);
        let at = slot << 39 | random.bits() & 0x7f_ffff_fff8;
        let mode = if random.once_in(2) { Mode::User } else { Mode::Supervisor };
        let left = Trial::new(mode).with(|r| r.rbx = at).run();
        same!(left.way, Way::Event(BP), "at {at:#x}: how it was left");
        same!(left.registers.rax, at >> 3 & 511, "the word at {at:#x}");
    }
    rounds.entered(Reason::PageFaultFilled, rounds.count / 2)
}
