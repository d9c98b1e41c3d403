//! Judges translations: what the guest's tables have allowed since a flush.
//!
//! A translation is legal if for each level there is a value of the entry, each valid at some
//! instant since the last flush that covers the address, such that a walk through them gives it.
//! The instants need not be the same: hardware caches each level for itself.

use crate::{
    api::{Access, ENTRIES, Gfn, Gpa, Gva, Kind, Mode},
    bits::{A, D, NX, P, U, W, frame, frames, is_leaf, is_reserved},
    guest::{SLOTS, SMALL},
    history::{Change, Clock, OPEN, REMEMBERED, Stored, Tampered, Telling, Time, Tracked, Version},
    world::World,
};
use arrayvec::ArrayVec;
use std::sync::{Arc, atomic::Ordering::Acquire};

/// Error-code bits of #PF.
pub(crate) mod pf {
    pub(crate) const PRESENT: u64 = 1 << 0;
    pub(crate) const WRITE: u64 = 1 << 1;
    pub(crate) const USER: u64 = 1 << 2;
    pub(crate) const RESERVED: u64 = 1 << 3;
    pub(crate) const FETCH: u64 = 1 << 4;
}

/// Paths a search follows before it gives up: far more than ever matter.
const PATIENCE: u32 = 20_000;

/// Position of each slot that is ever stored to; `u8::MAX` for the others.
const POSITION: [u8; ENTRIES] = {
    let mut positions = [u8::MAX; ENTRIES];
    let mut number = 0;
    while number < SLOTS.len() {
        positions[SLOTS[number]] = number as u8;
        number += 1;
    }
    positions
};

/// How a walk ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// At a page: the frame of the address in it.
    Page(Gfn),
    /// At an entry that is not present, or a table outside memory.
    NotPresent,
    /// At an entry with a reserved bit.
    Reserved,
}

/// A walk through the guest's tables, one version of an entry per level.
#[derive(Clone, Copy, Debug)]
pub struct Path {
    /// Where it ends.
    pub end: End,
    /// Level of the last entry.
    pub level: u8,
    /// U in every entry.
    pub user: bool,
    /// W in every entry.
    pub write: bool,
    /// NX in none.
    pub fetch: bool,
    /// A in every entry.
    pub accessed: bool,
    /// D in the last.
    pub dirty: bool,
    /// The earliest end of a version.
    pub until: Time,
    /// How that end was told, and the level of the entry.
    pub ended: (Telling, u8),
}

impl Path {
    const START: Self = Self {
        end: End::NotPresent,
        level: 4,
        user: true,
        write: true,
        fetch: true,
        accessed: true,
        dirty: false,
        until: OPEN,
        ended: (Telling::Direct, 0),
    };

    fn through(mut self, version: &Version, level: u8) -> Self {
        let value = version.value;
        self.level = level;
        self.user &= value & U != 0;
        self.write &= value & W != 0;
        self.fetch &= value & NX == 0;
        self.accessed &= value & A != 0;
        self.dirty = value & D != 0;
        if version.until < self.until {
            self.until = version.until;
            self.ended = (version.end, level);
        }
        self
    }

    /// True if it leads to a page that `access` may use.
    #[must_use]
    pub fn permits(&self, access: Access, smep: bool) -> bool {
        let user = access.mode == Mode::User;
        matches!(self.end, End::Page(_))
            && (self.user || !user)
            && match access.kind {
                Kind::Read => true,
                Kind::Write => self.write,
                Kind::Fetch => self.fetch && !(smep && !user && self.user),
            }
    }

    /// The error code with which `access` fails here, if it does.
    #[must_use]
    pub fn error(&self, access: Access, smep: bool) -> Option<u64> {
        let of_access = match access.kind {
            Kind::Read => 0,
            Kind::Write => pf::WRITE,
            Kind::Fetch => pf::FETCH,
        } | if access.mode == Mode::User { pf::USER } else { 0 };
        match self.end {
            End::NotPresent => Some(of_access),
            End::Reserved => Some(of_access | pf::PRESENT | pf::RESERVED),
            End::Page(_) if self.permits(access, smep) => None,
            End::Page(_) => Some(of_access | pf::PRESENT),
        }
    }
}

/// The interval that counts for an address. A flush of one address covers a whole large page, so
/// the beginning depends on the level of the leaf.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Beginning, for a leaf at level 1, 2 and 3.
    pub starts: [Time; 3],
    /// End.
    pub now: Time,
}

impl Window {
    /// From `start` to `now`, whatever the level.
    #[must_use]
    pub const fn new(start: Time, now: Time) -> Self {
        Self { starts: [start; 3], now }
    }
}

/// What a search for a path came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// There is one.
    Yes,
    /// There is none.
    No,
    /// None was found, but something was forgotten.
    Unknown,
}

/// The guest's tables and their past.
#[derive(Debug)]
pub struct Oracle {
    world: Arc<World>,
    words: Vec<Tracked>,
    /// The clock that everything is dated by.
    pub clock: Clock,
}

struct Search<'a, F> {
    gva: Gva,
    window: Window,
    wanted: &'a mut F,
    patience: u32,
    complete: bool,
}

impl Oracle {
    /// The tables as they are in `world` now.
    #[must_use]
    pub fn new(world: Arc<World>) -> Self {
        let value =
            |gfn, slot: usize| world.table(Gfn(gfn)).map_or(0, |table| table.0[slot].load(Acquire));
        let words =
            (0..SMALL).flat_map(|gfn| SLOTS.map(|slot| Tracked::new(value(gfn, slot)))).collect();
        Self { world, words, clock: Clock::default() }
    }

    fn tracked(&self, gfn: Gfn, slot: usize) -> Option<&Tracked> {
        let position = POSITION[slot];
        (gfn.0 < SMALL && position != u8::MAX)
            .then(|| &self.words[gfn.0 as usize * SLOTS.len() + usize::from(position)])
    }

    /// A store of the guest's to entry `slot` of `gfn`. `None` if that is never a table.
    ///
    /// # Errors
    /// [`Tampered`].
    pub fn store(
        &self,
        gfn: Gfn,
        slot: usize,
        change: Change,
        telling: impl FnOnce(u64) -> Telling,
    ) -> Result<Option<Stored>, Tampered> {
        let Some((tracked, table)) = self.tracked(gfn, slot).zip(self.world.table(gfn)) else {
            return Ok(None);
        };
        tracked.lock().store(&self.clock, &table.0[slot], change, telling).map(Some)
    }

    /// The note about the store that ended version `serial` of the entry at `at` is drained.
    pub fn close(&self, at: Gpa, serial: u64, time: Time) {
        if let Some(tracked) = self.tracked(at.gfn(), (at.page_offset() / 8) as usize) {
            tracked.lock().close(serial, time);
        }
    }

    /// Compares every entry with what the guest stored there.
    ///
    /// # Errors
    /// The first that the MMU has changed in a way it must not, and how.
    pub fn check_entries(&self) -> Result<(), (Gfn, usize, Tampered)> {
        for gfn in (0..SMALL).map(Gfn) {
            let Some(table) = self.world.table(gfn) else { continue };
            for slot in SLOTS {
                let Some(tracked) = self.tracked(gfn, slot) else { continue };
                tracked.lock().check(&table.0[slot]).map_err(|error| (gfn, slot, error))?;
            }
        }
        Ok(())
    }

    /// The walk through the tables as they are at this moment, more or less.
    #[must_use]
    pub fn walk(&self, root: Gfn, gva: Gva) -> Path {
        let (mut path, mut table) = (Path::START, root);
        for level in (1..=4).rev() {
            let Some(page) = self.world.table(table) else { break };
            let value = page.0[gva.index(level)].load(Acquire);
            path.level = level;
            if value & P == 0 {
                break;
            }
            if is_reserved(value, level) {
                path.end = End::Reserved;
                break;
            }
            let version = Version::constant(value);
            path = path.through(&version, level);
            if is_leaf(value, level) {
                path.end = End::Page(page_frame(value, level, gva));
                break;
            }
            table = frame(value);
        }
        path
    }

    /// Looks for a path that is `wanted` among those that count in `window`.
    pub fn search(
        &self,
        root: Gfn,
        gva: Gva,
        window: Window,
        mut wanted: impl FnMut(&Path) -> bool,
    ) -> Found {
        let wanted = &mut wanted;
        let mut search = Search { gva, window, wanted, patience: PATIENCE, complete: true };
        if self.follow(&mut search, root, 4, Path::START) {
            Found::Yes
        } else if search.complete && search.patience > 0 {
            Found::No
        } else {
            Found::Unknown
        }
    }

    fn follow<F: FnMut(&Path) -> bool>(
        &self,
        search: &mut Search<'_, F>,
        table: Gfn,
        level: u8,
        path: Path,
    ) -> bool {
        let Some(page) = self.world.table(table) else {
            return (search.wanted)(&Path { end: End::NotPresent, ..path });
        };
        let slot = search.gva.index(level);
        let word = &page.0[slot];
        let mut versions = ArrayVec::<Version, REMEMBERED>::new();
        match self.tracked(table, slot) {
            Some(tracked) => {
                let Window { starts, now } = search.window;
                search.complete &= tracked.lock().during(word, starts[0], now, &mut versions);
            }
            None => versions.push(Version::constant(word.load(Acquire))),
        }
        for version in &versions {
            search.patience = search.patience.saturating_sub(1);
            if search.patience == 0 {
                return false;
            }
            let value = version.value;
            let mut path = path.through(version, level);
            if value & P == 0 || is_reserved(value, level) {
                path.end = if value & P == 0 { End::NotPresent } else { End::Reserved };
            } else if is_leaf(value, level) {
                if path.until < search.window.starts[usize::from(level) - 1] {
                    continue;
                }
                path.end = End::Page(page_frame(value, level, search.gva));
            } else {
                if self.follow(search, frame(value), level - 1, path) {
                    return true;
                }
                continue;
            }
            if (search.wanted)(&path) {
                return true;
            }
        }
        false
    }

    /// The walk to `gva` in words: each entry, and what it was before.
    #[must_use]
    pub fn describe(&self, root: Gfn, gva: Gva) -> Vec<String> {
        let (mut lines, mut table) = (Vec::new(), root);
        for level in (1..=4).rev() {
            let Some(page) = self.world.table(table) else { break };
            let slot = gva.index(level);
            let value = page.0[slot].load(Acquire);
            let past: Vec<_> = self.tracked(table, slot).map_or_else(Vec::new, |tracked| {
                let history = tracked.lock();
                let mut past: Vec<_> = history.versions().rev().skip(1).take(4).map(past).collect();
                past.reverse();
                past
            });
            lines.push(format!(
                "level {level}, frame {:#x}, entry {slot}: {} {}",
                table.0,
                crate::step::entry(value),
                past.join(" ")
            ));
            if value & P == 0 || is_leaf(value, level) || is_reserved(value, level) {
                break;
            }
            table = frame(value);
        }
        lines
    }
}

fn past(version: &Version) -> String {
    let until = if version.until == OPEN { "…".into() } else { version.until.to_string() };
    format!("[{} at {} to {until}]", crate::step::entry(version.value), version.from)
}

fn page_frame(entry: u64, level: u8, gva: Gva) -> Gfn {
    let pages = frames(level);
    Gfn(frame(entry).0 & !(pages - 1) | gva.0 >> 12 & (pages - 1))
}
