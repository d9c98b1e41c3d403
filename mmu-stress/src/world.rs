//! The machine around an MMU: guest memory, host frames, the pool of table frames, and the way to
//! every vCPU's translation caches.

use crate::{
    api::{ENTRIES, Gfn, Gva, Hpa, Table},
    bits::{P, U},
    guest::{FRAMES, SMALL},
    jitter,
};
use std::sync::{
    Mutex, PoisonError,
    atomic::{
        AtomicBool, AtomicU64,
        Ordering::{Acquire, Relaxed, Release, SeqCst},
    },
};

/// Host frames of one VM: guest memory twice (a frame has two places it can be), then the tables.
const VM_STRIDE: u64 = 1 << 20;
const BANK: u64 = 1 << 18;
const POOL: u64 = 1 << 19;
/// Host frame of VM 0's memory: 2 MiB aligned.
const HOST: u64 = 1 << 21;
/// Entry that freed tables are filled with.
pub(crate) const POISON: u64 = 0x000f_dead_beef_f000 | P | U;

/// What the calling vCPU's translation caches are to lose before the guest runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lose {
    /// Everything.
    All,
    /// Everything tagged with this guest root.
    Space(Gfn),
    /// The page of this address, tagged with this guest root, and the links of that root.
    Page(Gfn, Gva),
}

/// Whether a shootdown waits until the vCPUs have honoured it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// Each vCPU is a thread.
    ForVcpus,
    /// All are one thread: none executes an instruction before it has honoured what came before.
    ForNobody,
}

/// The place where a vCPU and those who interrupt it meet.
#[derive(Debug, Default)]
struct Seat {
    in_guest: AtomicBool,
    /// Shootdowns that the vCPU has honoured.
    seen: AtomicU64,
    lose: Mutex<Vec<Lose>>,
}

/// A VM's machine. Everything in it may be used by several threads at once.
#[derive(Debug)]
pub struct World {
    vm: u64,
    small: Vec<Table>,
    fixed: Vec<Table>,
    /// Stands for every frame that is never written.
    zero: Table,
    pool: Vec<Table>,
    pool_free: Mutex<Vec<u32>>,
    /// Which of its two host frames each small frame is in.
    banks: Vec<AtomicBool>,
    shown: Vec<AtomicBool>,
    seats: Vec<Seat>,
    shootdowns: AtomicU64,
    over: AtomicBool,
    waiting: Waiting,
}

fn table(entry: u64) -> Table {
    Table([const { AtomicU64::new(0) }; ENTRIES].map(|_: AtomicU64| AtomicU64::new(entry)))
}

fn tables(count: u64) -> Vec<Table> {
    (0..count).map(|_| table(0)).collect()
}

impl World {
    /// Memory for VM number `vm` with `pool` table frames and `vcpus` vCPUs.
    pub(crate) fn new(vm: usize, pool: u32, vcpus: usize, waiting: Waiting) -> Self {
        Self {
            vm: vm as u64,
            small: tables(SMALL),
            fixed: tables(FRAMES % 512),
            zero: table(0),
            pool: tables(pool.into()),
            pool_free: Mutex::new((0..pool).rev().collect()),
            banks: (0..SMALL).map(|_| AtomicBool::new(false)).collect(),
            shown: (0..FRAMES).map(|_| AtomicBool::new(false)).collect(),
            seats: (0..vcpus).map(|_| Seat::default()).collect(),
            shootdowns: AtomicU64::new(0),
            over: AtomicBool::new(false),
            waiting,
        }
    }

    /// Guest frames: there is no memory behind higher numbers.
    #[must_use]
    pub const fn frames(&self) -> u64 {
        FRAMES
    }

    /// The page in `gfn`, seen as a page table; `None` outside memory.
    #[inline]
    #[must_use]
    pub fn table(&self, gfn: Gfn) -> Option<&Table> {
        jitter::pause();
        let first_fixed = FRAMES / 512 * 512;
        match gfn.0 {
            small if small < SMALL => Some(&self.small[small as usize]),
            fixed if (first_fixed..FRAMES).contains(&fixed) => {
                Some(&self.fixed[(fixed - first_fixed) as usize])
            }
            data if data < FRAMES => Some(&self.zero),
            _ => None,
        }
    }

    fn base(&self) -> u64 {
        HOST + self.vm * VM_STRIDE
    }

    /// The host frame behind a guest frame; `None` outside memory. Changes when the tool says so
    /// ([`crate::ShadowMmu::host_changed`]).
    #[inline]
    #[must_use]
    pub fn host_frame(&self, gfn: Gfn) -> Option<Hpa> {
        if gfn.0 >= FRAMES {
            return None;
        }
        let bank = u64::from(self.bank(gfn)) * BANK;
        Some(Hpa((self.base() + bank + gfn.0) << 12))
    }

    /// The host address of all 512 frames of the 2 MiB block that `gfn` is the first of, if they
    /// are consecutive.
    #[must_use]
    pub fn host_block(&self, gfn: Gfn) -> Option<Hpa> {
        let whole = gfn.0.is_multiple_of(512) && gfn.0 + 512 <= FRAMES;
        let moved = gfn.0 < SMALL && self.banks.iter().any(|bank| bank.load(Acquire));
        (whole && !moved).then(|| Hpa((self.base() + gfn.0) << 12))
    }

    /// The guest frame that has or had `hpa` behind it; `None` if `hpa` is not this VM's memory.
    #[inline]
    #[must_use]
    pub fn guest_frame(&self, hpa: Hpa) -> Option<Gfn> {
        let offset = (hpa.0 >> 12).checked_sub(self.base())?;
        let gfn = offset % BANK;
        (offset < 2 * BANK && gfn < FRAMES).then_some(Gfn(gfn))
    }

    /// The guest is shown whether `gfn` is shadowed as a table (notes). `true` comes before the
    /// first entry of the frame is read.
    pub fn show_table(&self, gfn: Gfn, shadowed: bool) {
        if let Some(shown) = self.shown.get(gfn.0 as usize) {
            shown.store(shadowed, SeqCst);
        }
    }

    pub(crate) fn is_shown(&self, gfn: Gfn) -> bool {
        self.shown[gfn.0 as usize].load(SeqCst)
    }

    /// Frames for shadow tables.
    #[must_use]
    pub fn pool_size(&self) -> u32 {
        self.pool.len() as u32
    }

    /// Table frame `id`.
    #[inline]
    #[must_use]
    pub fn pool_table(&self, id: u32) -> &Table {
        jitter::pause();
        &self.pool[id as usize]
    }

    /// Where it lies.
    #[inline]
    #[must_use]
    pub fn pool_hpa(&self, id: u32) -> Hpa {
        Hpa((self.base() + POOL + u64::from(id)) << 12)
    }

    /// The inverse of [`Self::pool_hpa`]; `None` for what is no table frame.
    #[inline]
    #[must_use]
    pub fn pool_id(&self, hpa: Hpa) -> Option<u32> {
        let id = (hpa.0 >> 12).checked_sub(self.base() + POOL)?;
        (id < self.pool.len() as u64).then_some(id as u32)
    }

    /// Takes a table frame, all zero. An MMU may use this and [`Self::free_table`] or keep a list
    /// of its own; with these two, a walk through a freed table is noticed.
    #[must_use]
    pub fn take_table(&self) -> Option<u32> {
        let id = self.pool_free.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
        for entry in &self.pool[id as usize].0 {
            entry.store(0, Relaxed);
        }
        Some(id)
    }

    /// Gives a table frame back. It is poisoned until it is taken again.
    pub fn free_table(&self, id: u32) {
        for entry in &self.pool[id as usize].0 {
            entry.store(POISON, Relaxed);
        }
        self.pool_free.lock().unwrap_or_else(PoisonError::into_inner).insert(0, id);
    }

    /// The caches of vCPU `index`, which makes this call, lose something before it runs on.
    pub fn flush_hardware(&self, index: usize, lose: Lose) {
        self.seats[index].lose.lock().unwrap_or_else(PoisonError::into_inner).push(lose);
    }

    /// When this returns, no vCPU uses a translation or a table that its caches held before. The
    /// caller runs no guest meanwhile. It may hold locks that faults take.
    pub fn shoot_down(&self) {
        let number = self.shootdowns.fetch_add(1, SeqCst) + 1;
        if self.waiting == Waiting::ForNobody {
            return;
        }
        for seat in &self.seats {
            while seat.in_guest.load(SeqCst)
                && seat.seen.load(Acquire) < number
                && !self.over.load(Relaxed)
            {
                std::thread::yield_now();
            }
        }
    }

    /// vCPU `index` runs the guest from here on. Calls `lose` with what its caches lose.
    pub(crate) fn enter(&self, index: usize, lose: impl FnMut(Lose)) {
        self.seats[index].in_guest.store(true, SeqCst);
        self.honour(index, lose);
    }

    /// Between two instructions of the guest: true if a shootdown waits for this vCPU.
    #[inline]
    pub(crate) fn is_interrupted(&self, index: usize) -> bool {
        self.shootdowns.load(SeqCst) != self.seats[index].seen.load(Relaxed)
    }

    pub(crate) fn honour(&self, index: usize, mut lose: impl FnMut(Lose)) {
        let seat = &self.seats[index];
        for own in seat.lose.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            lose(own);
        }
        let number = self.shootdowns.load(SeqCst);
        if number != seat.seen.load(Relaxed) {
            lose(Lose::All);
            seat.seen.store(number, Release);
        }
    }

    pub(crate) fn exit(&self, index: usize) {
        self.seats[index].in_guest.store(false, SeqCst);
    }

    /// Nobody waits for anybody any more.
    pub(crate) fn end(&self) {
        self.over.store(true, SeqCst);
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Relaxed)
    }

    pub(crate) fn waiting(&self) -> Waiting {
        self.waiting
    }

    pub(crate) fn bank(&self, gfn: Gfn) -> bool {
        self.banks.get(gfn.0 as usize).is_some_and(|bank| bank.load(Acquire))
    }

    /// Which bank `hpa`, an address of this VM's memory, is in.
    pub(crate) fn bank_of(&self, hpa: Hpa) -> bool {
        (hpa.0 >> 12) - self.base() >= BANK
    }

    pub(crate) fn move_frame(&self, gfn: Gfn, bank: bool) {
        self.banks[gfn.0 as usize].store(bank, SeqCst);
    }

    #[cfg(test)]
    pub(crate) fn forget_flushes(&self, index: usize) {
        self.seats[index].lose.lock().unwrap().clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_frames_belong_to_one_vm() {
        let [one, two] = [0, 1].map(|vm| World::new(vm, 4, 1, Waiting::ForVcpus));
        let hpa = one.host_frame(Gfn(7)).unwrap();
        assert_eq!(one.guest_frame(hpa), Some(Gfn(7)));
        assert_eq!(two.guest_frame(hpa), None);
        assert_eq!(one.guest_frame(one.pool_hpa(0)), None);
        assert_eq!(one.pool_id(one.pool_hpa(3)), Some(3));
        assert_eq!(one.pool_id(hpa), None);
        assert_eq!(one.host_frame(Gfn(FRAMES)), None);
    }

    #[test]
    fn a_moved_frame_has_another_host_frame_and_no_block() {
        let world = World::new(0, 4, 1, Waiting::ForVcpus);
        let old = world.host_frame(Gfn(7)).unwrap();
        assert_eq!(world.host_block(Gfn(0)), world.host_frame(Gfn(0)));
        world.move_frame(Gfn(7), true);
        assert_ne!(world.host_frame(Gfn(7)), Some(old));
        assert_eq!(world.guest_frame(old), Some(Gfn(7)));
        assert_eq!(world.host_block(Gfn(0)), None);
        assert!(world.host_block(Gfn(512)).is_some());
        assert_eq!(world.host_block(Gfn(1536)), None, "the last block is not whole");
    }

    #[test]
    fn a_freed_table_is_poison_until_it_is_taken() {
        let world = World::new(0, 1, 1, Waiting::ForVcpus);
        let id = world.take_table().unwrap();
        assert_eq!(world.take_table(), None);
        world.free_table(id);
        assert_eq!(world.pool_table(id).0[5].load(Relaxed), POISON);
        assert_eq!(world.take_table(), Some(id));
        assert_eq!(world.pool_table(id).0[5].load(Relaxed), 0);
    }

    #[test]
    fn a_shootdown_reaches_who_enters_later() {
        let world = World::new(0, 1, 1, Waiting::ForVcpus);
        world.shoot_down();
        let mut lost = Vec::new();
        world.flush_hardware(0, Lose::Space(Gfn(1)));
        world.enter(0, |lose| lost.push(lose));
        assert_eq!(lost, [Lose::Space(Gfn(1)), Lose::All]);
        assert!(!world.is_interrupted(0));
    }
}
