//! Keeps what was done to each instruction of the switcher.
//! May: alloc. Input: trusted.

use super::text;
use alloc::{
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};
use core::{
    fmt,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};
use pv_abi::event;

/// An instruction.
#[derive(Debug, Default)]
pub struct Target {
    /// Where it is, from the start of an area.
    pub offset: u64,
    /// The vector whose stub it is in.
    pub vector: Option<u8>,
    /// Breakpoints that it was interrupted by.
    pub breakpoints: AtomicU64,
    /// NMIs.
    pub nmis: AtomicU64,
}

impl Target {
    /// It has had either, and a breakpoint without an NMI behind it.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.breakpoints.load(Relaxed) >= 2 && self.nmis.load(Relaxed) >= 1
    }
}

/// All instructions.
#[derive(Debug, Default)]
pub struct Table {
    targets: Vec<Target>,
    /// Instructions that are left out: those of the IST vectors' own.
    left_out: usize,
    /// #DB from L1 that no breakpoint of the table has caused.
    pub strange: AtomicU64,
    /// NMIs that came at other places of L1.
    pub nmis_elsewhere: AtomicU64,
    /// NMIs that guests were left by.
    pub nmi_exits: AtomicU64,
}

impl Table {
    /// The instructions of `code` that `entries` and the 256 `stubs` (of 16 bytes) lead to, without those
    /// to which nothing but the stubs of IST vectors leads, or `barred`, which no guest gets to and lives.
    #[must_use]
    pub fn of(code: &[u8], entries: &[u64], stubs: u64, barred: u64) -> Self {
        const OWN_STACK: [u8; 4] = [event::NMI, event::DB, event::MC, event::DF];
        let stub = |vector: u8| stubs + 16 * u64::from(vector);
        let usual = (0..=u8::MAX).filter(|vector| !OWN_STACK.contains(vector)).map(stub);
        let chosen: Vec<_> = entries.iter().copied().chain(usual).collect();
        let chosen = text::instructions(code, &chosen, Some(barred));
        let own = text::instructions(code, &OWN_STACK.map(stub), None);
        let left_out = own.difference(&chosen).count();
        Self { targets: Self::targets(&chosen, stubs), left_out, ..Self::default() }
    }

    fn targets(offsets: &BTreeSet<u64>, stubs: u64) -> Vec<Target> {
        let vector = |offset: u64| u8::try_from(offset.checked_sub(stubs)? / 16).ok();
        let target = |&offset: &u64| Target { offset, vector: vector(offset), ..Target::default() };
        offsets.iter().map(target).collect()
    }

    /// The target at `offset`.
    #[must_use]
    pub fn at(&self, offset: u64) -> Option<&Target> {
        let index = self.targets.binary_search_by_key(&offset, |target| target.offset);
        index.ok().map(|index| &self.targets[index])
    }

    /// Some target, by chance: every second time of those that are not done, if there are any. `random`
    /// is any number.
    #[must_use]
    pub fn choose(&self, random: u64) -> &Target {
        let (first, second) = self.targets.split_at((random / 2) as usize % self.targets.len());
        let mut undone = second.iter().chain(first).filter(|target| !target.is_done());
        undone.next().filter(|_| random.is_multiple_of(2)).unwrap_or(&second[0])
    }

    /// What was missed, by offset and vector.
    fn missed(&self, count: fn(&Target) -> &AtomicU64) -> Missed {
        let missed = self.targets.iter().filter(|target| count(target).load(Relaxed) == 0);
        Missed(missed.map(|target| (target.offset, target.vector)).collect())
    }
}

/// Offsets of instructions with the vectors of their stubs.
struct Missed(BTreeMap<u64, Option<u8>>);

impl fmt::Display for Missed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (offset, vector)) in self.0.iter().enumerate() {
            write!(f, "{}[{offset},", if number == 0 { "" } else { "," })?;
            match vector {
                Some(vector) => write!(f, "{vector}]")?,
                None => write!(f, "null]")?,
            }
        }
        Ok(())
    }
}

/// One line of JSON; what was missed is a list of offsets with the vector whose stub it is, or null.
impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sum = |count: fn(&Target) -> &AtomicU64| -> u64 {
            self.targets.iter().map(|target| count(target).load(Relaxed)).sum()
        };
        let count = |count: &AtomicU64| count.load(Relaxed);
        write!(f, "{{\"instructions\":{},\"left_out\":{}", self.targets.len(), self.left_out)?;
        write!(f, ",\"breakpoints\":{},\"nmis\":{}", sum(|t| &t.breakpoints), sum(|t| &t.nmis))?;
        write!(f, ",\"strange\":{}", count(&self.strange))?;
        write!(f, ",\"nmis_elsewhere\":{}", count(&self.nmis_elsewhere))?;
        write!(f, ",\"nmi_exits\":{}", count(&self.nmi_exits))?;
        write!(f, ",\"no_breakpoint\":[{}]", self.missed(|target| &target.breakpoints))?;
        write!(f, ",\"no_nmi\":[{}]}}", self.missed(|target| &target.nmis))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    /// At 0 NOP and SYSRETQ; at 16 the stubs, each JMP 0, but for the NMI's, which begins with NOP.
    fn table() -> Table {
        let mut code = std::vec![0x90; 16 + 256 * 16];
        code[1..4].copy_from_slice(&[0x48, 0x0f, 0x07]);
        for stub in 0..256 {
            let jump = 16 + 16 * stub + usize::from(stub == 2);
            let distance = -(jump as i32 + 5);
            code[jump] = 0xe9;
            code[jump + 1..jump + 5].copy_from_slice(&distance.to_le_bytes());
        }
        Table::of(&code, &[0], 16, u64::MAX)
    }

    #[test]
    fn what_has_a_stack_of_its_own_is_left_out() {
        let table = table();
        // Two at the start, 252 stubs; left out are the stubs of four vectors, one of two instructions.
        assert_eq!((table.targets.len(), table.left_out), (254, 5));
        assert_eq!(table.at(16 + 3 * 16).and_then(|target| target.vector), Some(3));
        assert!(table.at(16 + 2 * 16).is_none() && table.at(2).is_none());
        assert_eq!(table.at(1).map(|target| target.vector), Some(None));
    }

    #[test]
    fn what_is_not_done_comes_first() {
        let table = table();
        for target in &table.targets[..253] {
            target.breakpoints.store(2, Relaxed);
            target.nmis.store(1, Relaxed);
        }
        for random in 0..1000 {
            assert_eq!(table.choose(2 * random).vector, Some(255));
        }
        let text = table.to_string();
        assert!(text.contains(r#""breakpoints":506,"nmis":253"#), "{text}");
        assert!(text.ends_with(r#""no_breakpoint":[[4096,255]],"no_nmi":[[4096,255]]}"#), "{text}");
        table.targets[253].breakpoints.store(2, Relaxed);
        table.targets[253].nmis.store(1, Relaxed);
        let chosen: BTreeSet<_> = (0..508).map(|random| table.choose(random).offset).collect();
        assert_eq!(chosen.len(), 254);
    }
}
