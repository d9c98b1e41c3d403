//! Checks the dirty log: what it does not tell of has not changed.
//! May: take-frame, alloc, guest-memory. Context: run-loop; a check, not a mechanism.
//!
//! Every so many exits the log is taken, and a hash of each frame compared with that of the look
//! before. Every few looks the log ends, and starts anew at the next, so that the guest comes to have
//! large pages again meanwhile.

use super::{
    Vcpu,
    stop::{Leave, Stop},
};
use crate::{
    hw::physmap::Frame,
    memory::{self, heap},
    vm::{
        Kind, Vm,
        dirty_flaw::{Flaw, planted},
    },
};
use alloc::{
    format,
    string::{String, ToString},
    vec,
    vec::Vec,
};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use pv_abi::addr::Gfn;
use shadow_mmu::{GuestMemory, dirty::FRAMES_PER_WORD, inspect::Watch};

/// The word on a guest's command line that says after how many exits to look.
const WORD: &str = "roost.dirty-check=";
/// Looks before the log ends.
const LOOKS: u64 = 6;

/// Least exits between looks: after each one, the page of a store that has faulted would be
/// protected again before the store.
const LEAST: u64 = 2;

/// Exits between looks; 0 for no check.
static EVERY: AtomicU64 = AtomicU64::new(0);

/// Takes the number of exits from a guest's command line, if it is there.
///
/// # Errors
/// What is wrong with it.
pub fn choose(cmdline: &str, vcpus: u32) -> Result<(), String> {
    let Some(number) = cmdline.split(' ').find_map(|word| word.strip_prefix(WORD)) else {
        return Ok(());
    };
    if vcpus > 1 {
        // Others would write while it compares.
        return Err(format!("{WORD}N is for guests with one vCPU"));
    }
    let exits = number.parse().ok().filter(|&exits| exits >= LEAST);
    EVERY.store(
        exits.ok_or_else(|| format!("{WORD}N takes a number of exits, from {LEAST}"))?,
        Relaxed,
    );
    Ok(())
}

/// What was counted. A run in which nothing changed proves nothing.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    started: u64,
    taken: u64,
    reported: u64,
    changed: u64,
}

/// The check of a VM's log.
#[derive(Debug)]
pub struct DirtyCheck {
    /// Exits until the next look.
    left: u64,
    /// Of each frame, as it was at the last look; empty while the log is off.
    hashes: Vec<u64>,
    counts: Counts,
}

impl DirtyCheck {
    /// The check for `vm`, which has not run yet.
    pub fn new(vm: &Vm) -> Self {
        let every = EVERY.load(Relaxed);
        if every != 0 {
            // Hashes, and a bit for each frame.
            let bytes = (vm.env().ram.frames() * 10).next_multiple_of(4096);
            if let Some(start) = memory::take_pages(bytes >> 12, 4096) {
                heap::add(start, bytes);
            }
        }
        Self { left: every, hashes: Vec::new(), counts: Counts::default() }
    }

    /// What was counted.
    pub fn counters(&self) -> [(&'static str, u64); 4] {
        let counts = &self.counts;
        [
            ("dirty_started", counts.started),
            ("dirty_taken", counts.taken),
            ("dirty_reported", counts.reported),
            ("dirty_changed", counts.changed),
        ]
    }

    fn start(&mut self, vm: &Vm) {
        vm.start_dirty_log();
        self.hashes = hashes(vm);
        self.counts.started += 1;
    }

    /// Takes the log and compares.
    fn look(&mut self, vm: &Vm) -> Result<(), Stop> {
        let mut told = vec![0; vm.dirty_words()];
        vm.take_dirty_log(&mut told);
        self.counts.taken += 1;
        self.counts.reported += told.iter().map(|word| u64::from(word.count_ones())).sum::<u64>();
        let before = core::mem::replace(&mut self.hashes, hashes(vm));
        for (gfn, (before, now)) in (0..).zip(before.iter().zip(&self.hashes)) {
            if before == now {
                continue;
            }
            self.counts.changed += 1;
            if told[(gfn / FRAMES_PER_WORD) as usize] >> (gfn % FRAMES_PER_WORD) & 1 == 0 {
                return Err(Stop::BrokenRule(format!(
                    "D1 (the dirty log names every frame that was written): frame {gfn:#x} has \
                     changed, says look {}, and was not named; it is {}",
                    self.counts.taken,
                    describe(vm, Gfn(gfn))
                )));
            }
        }
        Ok(())
    }
}

impl Vcpu {
    /// Looks at the log if it is time to.
    pub(super) fn check_dirty_log(&mut self) -> Result<(), Stop> {
        if self.dirty.left == 0 {
            return Ok(());
        }
        self.dirty.left -= 1;
        if self.dirty.left != 0 {
            return Ok(());
        }
        self.dirty.left = EVERY.load(Relaxed);
        if self.dirty.hashes.is_empty() {
            self.dirty.start(&self.vm);
            return Ok(());
        }
        self.take_flush_requests();
        self.dirty.look(&self.vm)?;
        if planted(Flaw::Flush) {
            self.forget_flush_requests();
        }
        if self.dirty.counts.taken.is_multiple_of(LOOKS) {
            self.vm.stop_dirty_log();
            self.dirty.hashes = Vec::new();
        }
        Ok(())
    }

    /// Looks at the log a last time, unless it has failed.
    pub(super) fn end_dirty_check(&mut self, leave: Leave) -> Leave {
        let over =
            matches!(leave, Leave::Stopped(Stop::BrokenRule(_)) | Leave::Waits | Leave::Preempted);
        if self.dirty.hashes.is_empty() || over {
            return leave;
        }
        let looked = self.dirty.look(&self.vm);
        self.vm.stop_dirty_log();
        looked.err().map_or(leave, Leave::Stopped)
    }
}

/// A hash of each frame.
fn hashes(vm: &Vm) -> Vec<u64> {
    let frames = 0..vm.env().ram.frames();
    frames.map(|gfn| vm.env().page(Gfn(gfn)).map_or(0, hash)).collect()
}

/// Each step is one to one in the word and in what came before, so that a single word that changes
/// always shows.
fn hash(page: &Frame) -> u64 {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    page.iter()
        .fold(1, |hash: u64, word| hash.wrapping_mul(FACTOR).wrapping_add(word.load(Relaxed)))
}

/// What a frame is, and so who may have written to it.
fn describe(vm: &Vm, gfn: Gfn) -> String {
    let mut is = vec![match &vm.kind {
        Kind::Native => "memory".to_string(),
        Kind::Stock(frames) => match gfn.0 {
            gfn if gfn < frames.start => "memory".to_string(),
            gfn if gfn < frames.boot => "the shim's image".to_string(),
            gfn if gfn < frames.areas => "a page of the window".to_string(),
            gfn if gfn < frames.bitmap => {
                format!("page {} of the shim's areas", gfn - frames.areas)
            }
            gfn if gfn < frames.m2p => "the table bitmap".to_string(),
            _ => "the machine-to-physical map".to_string(),
        },
    }];
    let pvcs = (0..vm.vcpus)
        .filter(|&index| vm.window.pvcs(index).is_some_and(|hpa| vm.env().guest_frame(hpa) == gfn));
    is.extend(pvcs.map(|index| format!("the PVCS of vCPU {index}")));
    if vm.mmu.watch(gfn) != Watch::No {
        is.push("a page table".to_string());
    }
    if vm.mmu.is_mapped_writable(gfn) {
        is.push("mapped writable for the guest".to_string());
    }
    is.join(", ")
}
