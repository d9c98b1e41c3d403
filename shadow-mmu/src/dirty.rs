//! Logs which guest frames are written.
//! May: guest-memory. Context: run-loop, and whoever copies the guest's memory.
//!
//! While the log is on, a frame is mapped writable only once its bit is set, so the first write
//! after each look faults and sets it. What L1 writes itself sets the bit after the write: whoever
//! takes the bit before that finds the frame again at the next look.

use crate::{
    env::{GuestMemory, TablePool, TlbOps},
    hot::Bitmap,
    mmu::Mmu,
    mutant::{Mutant, planted},
    primitive::{
        AtomicBool,
        Ordering::{Acquire, Release},
    },
};
use pv_abi::addr::Gfn;

/// Frames that one word of a log tells of.
pub const FRAMES_PER_WORD: u64 = 64;

/// The log of a VM.
#[derive(Debug)]
pub(crate) struct DirtyLog {
    on: AtomicBool,
    written: Bitmap,
}

impl DirtyLog {
    pub(crate) fn new(frames: u64) -> Self {
        Self { on: AtomicBool::new(false), written: Bitmap::new(frames) }
    }

    #[inline(always)]
    pub(crate) fn is_on(&self) -> bool {
        self.on.load(Acquire)
    }

    /// A write to `gfn` would go unnoticed: its mappings stay read-only.
    #[inline(always)]
    pub(crate) fn watches(&self, gfn: Gfn) -> bool {
        !planted(Mutant::LogUnwatched) && self.is_on() && !self.written.get(gfn)
    }

    /// `gfn` is about to be mapped writable, or was written past every mapping.
    #[inline(always)]
    pub(crate) fn wrote(&self, gfn: Gfn) {
        if self.is_on() {
            self.written.set(gfn);
        }
    }
}

impl<E: GuestMemory + TablePool + TlbOps> Mmu<E> {
    /// Starts the log, with no frame written. Large pages are mapped by small entries from now on.
    pub fn start_dirty_log(&self) {
        self.log.written.clear_all();
        self.log.on.store(true, Release);
        // Whoever installs an entry looks at the log under the lock of its list: it comes first
        // and is found here, or it sees that the log is on.
        for list in self.blocks.all() {
            self.zap_leaves(list);
        }
        for gfn in (0..self.config.frames).map(Gfn) {
            let _ = self.write_protect(gfn);
        }
        self.env.flush_all();
    }

    /// Ends the log. Frames become writable again, and pages large, as they are used.
    pub fn stop_dirty_log(&self) {
        self.log.on.store(false, Release);
    }

    /// Stores into `words` which frames were written since they were last asked for: bit n of word
    /// m is frame `first + 64 * m + n`; `first` is a multiple of 64. When this returns, no write
    /// to such a frame is under way that the next call would not tell of.
    pub fn take_dirty_log(&self, first: Gfn, words: &mut [u64]) {
        let mut any = false;
        for (index, word) in words.iter_mut().enumerate() {
            let base = first.0 + index as u64 * FRAMES_PER_WORD;
            *word = self.log.written.take_word(Gfn(base));
            let mut bits = *word;
            any |= bits != 0;
            while bits != 0 {
                let _ = self.write_protect(Gfn(base + u64::from(bits.trailing_zeros())));
                bits &= bits - 1;
            }
        }
        // W is gone from the entries; now from the TLBs. Some may have it though no entry had: of a
        // mapping that is gone, which the guest has not flushed everywhere yet.
        if any && !planted(Mutant::LogUnflushed) {
            self.env.flush_all();
        }
    }
}
