//! Entropy devices. The first slot with one is looked at; without, these checks are skipped.

use super::{Group, Setting, check};
use crate::{
    extension, paging,
    tap::{Verdict, Wrong, equal, holds, within},
    virtio::{
        NEEDS_RESET, NEXT, RING_FRAMES, Ring, WRITE, find, read, register, start as take_over,
        write,
    },
};
use core::sync::atomic::Ordering::Relaxed;
use pv_abi::ext::Features;

pub const GROUP: Group = Group {
    name: "entropy",
    setting: Setting::Feature(Features::DEVICES),
    checks: &[
        check("identity", "RNG-1 VIO-3", identity),
        check("random", "RNG-1", random),
        check("lengths", "RNG-1", lengths),
        check("direction", "RNG-1 VIO-5", direction),
        check("private_pages", "VIO-5", private_pages),
        check("reset", "VIO-6", reset),
    ],
};

const DEVICE: u64 = 4;
/// Frames of check memory for data.
const DATA: usize = RING_FRAMES;
const PAGE: u64 = 4096;

struct Source {
    slot: u64,
    ring: Ring,
}

fn start() -> Result<Source, Wrong> {
    let slot = find(DEVICE)?;
    let ring = Ring::new(slot, 0, 0);
    take_over(slot, 0, &[&ring])?;
    (DATA..DATA + 3).for_each(clear);
    Ok(Source { slot, ring })
}

fn clear(frame: usize) {
    (0..512).for_each(|word| paging::word(paging::frame(frame) + 8 * word).store(0, Relaxed));
}

/// Bits that are set in `bytes` bytes, a multiple of 8, from the data's offset `at` on.
fn ones(at: u64, bytes: u64) -> u64 {
    let word = |offset| paging::word(paging::frame(DATA) + at + offset).load(Relaxed);
    (0..bytes / 8).map(|number| u64::from(word(8 * number).count_ones())).sum()
}

impl Source {
    /// Has the first data frame's `len` bytes filled; how many the device says.
    fn fill(&mut self, len: u64) -> Result<u64, Wrong> {
        self.ring.describe(0, paging::frame(DATA), len, WRITE, 0);
        self.ring.offer(0);
        self.ring.ring()?;
        let used = self.ring.take().ok_or(Wrong::differs("chains used", 0, 1))?;
        Ok(used.1)
    }
}

fn identity() -> Verdict {
    let slot = find(DEVICE)?;
    for (queue, most) in [(0, 256), (1, 0)] {
        write(slot, register::QUEUE_SEL, queue);
        equal("QueueNumMax", read(slot, register::QUEUE_NUM_MAX), most)?;
    }
    Ok(())
}

/// Half of the bits are set, give or take, and no two fillings are alike.
fn random() -> Verdict {
    let mut source = start()?;
    let mut last = [0; 512];
    for _ in 0..8 {
        equal("bytes", source.fill(PAGE)?, PAGE)?;
        // Seven standard deviations: 90 each.
        within("bits that are set", ones(0, PAGE), 16_384 - 634, 16_384 + 634)?;
        let mut same = 0;
        for (number, last) in (0..).zip(&mut last) {
            let word = paging::word(paging::frame(DATA) + 8 * number).load(Relaxed);
            same += u64::from(word == *last);
            *last = word;
        }
        equal("words as before", same, 0)?;
    }
    Ok(())
}

fn lengths() -> Verdict {
    let mut source = start()?;
    equal("bytes of a short buffer", source.fill(96)?, 96)?;
    holds("it is filled", ones(0, 96) > 0)?;
    equal("bits behind it", ones(96, PAGE - 96), 0)?;
    // Of a chain 4 KiB.
    let page = paging::frame(DATA);
    clear(DATA);
    source.ring.describe(0, page, 1024, WRITE | NEXT, 1);
    source.ring.describe(1, paging::frame(DATA + 1), PAGE, WRITE, 0);
    source.ring.offer(0);
    source.ring.ring()?;
    let used = source.ring.take();
    equal("bytes of a long chain", used.map_or(0, |(_, len)| len), 4096)?;
    equal("bits behind the first buffer", ones(1024, PAGE - 1024), 0)
}

fn direction() -> Verdict {
    let mut source = start()?;
    source.ring.describe(0, paging::frame(DATA), 64, 0, 0);
    source.ring.offer(0);
    source.ring.ring()?;
    equal("chains used", source.ring.take().is_some().into(), 0)?;
    let status = read(source.slot, register::STATUS);
    equal("DEVICE_NEEDS_RESET", status & NEEDS_RESET, NEEDS_RESET)?;
    equal("bytes after a reset", start()?.fill(64)?, 64)
}

fn private_pages() -> Verdict {
    extension::enable(Features::PRIVATE)?;
    let mut source = start()?;
    let page = paging::frame(DATA);
    extension::unshare(page)?;
    let filled = source.fill(PAGE);
    extension::share(page)?;
    equal("bytes", filled?, 0)?;
    equal("bits that are set", ones(0, PAGE), 0)
}

/// A device that was reset uses no page.
fn reset() -> Verdict {
    let mut source = start()?;
    equal("reset", write(source.slot, register::STATUS, 0), 0)?;
    source.ring.describe(0, paging::frame(DATA), PAGE, WRITE, 0);
    source.ring.offer(0);
    source.ring.ring()?;
    equal("chains used", source.ring.take().is_some().into(), 0)?;
    equal("bits that are set", ones(0, PAGE), 0)
}
