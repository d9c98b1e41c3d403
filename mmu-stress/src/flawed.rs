//! Bugs planted in MMUs that are right, each with the rules it breaks: the tool finds them all.

use crate::{
    Roost, Simple,
    api::{
        Access, Answer, Gfn, Gpa, Gva, Hpa, Mode, NoTables, Outcome, Scope, Setup, ShadowMmu,
        Tracking, Translations,
    },
    bits::{A, D, P, W, frame},
    program::Plan,
    replay,
    run::Options,
    violation::Rule,
    world::World,
};
use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{
            AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
};

/// Flushes do nothing.
const NO_FLUSH: usize = 0;
/// A load of the root that is loaded already does nothing.
const NO_RELOAD: usize = 1;
/// A flush of one address does nothing.
const NO_ADDRESS: usize = 2;
/// Flushes do not reach the hardware's caches.
const NO_HARDWARE: usize = 3;
/// Everything is writable.
const WRITABLE: usize = 4;
/// A is not set in the guest's leaf entry.
const NO_A: usize = 5;
/// D is not set there.
const NO_D: usize = 6;
/// The user's root links what the kernel's does.
const USER_SEES_ALL: usize = 7;
/// Now and then a fault is refused.
const REFUSES: usize = 8;
/// One address is never mapped.
const NEVER_MAPS: usize = 9;
/// Leaf tables are freed while they are linked.
const FREES_EARLY: usize = 10;
/// Leaves point to another VM's memory.
const FOREIGN: usize = 11;
/// The log forgets a frame.
const LOG_FORGETS: usize = 12;
/// Nothing happens when a host frame changes.
const KEEPS_FRAME: usize = 13;
/// A is set in entries that are not present.
const BLIND_A: usize = 14;
/// It panics.
const PANICS: usize = 15;
/// Notes are ignored.
const NO_NOTES: usize = 16;
/// Lost notes are ignored.
const NO_LOST: usize = 17;
/// Roots that are unpinned count as pinned.
const KEEPS_PINS: usize = 18;

/// `M` with the bug that `FLAW` names.
struct Flawed<M, const FLAW: usize> {
    inner: M,
    world: Arc<World>,
    faults: AtomicU64,
}

struct FlawedVcpu<V> {
    inner: V,
    index: usize,
    root: Gfn,
}

impl<M: ShadowMmu, const FLAW: usize> Flawed<M, FLAW> {
    /// The guest's leaf entry for `gva`, if the walk gets to a leaf table.
    fn guest_leaf(&self, root: Gfn, gva: Gva) -> Option<&AtomicU64> {
        let mut table = root;
        for level in (2..=4).rev() {
            let entry = self.world.table(table)?.0[gva.index(level)].load(SeqCst);
            if entry & (P | crate::bits::PS) != P {
                return None;
            }
            table = frame(entry);
        }
        Some(&self.world.table(table)?.0[gva.index(1)])
    }

    /// The leaf table that the shadow tables link for `gva`.
    fn shadow_leaf(&self, root: Hpa, gva: Gva) -> Option<u32> {
        let mut id = self.world.pool_id(root)?;
        for level in (2..=4).rev() {
            let entry = self.world.pool_table(id).0[gva.index(level)].load(SeqCst);
            id = self.world.pool_id(Hpa(frame(entry).0 << 12)).filter(|_| entry & P != 0)?;
        }
        Some(id)
    }

    fn after_fault(&self, vcpu: &FlawedVcpu<M::Vcpu>, gva: Gva, access: Access, before: u64) {
        let root = self.inner.root(&vcpu.inner, access.mode);
        let shadow = self.shadow_leaf(root, gva);
        let slot = shadow.map(|id| &self.world.pool_table(id).0[gva.index(1)]);
        match (FLAW, slot, self.guest_leaf(vcpu.root, gva)) {
            (WRITABLE, Some(slot), _) => {
                slot.fetch_or(W, SeqCst);
            }
            (FOREIGN, Some(slot), _) => {
                slot.fetch_add(1 << 32, SeqCst);
            }
            (NO_A, _, Some(guest)) if before & A == 0 => {
                guest.fetch_and(!A, SeqCst);
            }
            (NO_D, _, Some(guest)) if before & D == 0 => {
                guest.fetch_and(!D, SeqCst);
            }
            (FREES_EARLY, ..) if self.faults.load(Relaxed).is_multiple_of(50) => {
                shadow.into_iter().for_each(|id| self.world.free_table(id));
            }
            _ => {}
        }
    }
}

impl<M: ShadowMmu, const FLAW: usize> ShadowMmu for Flawed<M, FLAW> {
    type Vcpu = FlawedVcpu<M::Vcpu>;

    fn create(world: Arc<World>, setup: &Setup) -> Self {
        Self { inner: M::create(world.clone(), setup), world, faults: AtomicU64::new(0) }
    }

    fn vcpu(&self, index: usize) -> Self::Vcpu {
        FlawedVcpu { inner: self.inner.vcpu(index), index, root: Gfn(0) }
    }

    fn load_root(
        &self,
        vcpu: &mut Self::Vcpu,
        root: Gfn,
        translations: Translations,
    ) -> Result<(), NoTables> {
        if FLAW == NO_RELOAD && vcpu.root == root {
            return Ok(());
        }
        self.inner.load_root(&mut vcpu.inner, root, translations)?;
        vcpu.root = root;
        Ok(())
    }

    fn root(&self, vcpu: &Self::Vcpu, mode: Mode) -> Hpa {
        self.inner.root(&vcpu.inner, mode)
    }

    fn fault(&self, vcpu: &mut Self::Vcpu, gva: Gva, access: Access) -> Outcome {
        let count = self.faults.fetch_add(1, Relaxed);
        match FLAW {
            REFUSES if count % 100 == 99 => return Outcome::Reflect(0),
            NEVER_MAPS if gva.0 == 0x1000 => return Outcome::Mapped,
            PANICS if count == 99 => panic!("planted"),
            BLIND_A => {
                if let Some(guest) = self.guest_leaf(vcpu.root, gva) {
                    guest.fetch_or(A, SeqCst);
                }
            }
            _ => {}
        }
        let before = self.guest_leaf(vcpu.root, gva).map_or(A | D, |entry| entry.load(SeqCst));
        let outcome = self.inner.fault(&mut vcpu.inner, gva, access);
        if outcome == Outcome::Mapped {
            self.after_fault(vcpu, gva, access, before);
        } else if FLAW == USER_SEES_ALL && access.mode == Mode::User {
            let [kernel, user] = [Mode::Supervisor, Mode::User]
                .map(|mode| self.world.pool_id(self.inner.root(&vcpu.inner, mode)))
                .map(|id| &self.world.pool_table(id.unwrap()).0[gva.index(4)]);
            user.store(kernel.load(SeqCst), SeqCst);
        }
        outcome
    }

    fn flush(&self, vcpu: &mut Self::Vcpu, scope: Scope) {
        if FLAW != NO_FLUSH {
            self.inner.flush(&mut vcpu.inner, scope);
        }
        if FLAW == NO_HARDWARE {
            self.world.forget_flushes(vcpu.index);
        }
    }

    fn flush_address(&self, vcpu: &mut Self::Vcpu, gva: Gva) {
        if FLAW != NO_ADDRESS {
            self.inner.flush_address(&mut vcpu.inner, gva);
        }
    }

    fn entering(&self, vcpu: &mut Self::Vcpu) {
        self.inner.entering(&mut vcpu.inner);
    }

    fn idle(&self, vcpu: &mut Self::Vcpu) {
        self.inner.idle(&mut vcpu.inner);
    }

    fn make_room(&self, vcpu: &mut Self::Vcpu) {
        self.inner.make_room(&mut vcpu.inner);
    }

    fn note(&self, vcpu: &mut Self::Vcpu, at: Gpa) {
        if FLAW != NO_NOTES {
            self.inner.note(&mut vcpu.inner, at);
        }
    }

    fn notes_lost(&self, vcpu: &mut Self::Vcpu) {
        if FLAW != NO_LOST {
            self.inner.notes_lost(&mut vcpu.inner);
        }
    }

    fn pin_root(&self, root: Gfn) -> Answer {
        self.inner.pin_root(root)
    }

    fn unpin_root(&self, root: Gfn) -> Answer {
        if FLAW == KEEPS_PINS { Answer::Done } else { self.inner.unpin_root(root) }
    }

    fn zap_frame(&self, gfn: Gfn) -> Answer {
        self.inner.zap_frame(gfn)
    }

    fn host_changed(&self, gfn: Gfn) -> Answer {
        if FLAW == KEEPS_FRAME { Answer::Done } else { self.inner.host_changed(gfn) }
    }

    fn dirty_log(&self, vcpu: &mut Self::Vcpu) -> Option<Vec<Gfn>> {
        let mut log = self.inner.dirty_log(&mut vcpu.inner)?;
        if FLAW == LOG_FORGETS {
            log.pop();
        }
        Some(log)
    }
}

/// The rules that one thread breaks in a few rounds.
fn rules<M: ShadowMmu>(tracking: Tracking) -> HashSet<Rule> {
    let found = (1..=30).filter_map(|seed| {
        let plan = Plan::new(seed, 0, 2, Some(tracking));
        let steps = replay::schedule(&plan, 1000, 0);
        replay::execute::<M>(&plan, &steps).err()
    });
    found.map(|violation| violation.rule).collect()
}

/// Asserts that `M` breaks the first of `expected`, and nothing but `expected`.
fn finds<M: ShadowMmu>(tracking: Tracking, expected: &[Rule]) {
    let found = rules::<M>(tracking);
    assert!(found.contains(&expected[0]), "found {found:?}");
    assert!(found.iter().all(|rule| expected.contains(rule)), "found {found:?}");
}

macro_rules! planted {
    ($($name:ident: $inner:ty, $flaw:expr, $tracking:ident => [$($rule:ident),+];)+) => {
        $(#[test]
        fn $name() {
            finds::<Flawed<$inner, $flaw>>(Tracking::$tracking, &[$(Rule::$rule),+]);
        })+
    };
}

planted! {
    // What is stale may be an entry whose A or D was cleared, or a link on whose word an access is
    // refused.
    flushes_that_do_nothing: Simple, NO_FLUSH, Unsync => [F2, F5, I5];
    loads_that_do_nothing: Simple, NO_RELOAD, Unsync => [F1, F5, I5];
    address_flushes_that_do_nothing: Simple, NO_ADDRESS, Unsync => [F6, F5, I5];
    caches_that_are_not_flushed: Roost, NO_HARDWARE, Notes => [F3, F5, I5];
    tables_freed_under_caches: Simple, NO_HARDWARE, Unsync => [I4, F3, F5, I5];
    permissions_that_are_ignored: Simple, WRITABLE, Unsync => [S1, I5, F1, F2, F5, F6];
    a_bits_that_are_forgotten: Simple, NO_A, Unsync => [F5, I5];
    d_bits_that_are_forgotten: Simple, NO_D, Unsync => [I5];
    kernel_pages_that_users_see: Simple, USER_SEES_ALL, Unsync => [S2, S1, I4, F1, F2, F5, F6, I5];
    refused_accesses: Simple, REFUSES, Unsync => [F4];
    faults_without_end: Simple, NEVER_MAPS, Unsync => [S3];
    tables_freed_early: Simple, FREES_EARLY, Unsync => [I4, S1, S4];
    foreign_frames: Simple, FOREIGN, Unsync => [S4];
    logs_that_forget: Simple, LOG_FORGETS, Unsync => [D1];
    host_frames_that_are_kept: Simple, KEEPS_FRAME, Unsync => [H1];
    a_bits_set_blindly: Simple, BLIND_A, Unsync => [I5];
    panics: Simple, PANICS, Unsync => [S5];
    notes_that_are_ignored: Roost, NO_NOTES, Notes => [N1, F1, F2, F4, F5, F6, I5, N3];
    lost_notes_that_are_ignored: Roost, NO_LOST, Notes => [N3, F5, I5];
    pins_that_are_kept: Roost, KEEPS_PINS, Notes => [N4, F4, F5, I5];
}

#[test]
fn the_example_breaks_no_rule() {
    for tracking in [Tracking::Unsync, Tracking::Notes] {
        assert!(rules::<Simple>(tracking).is_empty());
    }
}

#[test]
fn the_projects_mmu_breaks_no_rule_in_one_thread() {
    for seed in 1..=30 {
        let plan = Plan::new(seed, 0, 1 + seed as usize % 3, None);
        let steps = replay::schedule(&plan, 1000, 0);
        if let Err(violation) = replay::execute::<Roost>(&plan, &steps) {
            panic!("seed {seed}: {violation}");
        }
    }
}

#[test]
fn threads_find_planted_bugs_too_and_one_thread_shrinks_them() {
    let options = Options {
        steps: 2000,
        tracking: Some(Tracking::Unsync),
        time: std::time::Duration::from_secs(30),
        ..Options::default()
    };
    let report = crate::stress::<Flawed<Simple, NO_ADDRESS>>(&options, |_| ());
    let violation = report.violation.unwrap();
    // Where only a TLB still has what the flush was of, it is F3.
    let rules = [Rule::F6, Rule::F5, Rule::F3, Rule::I5];
    assert!(rules.contains(&violation.rule), "{violation}");
    let replay = report.replay.unwrap();
    assert!(replay.violation.is_some_and(|found| rules.contains(&found.rule)));
    assert!(replay.steps.len() < 30, "{:?}", replay.steps);
}

#[test]
fn threads_break_no_rule_of_the_example() {
    let options = Options {
        steps: 1000,
        threads: 3,
        vms: 2,
        time: std::time::Duration::from_secs(2),
        ..Options::default()
    };
    let report = crate::stress::<Simple>(&options, |_| ());
    assert!(report.violation.is_none(), "{:?}", report.violation);
    assert_eq!(report.missing, ["pin_root", "forget_table"]);
    assert_eq!(report.counts.unjudged * 100 / report.counts.judged.max(1), 0);
}
