//! The example of a [`ShadowMmu`]: slow, and so plain that it is right.
//!
//! One mutex guards everything. Each vCPU has tables of its own, which nobody else's hardware
//! walks. A fault walks the guest's tables and puts one translation in; every flush drops all that
//! the vCPU has. So a translation is never older than the last flush.

use crate::{
    api::{
        Access, Answer, Gfn, Gva, Hpa, Kind, Mode, NoTables, Outcome, Scope, Setup, ShadowMmu,
        Translations,
    },
    bits::{A, D, NX, P, U, W, frame, frames, is_leaf, is_reserved},
    oracle::pf,
    world::{Lose, World},
};
use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicU64,
            Ordering::{Acquire, Relaxed, SeqCst},
        },
    },
};

/// The tables of one vCPU.
#[derive(Debug, Default)]
struct Tables {
    /// Both roots: for the supervisor, for the user. They stay.
    roots: Option<[u32; 2]>,
    /// All tables below.
    below: Vec<u32>,
}

#[derive(Debug)]
struct State {
    vcpus: Vec<Tables>,
    /// Frames that may have been written since the log was last read.
    written: BTreeSet<u64>,
}

/// The MMU of a VM.
#[derive(Debug)]
pub struct Simple {
    world: Arc<World>,
    smep: bool,
    state: Mutex<State>,
}

/// What a vCPU keeps for itself.
#[derive(Debug)]
pub struct SimpleVcpu {
    index: usize,
    root: Gfn,
    hardware: [Hpa; 2],
}

/// A translation that the guest's tables give.
struct Page {
    gfn: Gfn,
    write: bool,
    fetch: bool,
}

impl Simple {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops all that vCPU `index`, which runs no guest, has mapped.
    fn drop_own(&self, state: &mut State, index: usize) {
        self.unlink(state, index);
        self.world.flush_hardware(index, Lose::All);
        self.release(state, index);
    }

    /// Drops all that any vCPU has mapped.
    fn drop_all(&self, state: &mut State) {
        for index in 0..state.vcpus.len() {
            self.unlink(state, index);
        }
        // Nobody walks the tables any more, or remembers what was in them.
        self.world.shoot_down();
        for index in 0..state.vcpus.len() {
            self.release(state, index);
        }
    }

    fn unlink(&self, state: &State, index: usize) {
        for root in state.vcpus[index].roots.into_iter().flatten() {
            for entry in &self.world.pool_table(root).0 {
                entry.store(0, SeqCst);
            }
        }
    }

    fn release(&self, state: &mut State, index: usize) {
        for id in state.vcpus[index].below.drain(..) {
            self.world.free_table(id);
        }
    }

    /// Walks the guest's tables, and sets A and D as the access would.
    fn walk(&self, root: Gfn, gva: Gva, access: Access) -> Result<Page, u64> {
        'again: loop {
            let (mut every, mut any, mut table) = (!0, 0, root);
            let mut walked: Vec<(&AtomicU64, u64)> = Vec::new();
            for level in (1..=4).rev() {
                let slot = &self.world.table(table).ok_or(0u64)?.0[gva.index(level)];
                let entry = slot.load(Acquire);
                if entry & P == 0 {
                    return Err(0);
                }
                if is_reserved(entry, level) {
                    return Err(pf::PRESENT | pf::RESERVED);
                }
                walked.push((slot, entry));
                (every, any) = (every & entry, any | entry);
                if !is_leaf(entry, level) {
                    table = frame(entry);
                    continue;
                }
                let user = every & U != 0;
                let smep = self.smep && access.mode == Mode::Supervisor && user;
                let fetch = any & NX == 0 && !smep;
                if access.mode == Mode::User && !user
                    || access.kind == Kind::Write && every & W == 0
                    || access.kind == Kind::Fetch && !fetch
                {
                    return Err(pf::PRESENT);
                }
                let dirty = if access.kind == Kind::Write { D } else { 0 };
                for (number, &(slot, entry)) in walked.iter().enumerate() {
                    let leaf = number + 1 == walked.len();
                    let marked = entry | A | if leaf { dirty } else { 0 };
                    if slot.compare_exchange(entry, marked, SeqCst, Relaxed).is_err() {
                        continue 'again;
                    }
                }
                let pages = frames(level);
                let gfn = Gfn(frame(entry).0 & !(pages - 1) | gva.0 >> 12 & (pages - 1));
                // Not writable before D is set: the first write faults and sets it.
                let write = every & W != 0 && (entry | dirty) & D != 0;
                return Ok(Page { gfn, write, fetch });
            }
        }
    }

    /// The entry of `root` that maps `gva`, on a way that is there afterwards.
    fn slot(
        &self,
        state: &mut State,
        vcpu: &SimpleVcpu,
        mode: Mode,
        gva: Gva,
    ) -> Result<&AtomicU64, NoTables> {
        let roots = state.vcpus[vcpu.index].roots.ok_or(NoTables)?;
        let mut id = roots[usize::from(mode == Mode::User)];
        for level in (2..=4).rev() {
            let slot = &self.world.pool_table(id).0[gva.index(level)];
            let link = slot.load(Acquire);
            if link & P != 0 {
                id = self.world.pool_id(Hpa(frame(link).0 << 12)).ok_or(NoTables)?;
                continue;
            }
            let next = self.world.take_table().ok_or(NoTables)?;
            state.vcpus[vcpu.index].below.push(next);
            slot.store(self.world.pool_hpa(next).0 | P | W | U | A, SeqCst);
            id = next;
        }
        Ok(&self.world.pool_table(id).0[gva.index(1)])
    }
}

impl ShadowMmu for Simple {
    type Vcpu = SimpleVcpu;

    fn create(world: Arc<World>, setup: &Setup) -> Self {
        let vcpus = (0..setup.vcpus).map(|_| Tables::default()).collect();
        let state = Mutex::new(State { vcpus, written: BTreeSet::new() });
        Self { world, smep: setup.smep, state }
    }

    fn vcpu(&self, index: usize) -> SimpleVcpu {
        SimpleVcpu { index, root: Gfn(0), hardware: [Hpa(0); 2] }
    }

    fn load_root(&self, vcpu: &mut SimpleVcpu, root: Gfn, _: Translations) -> Result<(), NoTables> {
        let mut state = self.lock();
        if state.vcpus[vcpu.index].roots.is_none() {
            let supervisor = self.world.take_table().ok_or(NoTables)?;
            let Some(user) = self.world.take_table() else {
                self.world.free_table(supervisor);
                return Err(NoTables);
            };
            state.vcpus[vcpu.index].roots = Some([supervisor, user]);
            vcpu.hardware = [supervisor, user].map(|id| self.world.pool_hpa(id));
        }
        self.drop_own(&mut state, vcpu.index);
        vcpu.root = root;
        Ok(())
    }

    fn root(&self, vcpu: &SimpleVcpu, mode: Mode) -> Hpa {
        vcpu.hardware[usize::from(mode == Mode::User)]
    }

    fn fault(&self, vcpu: &mut SimpleVcpu, gva: Gva, access: Access) -> Outcome {
        let mut state = self.lock();
        let page = match self.walk(vcpu.root, gva, access) {
            Ok(page) => page,
            Err(code) => return Outcome::Reflect(code | error_bits(access)),
        };
        let Some(hpa) = self.world.host_frame(page.gfn) else {
            return Outcome::Mmio(page.gfn.gpa().offset(gva.page_offset()));
        };
        let Ok(slot) = self.slot(&mut state, vcpu, access.mode, gva) else {
            return Outcome::NoTables;
        };
        let write = if page.write { W } else { 0 };
        let fetch = if page.fetch { 0 } else { NX };
        slot.store(hpa.0 | P | U | A | write | fetch, SeqCst);
        if page.write {
            state.written.insert(page.gfn.0);
        }
        // There may have been another entry.
        self.world.flush_hardware(vcpu.index, Lose::Page(vcpu.root, gva));
        Outcome::Mapped
    }

    fn flush(&self, vcpu: &mut SimpleVcpu, _: Scope) {
        self.drop_own(&mut self.lock(), vcpu.index);
    }

    fn flush_address(&self, vcpu: &mut SimpleVcpu, _: Gva) {
        self.drop_own(&mut self.lock(), vcpu.index);
    }

    fn make_room(&self, vcpu: &mut SimpleVcpu) {
        self.drop_own(&mut self.lock(), vcpu.index);
    }

    fn zap_frame(&self, _: Gfn) -> Answer {
        self.drop_all(&mut self.lock());
        Answer::Done
    }

    fn host_changed(&self, gfn: Gfn) -> Answer {
        self.zap_frame(gfn)
    }

    fn dirty_log(&self, _: &mut SimpleVcpu) -> Option<Vec<Gfn>> {
        let mut state = self.lock();
        // What is written from here on faults first.
        self.drop_all(&mut state);
        Some(std::mem::take(&mut state.written).into_iter().map(Gfn).collect())
    }
}

/// The bits of an error code that describe the access.
fn error_bits(access: Access) -> u64 {
    let kind = match access.kind {
        Kind::Read => 0,
        Kind::Write => pf::WRITE,
        Kind::Fetch => pf::FETCH,
    };
    kind | if access.mode == Mode::User { pf::USER } else { 0 }
}
