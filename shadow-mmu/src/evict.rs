//! Makes room when shadow pages run out.
//! May: nothing. Context: run-loop.
//!
//! A hand goes round over all pages. What was used since it last came by gets a second chance: a
//! table, if the hardware has set A in a link to it; a root, if it is loaded. The rest is unlinked
//! and comes back by faults. With the second round at the latest pages become free, for a round
//! clears the A bits.

use crate::{
    env::{GuestMemory, TablePool, TlbOps},
    mmu::Mmu,
    mutant::{Mutant, planted},
    page::{PageId, ShadowPage},
    primitive::Ordering::{AcqRel, Acquire, Relaxed},
    pte::{A, P, Spte},
};

/// One page in so many is made free at a time, so that the walk is paid for by many faults.
const SHARE: u32 = 16;
/// And at least so many: a fault needs three.
const LEAST: usize = 4;

impl<E: GuestMemory + TablePool + TlbOps> Mmu<E> {
    /// Unlinks shadow pages that were not used lately. They are free once every vCPU has passed a
    /// quiescent point and [`Mmu::reclaim`] was called.
    pub fn shrink(&self) {
        let capacity = self.pages.capacity();
        let goal = self.retired_count() + LEAST.max((capacity / SHARE) as usize);
        for _ in 0..2 * capacity {
            if self.retired_count() >= goal {
                break;
            }
            let id = self.hand.fetch_add(1, Relaxed) % capacity;
            let page = self.pages.get(id);
            if page.is_dead() {
                continue;
            }
            if page.role().level() == 4 {
                self.kill(id);
            } else if !self.used_lately(page) {
                self.unlink(id);
            }
        }
        // Tables and translations are cached with the A bits that were.
        self.env.flush_all();
    }

    /// The hardware went through a link to `page` since this was last asked.
    pub(crate) fn used_lately(&self, page: &ShadowPage) -> bool {
        let mut used = false;
        page.parents.lock(&self.link_chunks).for_each(|at| {
            let entry = &self.env.table(at.page()).0[at.index()];
            let now = Spte(entry.load(Acquire));
            if planted(Mutant::AgeDamages) {
                entry.fetch_and(!A, AcqRel);
            }
            if now.has(P | A) {
                used = true;
                // It fails if the link goes, or is a token by now, which is none of our business.
                let _ = entry.compare_exchange(now.0, now.0 & !A, AcqRel, Acquire);
            }
        });
        used
    }

    /// Removes every link to page `id`, which dies with the last.
    pub(crate) fn unlink(&self, id: PageId) {
        if self.zap_links(id) {
            self.env.flush_all();
        }
        // It is still alive if somebody took it for a root for a moment when its last link went.
        self.kill(id);
    }
}
