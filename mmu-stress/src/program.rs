//! Makes random programs. A seed decides everything about a round.

use crate::{
    api::{Access, Gfn, Kind, Mode, Scope, Setup, Tracking, Translations},
    bits::{A, D, NX, P, PS, U, W},
    guest::{
        self, Addresses, BLOCKS, DATA, FRAMES, KERNEL_SLOT, LEVEL1, LEVEL2, LEVEL3, PHYSICAL_BITS,
        ROOTS, SLOTS, SMALL,
    },
    history::Change,
    step::{At, Step, Writer},
};
use fastrand::Rng;

/// What a round is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Character {
    /// A bit of everything.
    Mixed,
    /// Few addresses and few tables: as many conflicts as possible.
    Narrow,
    /// Few stores: tables stay as they are for long.
    Quiet,
    /// Hardly enough tables.
    Scarce,
}

/// A round: the VM, and what its vCPUs do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Decides everything random.
    pub seed: u64,
    /// The VM's number.
    pub vm: usize,
    /// What kind of VM it is.
    pub setup: Setup,
    /// Frames for shadow tables.
    pub pool: u32,
    /// What the programs are like.
    pub character: Character,
}

impl Plan {
    /// The round that `seed` stands for; without `tracking` the seed decides that too.
    #[must_use]
    pub fn new(seed: u64, vm: usize, vcpus: usize, tracking: Option<Tracking>) -> Self {
        let mut rng = Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ vm as u64);
        let either = if seed.is_multiple_of(2) { Tracking::Unsync } else { Tracking::Notes };
        let tracking = tracking.unwrap_or(either);
        let character = match rng.u32(0..8) {
            0..3 => Character::Mixed,
            3..5 => Character::Narrow,
            5..7 => Character::Quiet,
            _ => Character::Scarce,
        };
        let pool = match character {
            Character::Scarce => 16 + 10 * vcpus as u32,
            _ => 256,
        };
        let setup = Setup {
            vcpus,
            tracking,
            smep: tracking == Tracking::Unsync && rng.bool(),
            physical_bits: PHYSICAL_BITS,
            pinned: if tracking == Tracking::Notes { ROOTS.to_vec() } else { Vec::new() },
        };
        Self { seed, vm, setup, pool, character }
    }

    /// The program of vCPU `vcpu`: endless.
    #[must_use]
    pub fn program(&self, vcpu: usize) -> Program {
        let seed = self.seed ^ (self.vm as u64) << 32 ^ (vcpu as u64) << 48;
        Program {
            rng: Rng::with_seed(seed),
            addresses: Addresses::new(),
            notes: self.setup.tracking == Tracking::Notes,
            narrow: self.character == Character::Narrow,
            quiet: self.character == Character::Quiet,
        }
    }
}

/// A vCPU's program.
#[derive(Clone, Debug)]
pub struct Program {
    rng: Rng,
    addresses: Addresses,
    notes: bool,
    narrow: bool,
    quiet: bool,
}

impl Iterator for Program {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        Some(self.step())
    }
}

impl Program {
    fn step(&mut self) -> Step {
        let of = if self.quiet { 400 } else { 100 };
        match self.rng.u32(0..of) {
            0..12 => self.leaf_store(),
            12..18 => self.clear_bits(),
            18..23 => self.upper_store(),
            23 => self.swap(),
            24..30 => self.load(),
            30..38 => Step::FlushAddress(self.address()),
            38..42 => Step::Flush(Scope::Current),
            42..44 => Step::Flush(Scope::All),
            44..46 => self.rare(),
            _ => self.access(),
        }
    }

    fn rare(&mut self) -> Step {
        match self.rng.u32(0..10) {
            0..2 => Step::Zap(Gfn(self.rng.u64(0..SMALL))),
            2 => Step::MakeRoom,
            3 if self.notes => Step::LoseNotes,
            4 if self.notes => Step::Pin(self.root()),
            5 if self.notes => Step::Unpin(self.root()),
            6 if self.notes => {
                let table = self.table();
                Step::Forget(table)
            }
            7 => Step::Move(self.pick(&DATA)),
            8 => Step::ReadLog,
            _ => Step::Idle,
        }
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.rng.usize(0..if self.narrow { from.len().min(2) } else { from.len() })]
    }

    fn root(&mut self) -> usize {
        self.rng.usize(0..ROOTS.len())
    }

    fn address(&mut self) -> usize {
        let mapped = self.addresses.mapped();
        match self.rng.u32(0..20) {
            // The kernel's own map is flushed and read as well.
            0 => mapped + self.rng.usize(0..SMALL as usize),
            _ if self.narrow => self.pick(&[0, 1, 16, 5]),
            _ => self.rng.usize(0..mapped),
        }
    }

    fn access(&mut self) -> Step {
        let address = self.address();
        let kind = match self.rng.u32(0..8) {
            0..4 => Kind::Read,
            4..7 => Kind::Write,
            _ => Kind::Fetch,
        };
        let mode = if self.rng.bool() { Mode::User } else { Mode::Supervisor };
        // The kernel knows where it maps itself, and stores there on purpose only.
        let kernel_map = address >= self.addresses.mapped();
        let kind = if kernel_map && kind == Kind::Write { Kind::Read } else { kind };
        let change = Change::Set(self.leaf_entry());
        Step::Access { address, access: Access { kind, mode }, slot: self.slot(), change }
    }

    fn slot(&mut self) -> usize {
        self.pick(&SLOTS)
    }

    fn leaf_slot(&mut self) -> usize {
        self.pick(&[0, 1, 2, 3, 5, 511])
    }

    /// Who stores to a table of `level`: with notes the upper ones are the shim's.
    fn writer(&mut self, level: u8) -> Writer {
        if self.notes && (level > 1 || self.rng.bool()) { Writer::Shim } else { Writer::Kernel }
    }

    fn flags(&mut self) -> u64 {
        let mut flags = 0;
        for (bit, often) in [(P, 14), (W, 11), (U, 12), (A, 11), (D, 8)] {
            if self.rng.u32(0..16) < often {
                flags |= bit;
            }
        }
        if self.rng.u32(0..8) == 0 { flags | NX } else { flags }
    }

    fn leaf_entry(&mut self) -> u64 {
        let target = match self.rng.u32(0..24) {
            0 => FRAMES + 5,
            1 => 1 << 28,
            2..6 => self.pick(&LEVEL1).0,
            // Tables as data, but not where the guest has promised to announce its stores.
            6 if !self.notes => self.table().0,
            _ => self.pick(&DATA).0,
        };
        target << 12 | self.flags()
    }

    fn upper_entry(&mut self, level: u8) -> u64 {
        let flags = self.flags() | if self.rng.bool() { U } else { 0 };
        if level < 4 && self.rng.u32(0..10) == 0 {
            let target = match self.rng.u32(0..8) {
                0 if !self.notes => 0,
                1 => 3,
                _ => self.pick(&BLOCKS).0,
            };
            return target << 12 | flags | PS;
        }
        let target = match (level, self.rng.u32(0..16)) {
            (_, 0) => FRAMES + 1,
            // Any table at any level. With notes, leaf tables and roots stay what they are, for
            // not all stores to them are announced, and other tables may be used below
            // their level, but not be written there.
            (_, 1..3) if !self.notes => self.table().0,
            (2, 1) => return self.pick(&LEVEL2).0 << 12 | flags & !W,
            (2 | 3, 2) => return self.pick(&LEVEL3).0 << 12 | flags & !W,
            (2, _) => self.pick(&LEVEL1).0,
            (3, _) => self.pick(&LEVEL2).0,
            _ => self.pick(&LEVEL3).0,
        };
        target << 12 | flags
    }

    fn table(&mut self) -> Gfn {
        match self.rng.u32(0..4) {
            0 => self.pick(&LEVEL1),
            1 => self.pick(&ROOTS),
            _ => self.upper_table().0,
        }
    }

    /// A table that is no leaf table, and its level.
    fn upper_table(&mut self) -> (Gfn, u8) {
        match self.rng.u32(0..9) {
            0..5 => (self.pick(&LEVEL2), 2),
            5..8 => (self.pick(&LEVEL3), 3),
            _ => (self.pick(&ROOTS), 4),
        }
    }

    fn leaf_store(&mut self) -> Step {
        let at = At { gfn: self.pick(&LEVEL1), slot: self.leaf_slot() };
        let change = match self.rng.u32(0..6) {
            0 => Change::Set(0),
            1 => Change::Bits { set: W, clear: 0 },
            2 => Change::Bits { set: 0, clear: W },
            _ => Change::Set(self.leaf_entry()),
        };
        Step::Store { at, change, by: self.writer(1) }
    }

    /// As the guest ages its pages, or writes them back.
    fn clear_bits(&mut self) -> Step {
        let (gfn, level) =
            if self.rng.u32(0..4) == 0 { self.upper_table() } else { (self.pick(&LEVEL1), 1) };
        let slot = self.slot_at(level);
        let clear = match self.rng.u32(0..4) {
            0 => A,
            1 => D,
            2 => D | W,
            _ => A | D,
        };
        let change = Change::Bits { set: 0, clear };
        Step::Store { at: At { gfn, slot }, change, by: self.writer(level) }
    }

    fn slot_at(&mut self, level: u8) -> usize {
        match level {
            1 => self.leaf_slot(),
            4 => self.pick(&[0, 1, KERNEL_SLOT]),
            _ => self.rng.usize(0..2),
        }
    }

    fn upper_store(&mut self) -> Step {
        let (gfn, level) = self.upper_table();
        if self.rng.u32(0..4) > 0 {
            // Back to how it was: random trees lead nowhere, mostly.
            let (at, value) = guest::first_link(self.rng.usize(0..guest::FIRST_LINKS));
            return Step::Store { at, change: Change::Set(value), by: self.writer(2) };
        }
        let slot = self.slot_at(level);
        let value = if self.rng.u32(0..6) == 0 { 0 } else { self.upper_entry(level) };
        let (at, change) = (At { gfn, slot }, Change::Set(value));
        Step::Store { at, change, by: self.writer(level) }
    }

    fn swap(&mut self) -> Step {
        let (a, level) = if self.rng.bool() { self.upper_table() } else { (self.pick(&LEVEL1), 1) };
        let b = match level {
            1 => self.pick(&LEVEL1),
            2 => self.pick(&LEVEL2),
            3 => self.pick(&LEVEL3),
            _ => self.pick(&ROOTS),
        };
        let [a, b] = [a, b].map(|gfn| At { gfn, slot: self.slot_at(level) });
        Step::Swap { a, b, by: self.writer(level) }
    }

    fn load(&mut self) -> Step {
        let keep = self.rng.u32(0..4) == 0;
        let translations = if keep { Translations::Keep } else { Translations::Flush };
        Step::Load { root: self.root(), translations }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_program() {
        let steps =
            |seed| -> Vec<Step> { Plan::new(seed, 0, 2, None).program(1).take(500).collect() };
        assert_eq!(steps(7), steps(7));
        assert_ne!(steps(7), steps(8));
    }

    /// The level a table was made for; 0 for data.
    fn made_for(gfn: u64) -> u8 {
        let tables: [&[Gfn]; 4] = [&LEVEL1, &LEVEL2, &LEVEL3, &ROOTS];
        tables.iter().position(|level| level.contains(&Gfn(gfn))).map_or(0, |at| at as u8 + 1)
    }

    /// With notes, the kernel's own stores go to leaf tables only. No table is used above the level
    /// it was made for, and where one is used below, nothing can be written through it: so leaf
    /// tables stay leaf tables, and no upper one is written unannounced.
    #[test]
    fn with_notes_unannounced_stores_reach_leaf_tables_only() {
        for step in Plan::new(3, 0, 1, None).program(0).take(20_000) {
            let Step::Store { at, change: Change::Set(value), by } = step else { continue };
            let (table, target) = (made_for(at.gfn.0), crate::bits::frame(value).0);
            assert!(by == Writer::Shim || table == 1, "{step:?}");
            if value & P == 0 || target >= SMALL || table > 1 && value & PS != 0 {
                continue;
            }
            match made_for(target) {
                below if below + 1 == table || below == 0 => {}
                1 => assert_eq!(table, 1, "{step:?}"),
                4 => panic!("{step:?}"),
                _ => assert!(table > 1 && value & W == 0, "{step:?}"),
            }
        }
    }
}
