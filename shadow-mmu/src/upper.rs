//! Gives a new supervisor root the upper half that the root before it has.
//! May: guest-memory. Context: run-loop. Input: guest-controlled.
//!
//! Kernels share the upper half, and each link that is taken over is a fault saved. What is taken over
//! was found, not made, so rule I3 holds for it: it may have missed stores that somebody has flushed in
//! the address space of the new root, where nothing was linked yet.

use crate::{
    env::{GuestMemory, TablePool, TlbOps},
    install::Claim,
    mmu::Mmu,
    mutant::{Mutant, planted},
    page::{EntryRef, PageId},
    primitive::Ordering::Acquire,
    pte::{GuestPte, Spte},
    root::{Roots, VcpuMmu},
    walk::Step,
};
use arrayvec::ArrayVec;

/// Links taken over at most; the rest is left to faults. Linux has seven.
const MOST: usize = 16;

/// A link to be made, in place of its token.
struct Copy<'m> {
    claim: Claim,
    guest: Step<'m>,
}

impl<E: GuestMemory + TablePool + TlbOps> Mmu<E> {
    /// Links in the supervisor root of `to` what supervisor root `from` links in the upper half, where
    /// the guest's entries agree.
    pub(crate) fn copy_upper_half(&self, vcpu: &mut VcpuMmu, from: PageId, to: Roots) {
        let mut copies = ArrayVec::<_, MOST>::new();
        self.for_each_entry(from, |slot, link| {
            if slot >= 256 && link.present() && self.is_legal_upper(slot) && !copies.is_full() {
                copies.extend(self.claim_copy(vcpu, to, slot, link));
            }
        });
        if copies.is_empty() {
            return;
        }
        // With all tokens in place: a flush from here on takes them away, and one before was of
        // stores that are seen now.
        if !planted(Mutant::CopiedNotCompared) {
            self.sync_hot(vcpu);
            copies.iter().for_each(|copy| self.sync_page(copy.claim.child));
        }
        for Copy { claim, guest } in copies {
            let child = claim.child;
            // A link that fails is made by a fault later.
            if self.link_claimed(claim, || guest.still_true()).is_err() {
                self.kill_if_unused(child);
            }
        }
    }

    /// Claims entry `slot` of the supervisor root of `to` for what `link` links, if that is what the
    /// guest's entry says.
    fn claim_copy(
        &self,
        vcpu: &mut VcpuMmu,
        to: Roots,
        slot: usize,
        link: Spte,
    ) -> Option<Copy<'_>> {
        let entry_slot = &self.env.table_at(to.gfn)?.0[slot];
        let guest = GuestPte(entry_slot.load(Acquire));
        // What is not accessed yet is linked by a fault, which sets A.
        let same = self.link_is_true(link, self.pages.get(to.smod).role(), guest);
        if !same && !planted(Mutant::CopyUnchecked) {
            return None;
        }
        let step = Step { slot: entry_slot, entry: guest };
        let (at, child) = (EntryRef::new(to.smod, slot), self.env.id(link.hpa()));
        let claim = self.claim_link(at, child, vcpu.token(), Spte::link(link.hpa(), guest)).ok()?;
        Some(Copy { claim, guest: step })
    }
}
