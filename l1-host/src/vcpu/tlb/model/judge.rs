//! Judges what is cached as the guest is about to be entered.
//! May: guest-memory. Context: run-loop. Input: guest-controlled.
//!
//! | when | what must hold |
//! |---|---|
//! | always | a tag holds translations of its own address space only |
//! | | nothing is cached that is older than a flush which covers it (F3) |
//! | | the PVCS page is where L1 has put it, and a write through the VM window sets D |
//! | after a flush | what can be cached now is what the guest's tables allow (F1, F2, F6) |
//! | when the MMU has done something | cached links lead to live tables (I4); writes to tables, or that the dirty log is to tell of, cannot go unnoticed |

use super::{
    cache::{Leaf, Page},
    fill::View,
    tags::{Tag, own_pages},
    tlb::Tlb,
    walk,
};
use crate::{vcpu::tlb::Request, vm::Vm};
use alloc::{format, string::String, vec::Vec};
use core::fmt;
use pv_abi::addr::{Gfn, Hpa};
use shadow_mmu::{
    GuestMemory, VcpuMmu,
    inspect::Watch,
    pte::{ADDRESS, D, NX, P, U, W},
};

/// Neighbours that a fault may have mapped, a power of two.
const AROUND: u64 = 16;
/// Pages of each tag that are looked at in turn: at each entry, after a load with flush, after a
/// full flush.
const TURN: usize = 16;
const AFTER_LOAD: usize = 64;
const AFTER_FLUSH: usize = 512;
/// Entries after which the tables are inspected in any case.
const OFTEN: u64 = 256;

/// A rule of `docs/shadow-mmu.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    F1,
    F2,
    F3,
    F6,
    I4,
    /// A hot table is watched by its D bits, a protected one is mapped read-only.
    Hot,
    /// While the dirty log is on, a frame is writable only once it has been told of.
    Log,
    /// A tag belongs to one address space.
    Tag,
    /// A change of L1's own pages is followed by a flush.
    Window,
}

/// A translation that should not be cached.
#[derive(Clone, Copy, Debug)]
pub struct Broken {
    pub rule: Rule,
    /// What is wrong with it.
    pub what: &'static str,
    /// The page it is for.
    pub page: Page,
    pub view: View,
    pub cached: Option<Leaf>,
    /// The table that a cached link leads to.
    pub link: Option<Hpa>,
}

impl Broken {
    /// One line for the user.
    pub fn describe(&self, vm: &Vm, root: Gfn) -> String {
        let mode = if self.view.user { "user" } else { "supervisor" };
        let shadow = walk::shadow(self.view.root, 4, walk::UNLIMITED, self.page, P);
        let guest = walk::guest(vm.env(), vm.mmu.paging(), root, self.page);
        let cached = self.cached.map(|leaf| (leaf.entry, leaf.level));
        format!(
            "{}: {:#x} under root {root:?} ({mode}): what is cached {}: {}{}, shadow {}, guest {}",
            self.rule,
            self.page << 12,
            self.what,
            Entry(cached),
            self.link.map_or(String::new(), |table| format!(" by the table at {table:?}")),
            Entry(shadow.map(|shadow| (shadow.entry, shadow.level))),
            Entry(guest.map(|guest| (guest.leaf.0, guest.level))),
        )
    }
}

/// An entry and its level, if there is one.
struct Entry(Option<(u64, u8)>);

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some((entry, level)) => write!(f, "entry {entry:#x} at level {level}"),
            None => write!(f, "no entry"),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F1 => "F1 (a load of CR3 syncs)",
            Self::F2 => "F2 (a full flush syncs)",
            Self::F3 => "F3 (a flush reaches the hardware)",
            Self::F6 => "F6 (the flush of an address syncs it)",
            Self::I4 => "I4 (a table is flushed before it is used again)",
            Self::Hot => "hot tables (no write to a table goes unnoticed)",
            Self::Log => "log (no write goes unnoticed by the dirty log)",
            Self::Tag => "tags (a tag serves one address space)",
            Self::Window => "window (a flush follows a change of L1's pages)",
        })
    }
}

impl Tlb {
    pub(super) fn judge_all(&mut self, vm: &Vm, mmu: &VcpuMmu) -> Result<(), Broken> {
        self.entries += 1;
        let views = self.views(vm, mmu);
        for view in views {
            self.judge_owner(view)?;
            self.judge_age(vm, view)?;
            self.judge_own(view, mmu.index)?;
            self.counts.kept += self.caches.get_mut().cache(view.tag).live();
        }
        for view in views {
            self.fill_touched(vm, view)?;
            self.fill_tables(vm, view)?;
            self.judge_requests(vm, view)?;
            let mut pages = Vec::new();
            self.caches.get_mut().cache(view.tag).next(TURN, &mut pages);
            for page in pages {
                self.fill(vm, view, page)?;
            }
        }
        let stats = &mmu.stats;
        let done = [
            vm.remotes()[mmu.index].flushes(),
            stats.links,
            stats.protected,
            stats.unprotected,
            stats.synced,
            stats.roots,
        ];
        if done != self.inspected || self.entries.is_multiple_of(OFTEN) {
            self.inspected = done;
            for view in views {
                self.inspect(vm, view)?;
            }
        }
        Ok(())
    }

    /// A tag that was another address space's is empty.
    fn judge_owner(&mut self, view: View) -> Result<(), Broken> {
        let tag = self.caches.get_mut().tag(view.tag);
        if tag.owner.replace(self.root) != Some(self.root)
            && let Some((page, leaf)) = tag.cache.leaves().next()
        {
            let what = "is another address space's";
            return Err(Broken {
                rule: Rule::Tag,
                what,
                page,
                view,
                cached: Some(leaf),
                link: None,
            });
        }
        Ok(())
    }

    /// Nothing is older than a flush that covers it.
    fn judge_age(&mut self, vm: &Vm, view: View) -> Result<(), Broken> {
        let broken = |(page, leaf), what| {
            Err(Broken { rule: Rule::F3, what, page, view, cached: Some(leaf), link: None })
        };
        let cache = self.caches.get_mut().cache(view.tag);
        if let Some(old) = cache.older_than(self.all_flushed) {
            return broken(old, "is older than a flush of everything");
        }
        if let Some(old) = cache.older_than(self.flushed[usize::from(view.tag)]) {
            return broken(old, "is older than a flush of the address space");
        }
        let judged = &mut self.judged[usize::from(view.tag)];
        let new = self.addresses.iter().rev().take_while(|(time, _)| time > judged);
        for &(time, page) in new {
            if let Some(old) = cache.leaf(page).filter(|(_, leaf)| leaf.time <= time) {
                return broken(old, "is older than a flush of its address");
            }
            if !self.large {
                continue;
            }
            // What was part of the same large page is covered too. It may stay if it is still true.
            let covered = |(start, leaf): &(Page, Leaf)| {
                let above = 9 * (u32::from(leaf.guest_level) - 1);
                leaf.time <= time && leaf.guest_level > 1 && start >> above == page >> above
            };
            let stale = |(start, leaf): &(Page, Leaf)| {
                walk::forbids(vm, self.root, *start, leaf, view.user).is_some()
            };
            if let Some(old) = cache.leaves().filter(covered).find(stale) {
                return broken(old, "is older than a flush of its large page");
            }
        }
        *judged = self.addresses.back().map_or(0, |&(time, _)| time).max(*judged);
        Ok(())
    }

    /// The hardware has cached what was mapped for the guest.
    fn fill_touched(&mut self, vm: &Vm, view: View) -> Result<(), Broken> {
        for page in self.touched.clone() {
            let first = page & !(AROUND - 1);
            for page in first..first + AROUND {
                self.fill(vm, view, page)?;
            }
        }
        Ok(())
    }

    /// What the flushes that were just served cover is true now.
    fn judge_requests(&mut self, vm: &Vm, view: View) -> Result<(), Broken> {
        for (_, request) in self.requests.clone() {
            let mut pages: Vec<Page> = self.recent.iter().copied().collect();
            let cache = self.caches.get_mut().cache(view.tag);
            let rule = match request {
                Request::Address(gva) => {
                    pages = alloc::vec![gva.0 >> 12];
                    Rule::F6
                }
                Request::Load => {
                    cache.next(AFTER_LOAD, &mut pages);
                    Rule::F1
                }
                Request::Current | Request::All => {
                    cache.next(AFTER_FLUSH, &mut pages);
                    Rule::F2
                }
            };
            for page in pages {
                self.compare(vm, view, page, rule)?;
            }
        }
        Ok(())
    }

    /// What the hardware can cache for `page` is what the guest's tables allow.
    fn compare(&mut self, vm: &Vm, view: View, page: Page, rule: Rule) -> Result<(), Broken> {
        let Some((page, leaf)) = self.fill(vm, view, page)? else { return Ok(()) };
        self.counts.compared += 1;
        let Some(what) = walk::forbids(vm, self.root, page, &leaf, view.user) else {
            return Ok(());
        };
        // Do the shadow tables say the same, or is it in the hardware only?
        let shadow = walk::shadow(view.root, 4, walk::UNLIMITED, page, P | U);
        let same = ADDRESS | W | NX;
        let stale = shadow.is_some_and(|shadow| (shadow.entry ^ leaf.entry) & same == 0);
        let rule = if stale { rule } else { Rule::F3 };
        Err(Broken { rule, what, page, view, cached: Some(leaf), link: None })
    }

    /// L1's own pages are where it has put them, and none is dirty whose entry is not.
    fn judge_own(&mut self, view: View, vcpu: usize) -> Result<(), Broken> {
        let Tag { own, .. } = self.caches.get_mut().tag(view.tag);
        for (page, cached) in own_pages(vcpu).into_iter().zip(own) {
            let now = walk::shadow(view.root, 4, walk::UNLIMITED, page, P).map(|now| now.entry);
            let lost = cached.unwrap_or(0) & !now.unwrap_or(0);
            let what = if cached.is_some() && lost & (P | ADDRESS) != 0 {
                "is not what L1 has put there"
            } else if lost & D != 0 {
                "has D set, and the entry has not"
            } else {
                *cached = now;
                continue;
            };
            return Err(Broken { rule: Rule::Window, what, page, view, cached: None, link: None });
        }
        Ok(())
    }

    /// Looks at everything that is cached, for what no flush of the guest's excuses.
    fn inspect(&mut self, vm: &Vm, view: View) -> Result<(), Broken> {
        let broken =
            |rule, what, page, cached, link| Err(Broken { rule, what, page, view, cached, link });
        let cache = self.caches.get_mut().cache(view.tag);
        for (page, link) in cache.links() {
            self.counts.inspected += 1;
            if vm.mmu.key_of(link.table) != Some(link.key) {
                let what = "goes through a table that is no more";
                return broken(Rule::I4, what, page, None, Some(link.table));
            }
        }
        for (page, leaf) in cache.leaves() {
            self.counts.inspected += 1;
            if let Some(what) = unnoticed(vm, view, page, &leaf) {
                return broken(Rule::Hot, what, page, Some(leaf), None);
            }
            if let Some(what) = unlogged(vm, page, &leaf) {
                return broken(Rule::Log, what, page, Some(leaf), None);
            }
        }
        Ok(())
    }
}

/// Why a write through `leaf` would go unnoticed, if it is to a table and would.
fn unnoticed(vm: &Vm, view: View, page: Page, leaf: &Leaf) -> Option<&'static str> {
    if leaf.entry & W == 0 {
        return None;
    }
    let gfn = vm.env().guest_frame(leaf.frame(page, page));
    if leaf.level > 1 {
        let allowed = vm.mmu.allows_large(leaf.level, gfn);
        return (!allowed).then_some("is a large page with a table in it");
    }
    match vm.mmu.watch(gfn) {
        Watch::No | Watch::Written => None,
        Watch::Protected => Some("makes a protected table writable"),
        Watch::DirtyBits if leaf.entry & D == 0 => None,
        Watch::DirtyBits => {
            let now = walk::shadow(view.root, 4, walk::UNLIMITED, page, P | U);
            let noticed = now
                .is_some_and(|now| now.entry & D != 0 && (now.entry ^ leaf.entry) & ADDRESS == 0);
            (!noticed).then_some("has D set for a table, and the entry has not")
        }
    }
}

/// Why a write through `leaf` would not be logged, if the dirty log is on and it would not.
fn unlogged(vm: &Vm, page: Page, leaf: &Leaf) -> Option<&'static str> {
    if leaf.entry & W == 0 || !vm.mmu.log_watches(vm.env().guest_frame(leaf.frame(page, page))) {
        return None;
    }
    Some("makes a frame writable that was not told of")
}
