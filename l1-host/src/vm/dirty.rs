//! The dirty log of a VM: which of its frames have changed, whoever wrote to them.
//! May: take-frame. Context: run-loop, and whoever copies the guest's memory.
//!
//! | who writes | how the log knows |
//! |---|---|
//! | the guest, by its own page tables | the shadow MMU: the first write after each look faults |
//! | the shadow MMU: A and D bits, notes, the table bitmap | it tells its log |
//! | the shim, through the VM window | D bits of the window's entries |
//! | L1, for the guest | [`Vm::wrote`], after the write |
//! | L1 and the switcher, at any time: PVCS pages, note rings | they are told of at every look |
//!
//! What is not told of has not changed since the look before.

use super::{
    Vm,
    dirty_flaw::{Flaw, planted},
};
use alloc::vec::Vec;
use pv_abi::addr::Gfn;
use shadow_mmu::{GuestMemory, TlbOps, dirty::FRAMES_PER_WORD};

impl Vm {
    /// Words that a look fills.
    #[must_use]
    pub fn dirty_words(&self) -> usize {
        self.env().ram.frames().div_ceil(FRAMES_PER_WORD) as usize
    }

    /// Starts the log, with no frame written. The guest's memory, and the shim's view of it, is mapped
    /// by small pages from now on.
    pub fn start_dirty_log(&self) {
        if let Some(window) = &self.vm_window {
            window.start_log(&self.env().ram);
        }
        // Flushes for both.
        self.mmu.start_dirty_log();
    }

    /// Stores into `words` which frames were written since the log was started or last taken: bit n
    /// of word m is frame `64 * m + n`. When this returns, no write to such a frame is under way
    /// that the next look would not tell of.
    ///
    /// # Panics
    /// If there are not [`Vm::dirty_words`] of them.
    pub fn take_dirty_log(&self, words: &mut [u64]) {
        assert_eq!(words.len(), self.dirty_words());
        // A page that ceases to be a PVCS is in the MMU's log before: it is seen here, or there.
        let always: Vec<_> = self.always_written().collect();
        self.mmu.take_dirty_log(Gfn(0), words);
        if planted(Flaw::Guest) {
            words.fill(0);
        }
        if let Some(window) = &self.vm_window {
            let any = window.take_log(&self.env().ram, |gfn| {
                if !planted(Flaw::Window) {
                    tell(words, gfn);
                }
            });
            if any {
                self.env().flush_all();
            }
        }
        always.into_iter().for_each(|gfn| tell(words, gfn));
    }

    /// Ends the log.
    pub fn stop_dirty_log(&self) {
        self.mmu.stop_dirty_log();
        if let Some(window) = &self.vm_window {
            window.stop_log(&self.env().ram);
        }
    }

    /// L1 has written to `gfn` for the guest, past its page tables and the VM window.
    pub fn wrote(&self, gfn: Gfn) {
        if !planted(Flaw::L1) {
            self.mmu.wrote(gfn);
        }
    }

    /// Frames that L1 or the switcher may write to at any time.
    fn always_written(&self) -> impl Iterator<Item = Gfn> {
        let pvcs = |index| self.window.pvcs(index).filter(|_| !planted(Flaw::Pvcs));
        (0..self.vcpus).flat_map(move |index| {
            let pvcs = pvcs(index).map(|hpa| self.env().guest_frame(hpa));
            pvcs.into_iter().chain(self.kind.ring(index))
        })
    }
}

fn tell(words: &mut [u64], gfn: Gfn) {
    words[(gfn.0 / FRAMES_PER_WORD) as usize] |= 1 << (gfn.0 % FRAMES_PER_WORD);
}
