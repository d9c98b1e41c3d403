//! The hardware of a vCPU: a walk of the shadow tables, and caches that never evict.

use crate::{
    api::{Gva, Hpa, Kind, Mode},
    bits::{A, ADDRESS, D, NX, P, PS, U, W, frames},
    guest::{Addresses, ROOTS},
    violation::Rule,
    world::{Lose, POISON, World},
};
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

/// A translation as the hardware has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Host frame of the 4 KiB page.
    pub hpa: Hpa,
    /// Writes are allowed.
    pub write: bool,
    /// Fetches are allowed.
    pub fetch: bool,
    /// D is set in the shadow entry, as far as the hardware knows.
    pub dirty: bool,
    /// Level of the shadow leaf.
    pub level: u8,
}

impl Translation {
    const fn permits(&self, kind: Kind) -> bool {
        match kind {
            Kind::Read => true,
            Kind::Write => self.write,
            Kind::Fetch => self.fetch,
        }
    }
}

/// Where a translation came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The TLB.
    Tlb,
    /// The shadow tables, from a cached link to the leaf table on.
    Link,
    /// The shadow tables.
    Walk,
}

/// An entry that no right MMU lets the hardware see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// The rule.
    pub rule: Rule,
    /// What is wrong.
    pub what: String,
}

/// The tables so far: where the walk goes on, and what the entries above allow.
#[derive(Clone, Copy, Debug)]
struct Link {
    table: Hpa,
    write: bool,
    fetch: bool,
}

#[derive(Clone, Copy, Debug)]
struct Cached<T> {
    stamp: u64,
    value: T,
}

/// Cached things by root, mode and number; a stamp per root invalidates them all at once.
#[derive(Debug)]
struct Cache<T> {
    entries: Vec<Option<Cached<T>>>,
    per_mode: usize,
    stamps: [u64; ROOTS.len()],
}

impl<T: Copy> Cache<T> {
    fn new(per_mode: usize) -> Self {
        Self { entries: vec![None; 2 * per_mode * ROOTS.len()], per_mode, stamps: [0; ROOTS.len()] }
    }

    fn index(&self, root: usize, mode: Mode, number: usize) -> usize {
        (2 * root + usize::from(mode == Mode::User)) * self.per_mode + number
    }

    #[inline]
    fn get(&self, root: usize, mode: Mode, number: usize) -> Option<T> {
        let cached = self.entries[self.index(root, mode, number)]?;
        (cached.stamp == self.stamps[root]).then_some(cached.value)
    }

    fn insert(&mut self, root: usize, mode: Mode, number: usize, value: T) {
        let index = self.index(root, mode, number);
        self.entries[index] = Some(Cached { stamp: self.stamps[root], value });
    }

    fn remove(&mut self, root: usize, mode: Mode, number: usize) {
        let index = self.index(root, mode, number);
        self.entries[index] = None;
    }

    fn clear(&mut self, root: usize) {
        self.stamps[root] += 1;
    }
}

/// The translation caches of a vCPU.
#[derive(Debug)]
pub struct Cpu {
    tlb: Cache<Translation>,
    links: Cache<Link>,
    addresses: Addresses,
}

/// An access as the hardware sees it.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Number of the loaded root.
    pub root: usize,
    /// Where its tables start.
    pub table: Hpa,
    /// Who.
    pub mode: Mode,
    /// What.
    pub kind: Kind,
    /// Number of the address.
    pub address: usize,
}

const MODES: [Mode; 2] = [Mode::Supervisor, Mode::User];

impl Cpu {
    /// Empty caches.
    #[must_use]
    pub fn new(addresses: Addresses) -> Self {
        Self {
            tlb: Cache::new(addresses.count()),
            links: Cache::new(addresses.regions()),
            addresses,
        }
    }

    /// Loses what the MMU asks for.
    pub fn lose(&mut self, lose: Lose) {
        match lose {
            Lose::All => (0..ROOTS.len()).for_each(|root| self.lose_space(root)),
            Lose::Space(gfn) => {
                if let Some(root) = ROOTS.iter().position(|&other| other == gfn) {
                    self.lose_space(root);
                }
            }
            Lose::Page(gfn, gva) => {
                if let Some(root) = ROOTS.iter().position(|&other| other == gfn) {
                    self.lose_page(root, gva);
                }
            }
        }
    }

    fn lose_space(&mut self, root: usize) {
        self.tlb.clear(root);
        self.links.clear(root);
    }

    fn lose_page(&mut self, root: usize, gva: Gva) {
        self.links.clear(root);
        for address in 0..self.addresses.count() {
            let other = self.addresses.gva(address);
            for mode in MODES {
                let Some(cached) = self.tlb.get(root, mode, address) else { continue };
                let pages = frames(cached.level);
                if (other.0 ^ gva.0) >> 12 & !(pages - 1) == 0 {
                    self.tlb.remove(root, mode, address);
                }
            }
        }
    }

    /// Executes an access. `None` is a page fault.
    ///
    /// # Errors
    /// [`Broken`].
    #[inline]
    pub fn access(
        &mut self,
        world: &World,
        request: Request,
    ) -> Result<Option<(Translation, Source)>, Broken> {
        let Request { root, mode, kind, address, .. } = request;
        if let Some(cached) = self.tlb.get(root, mode, address) {
            if cached.permits(kind) && (cached.dirty || kind != Kind::Write) {
                return Ok(Some((cached, Source::Tlb)));
            }
            self.tlb.remove(root, mode, address);
        }
        let region = self.addresses.region(address);
        let gva = self.addresses.gva(address);
        if let Some(link) = self.links.get(root, mode, region) {
            if let Step::Page(found) = leaf(world, link, 1, gva, Some(kind))? {
                self.tlb.insert(root, mode, address, found);
                return Ok(Some((found, Source::Link)));
            }
            // A fault makes the hardware forget what led to it.
            self.links.remove(root, mode, region);
        }
        let (found, link) = walk(world, request.table, gva, Some(kind))?;
        let Some(found) = found else { return Ok(None) };
        if let Some(link) = link {
            self.links.insert(root, mode, region, link);
        }
        self.tlb.insert(root, mode, address, found);
        Ok(Some((found, Source::Walk)))
    }

    /// What an access would find in the TLB, in the table at the end of a cached link, and in the
    /// shadow tables. Nothing is changed.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn look(
        &self,
        world: &World,
        request: Request,
    ) -> Result<[Option<(Translation, Source)>; 3], Broken> {
        let Request { root, mode, address, table, .. } = request;
        let gva = self.addresses.gva(address);
        let cached = self.tlb.get(root, mode, address);
        let linked = match self.links.get(root, mode, self.addresses.region(address)) {
            Some(link) => leaf(world, link, 1, gva, None)?.page(),
            None => None,
        };
        let (walked, _) = walk(world, table, gva, None)?;
        Ok([
            cached.map(|found| (found, Source::Tlb)),
            linked.map(|found| (found, Source::Link)),
            walked.map(|found| (found, Source::Walk)),
        ])
    }
}

/// What one entry of a walk leads to.
enum Step {
    Nothing,
    Table(Link),
    Page(Translation),
}

impl Step {
    const fn page(self) -> Option<Translation> {
        match self {
            Self::Page(found) => Some(found),
            _ => None,
        }
    }
}

/// Walks the shadow tables from `root` on. For an access A and D are set as the hardware would.
fn walk(
    world: &World,
    root: Hpa,
    gva: Gva,
    access: Option<Kind>,
) -> Result<(Option<Translation>, Option<Link>), Broken> {
    let mut link = Link { table: root, write: true, fetch: true };
    for level in (1..=4).rev() {
        match leaf(world, link, level, gva, access)? {
            Step::Nothing => return Ok((None, None)),
            Step::Page(found) => return Ok((Some(found), (level == 1).then_some(link))),
            Step::Table(next) => link = next,
        }
    }
    Ok((None, None))
}

/// Reads the entry for `gva` in the table that `link` leads to, at `level`.
fn leaf(
    world: &World,
    link: Link,
    level: u8,
    gva: Gva,
    access: Option<Kind>,
) -> Result<Step, Broken> {
    let broken = |rule, what: String| {
        Err(Broken { rule, what: format!("walking {:#x} at level {level}, {what}", gva.0) })
    };
    let Some(id) = world.pool_id(link.table) else {
        return broken(Rule::S4, format!("{:#x} is no shadow table", link.table.0));
    };
    let slot = &world.pool_table(id).0[gva.index(level)];
    loop {
        let entry = slot.load(Acquire);
        if entry == POISON {
            return broken(Rule::I4, format!("table frame {id} is free"));
        }
        if entry & (P | U) != P | U {
            return Ok(Step::Nothing);
        }
        let write = link.write && entry & W != 0;
        let fetch = link.fetch && entry & NX == 0;
        let hpa = Hpa(entry & ADDRESS);
        if level == 4 || level > 1 && entry & PS == 0 {
            return Ok(Step::Table(Link { table: hpa, write, fetch }));
        }
        let pages = frames(level);
        let frame = hpa.0 >> 12 & !(pages - 1) | gva.0 >> 12 & (pages - 1);
        let hpa = Hpa(frame << 12);
        if world.guest_frame(hpa).is_none() {
            return broken(Rule::S4, format!("{:#x} is not this VM's memory", hpa.0));
        }
        let mut found = Translation { hpa, write, fetch, dirty: entry & D != 0, level };
        let Some(kind) = access else { return Ok(Step::Page(found)) };
        if !found.permits(kind) {
            return Ok(Step::Nothing);
        }
        found.dirty |= kind == Kind::Write;
        let marked = entry | A | if kind == Kind::Write { D } else { 0 };
        if marked == entry || slot.compare_exchange(entry, marked, AcqRel, Relaxed).is_ok() {
            return Ok(Step::Page(found));
        }
    }
}
