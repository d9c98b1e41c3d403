//! A VM under stress: the MMU, the oracle, and what its vCPUs share.

use crate::{
    api::{Answer, Gfn, ShadowMmu},
    guest::{self, FRAMES, ROOTS, SMALL},
    history::{Clock, OPEN, Time},
    oracle::Oracle,
    program::Plan,
    violation::Rule,
    world::{Waiting, World},
};
use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockWriteGuard,
    atomic::{
        AtomicBool, AtomicU64,
        Ordering::{Relaxed, SeqCst},
    },
};

/// What an implementation may lack.
#[derive(Debug)]
pub struct Features {
    /// `zap_frame`.
    pub zap: bool,
    /// `host_changed`.
    pub moves: bool,
    /// `pin_root`, `unpin_root`; asked for with notes only.
    pub pins: Option<bool>,
    /// `forget_table`.
    pub forget: bool,
    /// `dirty_log`; known only once it was asked for.
    pub log: AtomicBool,
}

impl Features {
    /// Those that are missing, by name.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        [
            (self.zap, "zap_frame"),
            (self.moves, "host_changed"),
            (self.pins.unwrap_or(true), "pin_root"),
            (self.forget, "forget_table"),
            (self.log.load(Relaxed), "dirty_log"),
        ]
        .into_iter()
        .filter_map(|(present, name)| (!present).then_some(name))
        .collect()
    }
}

/// When each frame was last written, for the dirty log.
#[derive(Debug)]
pub struct WriteTimes {
    running: AtomicBool,
    last: Vec<Mutex<(Time, Time)>>,
    /// When the last reading of the log was over.
    read: Mutex<Time>,
}

impl WriteTimes {
    fn new() -> Self {
        Self {
            running: AtomicBool::new(false),
            last: (0..FRAMES).map(|_| Mutex::new((0, 0))).collect(),
            read: Mutex::new(0),
        }
    }

    /// `gfn` was written between `begin` and now.
    #[inline]
    pub fn record(&self, gfn: Gfn, begin: Time, clock: &Clock) {
        if self.running.load(Relaxed) {
            *lock(&self.last[gfn.0 as usize]) = (begin, clock.now());
        }
    }

    /// Reads the log with `read`. The first frame that it misses: one whose last write began after
    /// the last reading and was over before this one. `None` if there is no log.
    pub fn check(
        &self,
        clock: &Clock,
        read: impl FnOnce() -> Option<Vec<Gfn>>,
    ) -> Option<Result<(), Gfn>> {
        let mut last_read = lock(&self.read);
        let begin = clock.tick();
        let due: Vec<_> = self
            .last
            .iter()
            .enumerate()
            .filter(|(_, write)| {
                let (from, until) = *lock(write);
                *last_read != 0 && from >= *last_read && until < begin
            })
            .map(|(gfn, _)| Gfn(gfn as u64))
            .collect();
        let found = read()?;
        *last_read = clock.tick();
        self.running.store(true, Relaxed);
        Some(due.into_iter().find(|gfn| !found.contains(gfn)).map_or(Ok(()), Err))
    }
}

impl std::ops::Deref for Entered<'_> {
    type Target = bool;
    fn deref(&self) -> &bool {
        &self.0
    }
}

/// Proof that nobody changes whether a root is pinned.
#[derive(Debug)]
pub struct Entered<'a>(std::sync::RwLockReadGuard<'a, bool>);

/// The host frames that may not be reached any more.
#[derive(Debug)]
pub struct Moves {
    lock: Mutex<()>,
    /// By small frame and bank: since when, or OPEN.
    dead_since: Vec<[AtomicU64; 2]>,
}

impl Moves {
    fn new() -> Self {
        let alive = || [const { AtomicU64::new(OPEN) }; 2];
        Self { lock: Mutex::new(()), dead_since: (0..SMALL).map(|_| alive()).collect() }
    }

    /// True if an access that began at `begin` must not have reached `bank` of `gfn`.
    #[inline]
    #[must_use]
    pub fn forbids(&self, gfn: Gfn, bank: bool, begin: Time) -> bool {
        self.dead_since
            .get(gfn.0 as usize)
            .is_some_and(|banks| banks[usize::from(bank)].load(SeqCst) < begin)
    }
}

/// A VM under stress.
#[derive(Debug)]
pub struct Vm<M> {
    /// What it is like.
    pub plan: Plan,
    /// Its machine.
    pub world: Arc<World>,
    /// The MMU under test.
    pub mmu: M,
    /// What the guest's tables say and said.
    pub oracle: Oracle,
    /// What the MMU can do.
    pub features: Features,
    /// Dirty log.
    pub writes: WriteTimes,
    /// Host frames.
    pub moves: Moves,
    /// Which roots are pinned. Held for writing while that changes.
    pins: [RwLock<bool>; ROOTS.len()],
}

impl<M: ShadowMmu> Vm<M> {
    /// The VM of `plan`, as it starts out.
    #[must_use]
    pub fn new(plan: Plan, waiting: Waiting) -> Self {
        let world = Arc::new(World::new(plan.vm, plan.pool, plan.setup.vcpus, waiting));
        guest::build(&world);
        let oracle = Oracle::new(world.clone());
        let mmu = M::create(world.clone(), &plan.setup);
        let done = |answer| answer == Answer::Done;
        let pinned = plan.setup.pinned.iter().map(|&root| done(mmu.pin_root(root)));
        let pins = pinned.reduce(|all, pinned| all && pinned);
        let features = Features {
            zap: done(mmu.zap_frame(Gfn(0))),
            moves: done(mmu.host_changed(Gfn(0))),
            pins,
            forget: done(mmu.forget_table(Gfn(0))),
            log: AtomicBool::new(true),
        };
        Self {
            plan,
            world,
            mmu,
            oracle,
            features,
            writes: WriteTimes::new(),
            moves: Moves::new(),
            pins: [const { RwLock::new(true) }; ROOTS.len()],
        }
    }

    /// Whether root number `root` is pinned, while the result lives. `None` if that is just
    /// changing.
    #[must_use]
    pub fn pinned(&self, root: usize) -> Option<Entered<'_>> {
        self.pins[root].try_read().ok().map(Entered)
    }

    /// Whether root number `root` is pinned, to be changed. `None` if another vCPU changes it, or does
    /// what depends on it.
    #[must_use]
    pub fn pinned_mut(&self, root: usize) -> Option<RwLockWriteGuard<'_, bool>> {
        self.pins[root].try_write().ok()
    }

    /// Puts another host frame behind small frame `gfn`.
    pub fn move_frame(&self, gfn: Gfn) {
        let _moving = lock(&self.moves.lock);
        let (old, banks) = (self.world.bank(gfn), &self.moves.dead_since[gfn.0 as usize]);
        banks[usize::from(!old)].store(OPEN, SeqCst);
        self.world.move_frame(gfn, !old);
        let _ = self.mmu.host_changed(gfn);
        banks[usize::from(old)].store(self.oracle.clock.tick(), SeqCst);
    }

    /// What can be checked when no vCPU runs.
    ///
    /// # Errors
    /// The rule that is broken, and how.
    pub fn check(&self) -> Result<(), (Rule, String)> {
        self.oracle.check_entries().map_err(|(gfn, slot, tampered)| {
            let what = format!("entry {slot} of frame {:#x} {tampered}", gfn.0);
            (Rule::I5, what)
        })?;
        self.mmu.check().map_err(|what| (Rule::S5, what))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_must_name_what_was_written_between_two_readings() {
        let (writes, clock) = (WriteTimes::new(), Clock::default());
        assert_eq!(writes.check(&clock, || None), None);
        assert_eq!(writes.check(&clock, || Some(vec![])), Some(Ok(())), "starts the log");
        writes.record(Gfn(7), clock.now(), &clock);
        assert_eq!(writes.check(&clock, || Some(vec![])), Some(Err(Gfn(7))));
        assert_eq!(writes.check(&clock, || Some(vec![])), Some(Ok(())), "too late now");
        let begin = clock.now();
        let during = writes.check(&clock, || {
            clock.tick();
            Some(vec![])
        });
        assert_eq!(during, Some(Ok(())));
        writes.record(Gfn(8), begin, &clock);
        assert_eq!(writes.check(&clock, || Some(vec![])), Some(Ok(())), "overlapped the reading");
        writes.record(Gfn(9), clock.now(), &clock);
        assert_eq!(writes.check(&clock, || Some(vec![Gfn(9)])), Some(Ok(())));
    }

    #[test]
    fn a_bank_is_dead_for_accesses_that_begin_later() {
        let moves = Moves::new();
        assert!(!moves.forbids(Gfn(3), true, 100));
        moves.dead_since[3][1].store(50, SeqCst);
        assert!(moves.forbids(Gfn(3), true, 51));
        assert!(!moves.forbids(Gfn(3), true, 50));
        assert!(!moves.forbids(Gfn(3), false, 51));
        assert!(!moves.forbids(Gfn(600), true, 51), "only small frames move");
    }
}
