//! The heap of the boot phase: a large range of addresses whose memory comes as it is touched.
//! May: unsafe. Context: boot.
#![expect(unsafe_code, reason = "a global allocator, and page tables")]
//!
//! Decoders want one big buffer, and a small guest has free memory only in pieces: below the
//! kernel's place and above it. So the heap is virtual, in a PML4 slot of the lower half, and a
//! fault on it maps the next free frame. The kernel never sees any of it.

use super::{call, memory};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use talc::{TalcLock, source::Manual};

#[global_allocator]
static HEAP: TalcLock<spin::Mutex<()>, Manual> = TalcLock::new(Manual);

/// First address: PML4 slot 1.
const START: u64 = 1 << 39;
/// Bytes of addresses: more than any decoder asks for.
const SIZE: u64 = 1 << 30;
/// Frames mapped per fault.
const BATCH: u64 = 16;

/// Free frames: `[low, low_end)` ascending, then `[high_end, high)` descending.
static LOW: AtomicU64 = AtomicU64::new(0);
static LOW_END: AtomicU64 = AtomicU64::new(0);
static HIGH: AtomicU64 = AtomicU64::new(0);
static HIGH_END: AtomicU64 = AtomicU64::new(0);
/// Frame of the root table.
static ROOT: AtomicU64 = AtomicU64::new(0);

/// Present, writable, accessed, dirty; supervisor.
const ENTRY: u64 = 0x63;
const NX: u64 = 1 << 63;

/// Sets the heap up over the free memory `low` and `high` (guest-physical ranges), both outside
/// what is in use.
pub fn init(low: core::ops::Range<u64>, high: core::ops::Range<u64>) {
    LOW.store(low.start, Relaxed);
    LOW_END.store(low.end, Relaxed);
    HIGH.store(high.end, Relaxed);
    HIGH_END.store(high.start, Relaxed);
    let root = take().expect("some memory is free");
    ROOT.store(root, Relaxed);
    call::load_root(root >> 12, false);
    // SAFETY: the range is nobody else's, and touching it maps memory there.
    let claimed = unsafe { HEAP.lock().claim(START as *mut u8, SIZE as usize) };
    assert!(claimed.is_some(), "the heap range is large enough");
}

/// The lowest guest-physical address of the upper range in use: nothing may be loaded above.
#[must_use]
pub fn lowest_high_use() -> u64 {
    HIGH.load(Relaxed)
}

/// Takes a frame, zeroed.
fn take() -> Option<u64> {
    let low = LOW.load(Relaxed);
    let frame = if low < LOW_END.load(Relaxed) {
        LOW.store(low + 4096, Relaxed);
        low
    } else {
        let high = HIGH.load(Relaxed).checked_sub(4096)?;
        if high < HIGH_END.load(Relaxed) {
            return None;
        }
        HIGH.store(high, Relaxed);
        high
    };
    memory::zero(frame, 4096);
    Some(frame)
}

/// A fault at `address`: true if it was the heap's and there is memory there now.
#[must_use]
pub fn fault(address: u64) -> bool {
    if !(START..START + SIZE).contains(&address) {
        return false;
    }
    let first = address & !(BATCH * 4096 - 1);
    let mapped = (0..BATCH).map(|page| map(first + page * 4096)).filter(Option::is_some).count();
    mapped > 0
}

/// Maps a frame at `address` unless one is there.
fn map(address: u64) -> Option<()> {
    let mut table = ROOT.load(Relaxed);
    for level in [3, 2, 1, 0] {
        let index = address >> (12 + 9 * level) & 511;
        let entry = memory::word(table + 8 * index)?;
        if entry.load(Relaxed) == 0 {
            let frame = take()?;
            let flags = if level == 0 { ENTRY | NX } else { ENTRY };
            entry.store(frame | flags, Relaxed);
        }
        table = entry.load(Relaxed) & 0x000f_ffff_ffff_f000;
    }
    Some(())
}
