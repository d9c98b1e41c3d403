//! The cache of one tag: translations and links that stay until they are flushed.
//! May: alloc. Context: run-loop.

use alloc::{collections::BTreeMap, vec::Vec};
use core::ops::Bound::{Excluded, Unbounded};
use pv_abi::addr::Hpa;
use shadow_mmu::{
    page::Key,
    pte::{ADDRESS, D},
};

/// Counts what happens: what was cached later has the larger number.
pub type Time = u64;

/// A page number: address bits 63 to 12.
pub type Page = u64;

/// A cached translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// The shadow entry, with W and NX as all levels have them.
    pub entry: u64,
    /// Its level.
    pub level: u8,
    /// The level of the guest's page that it is, or is a part of.
    pub guest_level: u8,
    /// When it was cached.
    pub time: Time,
}

/// A cached link to a leaf table: what lets the hardware leave out the upper levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The table.
    pub table: Hpa,
    /// What it stood for when it was cached.
    pub key: Key,
    /// W and NX as the upper levels have them.
    pub limits: u64,
    /// When it was cached.
    pub time: Time,
}

/// What one tag has cached, and which pages it has had cached: the guest uses them, so it may cache
/// them again at any time.
#[derive(Debug, Default)]
pub struct Cache {
    pages: BTreeMap<Page, Option<Leaf>>,
    links: BTreeMap<Page, Link>,
    /// What was cached up to then is gone.
    cleared: Time,
    /// Translations that are not.
    live: u64,
    cursor: Page,
}

/// The first page of the page at `level` that holds `page`.
const fn first(page: Page, level: u8) -> Page {
    page & !((1 << (9 * (level as u32 - 1))) - 1)
}

impl Cache {
    /// Translations that are cached.
    pub const fn live(&self) -> u64 {
        self.live
    }

    /// Pages that are remembered, cached or not.
    pub fn len(&self) -> usize {
        self.pages.len()
    }

    /// The translation of `page`, and the page it starts with.
    pub fn leaf(&self, page: Page) -> Option<(Page, Leaf)> {
        [1, 2, 3].into_iter().find_map(|level| {
            let start = first(page, level);
            let leaf = (*self.pages.get(&start)?).filter(|leaf| leaf.time > self.cleared)?;
            (leaf.level >= level).then_some((start, leaf))
        })
    }

    /// The link on the way to `page`.
    pub fn link(&self, page: Page) -> Option<Link> {
        self.links.get(&(page >> 9)).copied().filter(|link| link.time > self.cleared)
    }

    /// Every link.
    pub fn links(&self) -> impl Iterator<Item = (Page, Link)> {
        let live = self.links.iter().filter(|(_, link)| link.time > self.cleared);
        live.map(|(&at, &link)| (at << 9, link))
    }

    /// Every translation.
    pub fn leaves(&self) -> impl Iterator<Item = (Page, Leaf)> {
        let cached = self.pages.iter().filter_map(|(&page, leaf)| Some((page, (*leaf)?)));
        cached.filter(|(_, leaf)| leaf.time > self.cleared)
    }

    /// A translation that is as old as `time`.
    pub fn older_than(&self, time: Time) -> Option<(Page, Leaf)> {
        // The usual case at no cost: all that is left is newer.
        if self.cleared >= time || self.live == 0 {
            return None;
        }
        self.leaves().find(|(_, leaf)| leaf.time <= time)
    }

    /// Caches `leaf` for the page of its size that holds `page`.
    pub fn insert(&mut self, page: Page, leaf: Leaf) {
        let cleared = self.cleared;
        let before = self.pages.insert(first(page, leaf.level), Some(leaf)).flatten();
        self.live += u64::from(before.is_none_or(|before| before.time <= cleared));
    }

    /// Caches `link` on the way to `page`.
    pub fn insert_link(&mut self, page: Page, link: Link) {
        self.links.insert(page >> 9, link);
    }

    /// The guest does not use `page` any more, for all that is known.
    pub fn forget(&mut self, page: Page) {
        self.drop_page(page);
        self.pages.remove(&page);
    }

    /// The hardware has noted in the cached translation that `page` was written.
    pub fn set_dirty(&mut self, page: Page) {
        if let Some(Some(leaf)) = self.pages.get_mut(&page) {
            leaf.entry |= D;
        }
    }

    /// Drops everything.
    pub fn clear(&mut self, now: Time) -> u64 {
        self.cleared = now;
        core::mem::take(&mut self.live)
    }

    /// Drops the translation of `page` and the link on the way to it; returns how many translations.
    pub fn drop_page(&mut self, page: Page) -> u64 {
        self.links.remove(&(page >> 9));
        let Some((start, _)) = self.leaf(page) else { return 0 };
        self.pages.insert(start, None);
        self.live -= 1;
        1
    }

    /// The next `count` pages in turn.
    pub fn next(&mut self, count: usize, out: &mut Vec<Page>) {
        let after = self.pages.range((Excluded(self.cursor), Unbounded)).map(|(&page, _)| page);
        let before = out.len();
        out.extend(after.take(count));
        if out.len() - before < count {
            self.cursor = 0;
            let rest = count - (out.len() - before);
            out.extend(self.pages.keys().take(rest.min(self.pages.len())));
        }
        self.cursor = out.last().copied().unwrap_or(0);
    }
}

impl Leaf {
    /// The frame that `page` lies in, if the translation starts with page `start`.
    pub const fn frame(&self, start: Page, page: Page) -> Hpa {
        Hpa(self.entry & ADDRESS).offset((page - start) << 12)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pv_abi::addr::Gfn;
    use shadow_mmu::{
        page::Role,
        pte::{P, PS},
    };

    fn leaf(entry: u64, level: u8, time: Time) -> Leaf {
        Leaf { entry, level, guest_level: level, time }
    }

    #[test]
    fn a_translation_stays_until_it_is_dropped() {
        let mut cache = Cache::default();
        cache.insert(5, leaf(0x1000 | P, 1, 1));
        assert_eq!(cache.leaf(5), Some((5, leaf(0x1000 | P, 1, 1))));
        assert_eq!((cache.leaf(4), cache.live()), (None, 1));
        assert_eq!(cache.older_than(0), None);
        assert!(cache.older_than(1).is_some());
        assert_eq!(cache.drop_page(5), 1);
        assert_eq!((cache.leaf(5), cache.live(), cache.drop_page(5)), (None, 0, 0));
        cache.insert(5, leaf(0x1000 | P, 1, 2));
        cache.insert(6, leaf(0x2000 | P, 1, 2));
        assert_eq!((cache.clear(3), cache.live(), cache.leaves().count()), (2, 0, 0));
        assert_eq!(cache.len(), 2, "the pages are remembered");
        cache.insert(5, leaf(0x1000 | P, 1, 4));
        assert_eq!((cache.live(), cache.older_than(3)), (1, None));
        cache.set_dirty(5);
        assert_eq!(cache.leaf(5).unwrap().1.entry, 0x1000 | P | D);
        cache.forget(5);
        assert_eq!((cache.live(), cache.len()), (0, 1));
    }

    #[test]
    fn a_large_translation_serves_all_its_pages() {
        let mut cache = Cache::default();
        cache.insert(512 + 7, leaf(0x40_0000 | PS | P, 2, 1));
        let (start, found) = cache.leaf(1023).unwrap();
        assert_eq!((start, found.frame(start, 1023)), (512, Hpa(0x5f_f000)));
        assert_eq!(cache.leaf(1024), None);
        assert_eq!(cache.drop_page(600), 1);
        assert_eq!(cache.leaf(512), None);
    }

    #[test]
    fn a_link_goes_with_the_addresses_behind_it() {
        let key = Key::new(Gfn(1), Role::at(1, Role::empty()));
        let link = Link { table: Hpa(0x1000), key, limits: 0, time: 1 };
        let mut cache = Cache::default();
        cache.insert_link(3, link);
        assert_eq!((cache.link(511), cache.link(512)), (Some(link), None));
        assert_eq!(cache.links().collect::<Vec<_>>(), [(0, link)]);
        cache.drop_page(100);
        assert_eq!(cache.link(3), None);
        cache.insert_link(3, link);
        cache.clear(1);
        assert_eq!(cache.link(3), None);
    }

    #[test]
    fn pages_come_in_turn() {
        let mut cache = Cache::default();
        for page in [10, 20, 30] {
            cache.insert(page, leaf(P, 1, 1));
        }
        let mut take = |count| {
            let mut out = Vec::new();
            cache.next(count, &mut out);
            out
        };
        assert_eq!((take(2), take(2)), (alloc::vec![10, 20], alloc::vec![30, 10]));
        assert_eq!(take(1), [20]);
        assert_eq!(take(9), [30, 10, 20, 30], "no more than once round");
    }
}
