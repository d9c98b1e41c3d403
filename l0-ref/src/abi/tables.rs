//! Checks CPUID tables and MSR policies, and answers MSR accesses from a policy (spec section 7).
//! Input: guest-controlled entries, copied.

use crate::flaw::{self, Flaw};
use pv_abi::l0::{
    Status,
    list::{CpuidLeaf, LeafFlags, MsrAction, MsrFlags, MsrRange},
};
use std::{collections::BTreeMap, ops::RangeInclusive};

/// MSRs that are held for every vCPU (rule L0-MSR-1).
pub const HELD: [RangeInclusive<u32>; 6] = [
    0x10..=0x10,
    0x1b..=0x1b,
    0x174..=0x176,
    0x277..=0x277,
    0xc000_0080..=0xc000_0084,
    0xc000_0100..=0xc000_0103,
];
/// And these where L0 has the APICs.
pub const HELD_WITH_APIC: [RangeInclusive<u32>; 2] = [0x6e0..=0x6e0, 0x800..=0x8ff];

/// An entry that is wrong, and why.
pub type BadEntry = (usize, Status);

/// Checks a CPUID table.
///
/// # Errors
/// The first entry that is malformed or answers the question of an earlier one.
pub fn check_cpuid(table: &[CpuidLeaf]) -> Result<(), BadEntry> {
    for (index, entry) in table.iter().enumerate() {
        let one_subleaf = match LeafFlags::from_bits(entry.flags) {
            Some(flags) => flags.contains(LeafFlags::SUBLEAF),
            None => return Err((index, Status::BadArg)),
        };
        let same_question = |other: &CpuidLeaf| {
            let either_all = (other.flags & entry.flags & LeafFlags::SUBLEAF.bits()) == 0;
            other.leaf == entry.leaf && (either_all || other.subleaf == entry.subleaf)
        };
        if entry.reserved != 0
            || (!one_subleaf && entry.subleaf != 0)
            || table[..index].iter().any(same_question)
        {
            return Err((index, Status::BadArg));
        }
    }
    Ok(())
}

/// What L2 may do with MSRs that are not held always.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// By first index.
    rules: BTreeMap<u32, MsrRange>,
}

/// The values of MSRs under SHADOW, of one vCPU.
#[derive(Clone, Debug, Default)]
pub struct Cells(BTreeMap<u32, u64>);

/// How an access ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MsrAnswer {
    /// The value that was read; for a write, it is done.
    Done(u64),
    /// #GP.
    Fault,
    /// L1 answers.
    Exit,
}

impl Policy {
    /// Checks the rules of a policy. `holds` says which MSRs L0 can pass; at most `shadows` MSRs
    /// are under SHADOW.
    ///
    /// # Errors
    /// The first rule that is wrong.
    pub fn new(
        rules: &[MsrRange],
        held: impl Fn(u32) -> bool,
        passes: impl Fn(u32) -> bool,
        shadows: u32,
    ) -> Result<Self, BadEntry> {
        let (mut policy, mut cells) = (Self::default(), 0u64);
        for (index, rule) in rules.iter().enumerate() {
            let bad = |status| (index, status);
            let last = last(rule).ok_or(bad(Status::BadArg))?;
            let action = MsrAction::from_raw(rule.action);
            if !well_formed(rule, action) || policy.overlaps(rule.first, last) {
                return Err(bad(Status::BadArg));
            }
            if action == MsrAction::Shadow {
                cells += u64::from(rule.count);
                if cells > u64::from(shadows) {
                    return Err(bad(Status::Limit));
                }
            }
            let can = match action {
                // Few enough to ask one by one: no more are held than there are numbers here.
                MsrAction::Pass => rule.count <= 0x1000 && (rule.first..=last).all(&passes),
                _ => !any_held(rule.first..=last, &held),
            };
            if !can {
                return Err(bad(Status::NotSupported));
            }
            policy.rules.insert(rule.first, *rule);
        }
        Ok(policy)
    }

    fn overlaps(&self, first: u32, last: u32) -> bool {
        let before = self.rules.range(..=last).next_back();
        before.and_then(|(_, rule)| self::last(rule)).is_some_and(|end| end >= first)
    }

    fn rule(&self, msr: u32) -> Option<&MsrRange> {
        let (_, rule) = self.rules.range(..=msr).next_back()?;
        (last(rule)? >= msr).then_some(rule)
    }

    /// The runs that are passed.
    pub fn passed(&self) -> impl Iterator<Item = RangeInclusive<u32>> + '_ {
        let pass = self.rules.values().filter(|rule| rule.action == MsrAction::Pass.raw());
        pass.filter_map(|rule| Some(rule.first..=last(rule)?))
    }

    /// Whether L2's accesses to `msr` are passed by a rule.
    #[must_use]
    pub fn passes(&self, msr: u32) -> bool {
        self.rule(msr).is_some_and(|rule| rule.action == MsrAction::Pass.raw())
    }

    /// The cells of a new vCPU.
    #[must_use]
    pub fn cells(&self) -> Cells {
        let shadow = self.rules.values().filter(|rule| rule.action == MsrAction::Shadow.raw());
        let each = |rule: &MsrRange| {
            let value = rule.value;
            (rule.first..=last(rule).unwrap_or(rule.first)).map(move |msr| (msr, value))
        };
        Cells(shadow.flat_map(each).collect())
    }

    /// A read by L2.
    #[must_use]
    pub fn read(&self, cells: &Cells, msr: u32) -> MsrAnswer {
        let Some(rule) = self.rule(msr) else {
            let zero = flaw::is(Flaw::DenyReadsZero);
            return if zero { MsrAnswer::Done(0) } else { MsrAnswer::Fault };
        };
        match MsrAction::from_raw(rule.action) {
            MsrAction::Exit => MsrAnswer::Exit,
            MsrAction::Value => MsrAnswer::Done(rule.value),
            MsrAction::Shadow => cells.get(msr).map_or(MsrAnswer::Fault, MsrAnswer::Done),
            _ => MsrAnswer::Fault,
        }
    }

    /// A write by L2.
    #[must_use]
    pub fn write(&self, cells: &mut Cells, msr: u32, value: u64) -> MsrAnswer {
        let Some(rule) = self.rule(msr) else { return MsrAnswer::Fault };
        match MsrAction::from_raw(rule.action) {
            MsrAction::Exit => MsrAnswer::Exit,
            MsrAction::Value if rule.flags & MsrFlags::IGNORE_WRITES.bits() != 0 => {
                MsrAnswer::Done(value)
            }
            MsrAction::Shadow
                if (value & !rule.mask == 0 || flaw::is(Flaw::MaskIgnored))
                    && cells.set(msr, value) =>
            {
                MsrAnswer::Done(value)
            }
            _ => MsrAnswer::Fault,
        }
    }
}

impl Cells {
    /// The value of an MSR under SHADOW.
    #[must_use]
    pub fn get(&self, msr: u32) -> Option<u64> {
        self.0.get(&msr).copied()
    }

    /// Sets one; false if there is none.
    pub fn set(&mut self, msr: u32, value: u64) -> bool {
        self.0.get_mut(&msr).map(|cell| *cell = value).is_some()
    }
}

fn last(rule: &MsrRange) -> Option<u32> {
    rule.first.checked_add(rule.count.checked_sub(1)?)
}

fn well_formed(rule: &MsrRange, action: MsrAction) -> bool {
    let (has_value, has_mask, flags) = match action {
        MsrAction::Deny | MsrAction::Exit | MsrAction::Pass => (false, false, MsrFlags::empty()),
        MsrAction::Value => (true, false, MsrFlags::IGNORE_WRITES),
        MsrAction::Shadow => (true, true, MsrFlags::empty()),
        MsrAction::Unknown(_) => return false,
    };
    (has_value || rule.value == 0)
        && (has_mask || rule.mask == 0)
        && rule.flags & !flags.bits() == 0
}

/// Whether some MSR of the run is held always, however long the run.
fn any_held(msrs: RangeInclusive<u32>, held: impl Fn(u32) -> bool) -> bool {
    let runs = HELD.iter().chain(&HELD_WITH_APIC);
    let common =
        |run: &RangeInclusive<u32>| *run.start().max(msrs.start())..=*run.end().min(msrs.end());
    runs.flat_map(common).any(held)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(leaf: u32, subleaf: Option<u32>) -> CpuidLeaf {
        let flags = if subleaf.is_some() { LeafFlags::SUBLEAF.bits() } else { 0 };
        CpuidLeaf { leaf, subleaf: subleaf.unwrap_or(0), flags, ..CpuidLeaf::default() }
    }

    #[test]
    fn a_question_has_one_answer() {
        assert_eq!(check_cpuid(&[leaf(1, None), leaf(4, Some(0)), leaf(4, Some(1))]), Ok(()));
        for twice in [[leaf(1, None); 2], [leaf(4, None), leaf(4, Some(1))], [leaf(4, Some(1)); 2]]
        {
            assert_eq!(check_cpuid(&twice), Err((1, Status::BadArg)));
        }
        assert!(check_cpuid(&[CpuidLeaf { subleaf: 1, ..leaf(1, None) }]).is_err());
        assert!(check_cpuid(&[CpuidLeaf { flags: 2, ..leaf(1, None) }]).is_err());
    }

    fn rule(first: u32, count: u32, action: MsrAction) -> MsrRange {
        MsrRange { first, count, action: action.raw(), ..MsrRange::default() }
    }

    fn policy(rules: &[MsrRange]) -> Result<Policy, BadEntry> {
        let held = |msr| HELD.iter().any(|run| run.contains(&msr));
        Policy::new(rules, held, |msr| held(msr) || msr == 0x48, 4)
    }

    #[test]
    fn bad_rules_are_refused_with_their_index() {
        let deny = rule(0x100, 1, MsrAction::Deny);
        for (bad, status) in [
            (rule(0x200, 0, MsrAction::Deny), Status::BadArg),
            (rule(u32::MAX, 2, MsrAction::Deny), Status::BadArg),
            (rule(0x200, 1, MsrAction::Unknown(9)), Status::BadArg),
            (MsrRange { value: 1, ..rule(0x200, 1, MsrAction::Exit) }, Status::BadArg),
            (MsrRange { flags: 1, ..rule(0x200, 1, MsrAction::Shadow) }, Status::BadArg),
            (MsrRange { mask: 1, ..rule(0x200, 1, MsrAction::Value) }, Status::BadArg),
            (rule(0xff, 2, MsrAction::Deny), Status::BadArg),
            (rule(0x200, 5, MsrAction::Shadow), Status::Limit),
            (rule(0x200, 1, MsrAction::Pass), Status::NotSupported),
            (rule(0, u32::MAX, MsrAction::Pass), Status::BadArg),
            (rule(0x101, u32::MAX - 0x101, MsrAction::Exit), Status::NotSupported),
            (rule(0xc000_0080, 1, MsrAction::Value), Status::NotSupported),
        ] {
            assert_eq!(policy(&[deny, bad]).unwrap_err(), (1, status), "{bad:?}");
        }
        assert!(policy(&[deny, rule(0x48, 1, MsrAction::Pass)]).unwrap().passes(0x48));
    }

    #[test]
    fn accesses_follow_the_policy() {
        let value = MsrRange { value: 7, ..rule(0x200, 1, MsrAction::Value) };
        let ignoring = MsrRange { value: 8, flags: 1, ..rule(0x201, 1, MsrAction::Value) };
        let shadow = MsrRange { value: 9, mask: 0xf, ..rule(0x300, 2, MsrAction::Shadow) };
        let policy = policy(&[value, ignoring, shadow, rule(0x400, 1, MsrAction::Exit)]).unwrap();
        let mut cells = policy.cells();
        assert_eq!(policy.read(&cells, 0x200), MsrAnswer::Done(7));
        assert_eq!(policy.write(&mut cells, 0x200, 1), MsrAnswer::Fault);
        assert_eq!(policy.write(&mut cells, 0x201, 1), MsrAnswer::Done(1));
        assert_eq!(policy.read(&cells, 0x201), MsrAnswer::Done(8));
        assert_eq!(policy.write(&mut cells, 0x301, 0x10), MsrAnswer::Fault);
        assert_eq!(policy.write(&mut cells, 0x301, 0xa), MsrAnswer::Done(0xa));
        assert_eq!(policy.read(&cells, 0x301), MsrAnswer::Done(0xa));
        assert_eq!(policy.read(&cells, 0x300), MsrAnswer::Done(9));
        assert_eq!(policy.read(&cells, 0x400), MsrAnswer::Exit);
        assert_eq!(policy.read(&cells, 0x401), MsrAnswer::Fault);
    }
}
