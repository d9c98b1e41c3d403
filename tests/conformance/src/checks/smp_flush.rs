//! FLUSH_VCPUS: what other vCPUs see of a page that moves.

use crate::{
    abi,
    paging::{self, A, D, NX, P, W},
    second::{self, INDEX},
    tap::{Case, Verdict, equal, holds},
};
use core::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};
use pv_abi::{ext::call, hypercall as nr};

/// How often a page moves in one check.
const FLIPS: u64 = 10_000;
/// Frames that it moves through, so that an old one keeps its number for a while.
const FRAMES: u64 = 8;
/// The page, in either half.
const HALVES: [u64; 2] = [0x92_3456_7000, 0xffff_ec12_3456_7000];
const FLAGS: u64 = P | W | A | D | NX;

/// The number that is seen in either half at least, from now on.
static SAFE: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
/// The last of them that the reader has compared with.
static COMPARED: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
/// What it saw that was older: the number, and what it should have been.
static STALE: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

/// The frame of number `number` in half `half`.
fn frame(half: usize, number: u64) -> u64 {
    paging::frame(64 + 8 * half + (number % FRAMES) as usize)
}

/// Maps both pages to number 1.
fn begin() -> Verdict {
    second::needed()?;
    paging::reset();
    for (half, address) in HALVES.into_iter().enumerate() {
        paging::word(frame(half, 1)).store(1, Relaxed);
        paging::map(0, address, frame(half, 1) | FLAGS, 1);
        SAFE[half].store(1, Relaxed);
        COMPARED[half].store(0, Relaxed);
        STALE[half].store(0, Relaxed);
    }
    Ok(())
}

/// Reads again and again, and compares with what must be seen at least.
fn read() {
    while !second::quits() {
        // Enough that it is caught at it, wherever it is interrupted.
        for _ in 0..64 {
            for (half, address) in HALVES.into_iter().enumerate() {
                let safe = SAFE[half].load(Acquire);
                let found = paging::read_word(address);
                if found < safe {
                    STALE[0].store(found, Relaxed);
                    STALE[1].store(safe, Release);
                }
                COMPARED[half].store(safe, Release);
            }
        }
        // On one CPU, so that the other comes to its next change soon.
        abi::call(call::YIELD, [0; 4]);
    }
}

/// Moves the page of half `half` to `number` and says so after the flush.
fn flip(half: usize, number: u64, mask: u64, what: u64) -> Verdict {
    paging::word(frame(half, number)).store(number, Relaxed);
    paging::entry(0, HALVES[half], 1).store(frame(half, number) | FLAGS, Release);
    equal("FLUSH_VCPUS", abi::call(call::FLUSH_VCPUS, [mask, what, 0, 0]), 0)?;
    SAFE[half].store(number, Release);
    Ok(())
}

fn nothing_stale() -> Verdict {
    let safe = STALE[1].load(Acquire);
    if safe == 0 {
        Ok(())
    } else {
        equal("number read after its flush", STALE[0].load(Relaxed), safe)
    }
}

/// Moves both pages to and fro while the second vCPU reads them.
fn flips(flush: impl Fn(u64) -> u64) -> Verdict {
    begin()?;
    second::start(read)?;
    for round in 0..FLIPS {
        let (half, number) = ((round % 2) as usize, 2 + round / 2);
        // With and without this vCPU, which is the one that changes the tables; and one that is not.
        let mask = [1 << INDEX, 3, u64::MAX][(round / 2 % 3) as usize];
        flip(half, number, mask, flush(HALVES[half]))?;
        // Most of the time both go on side by side.
        if round % 8 < 2 {
            let seen = || COMPARED[half].load(Acquire) >= number || STALE[1].load(Relaxed) != 0;
            holds("the reader goes on", second::wait(seen))?;
        }
        nothing_stale().case(if half == 0 { "lower half" } else { "upper half" })?;
    }
    second::quit();
    nothing_stale()
}

/// One address, in either half.
pub fn address() -> Verdict {
    flips(|address| address)
}

/// Everything.
pub fn everything() -> Verdict {
    flips(|_| call::FLUSH_ALL)
}

/// Masks: none, this vCPU alone, those that there are not.
pub fn mask() -> Verdict {
    begin()?;
    let [address, _] = HALVES;
    equal("before", paging::read_word(address), 1)?;
    for (name, mask) in [("this vCPU", 1), ("all", u64::MAX), ("both, one of them off", 3)] {
        let number = SAFE[0].load(Relaxed) + 1;
        flip(0, number, mask, address).case(name)?;
        equal("number", paging::read_word(address), number).case(name)?;
        flip(0, number + 1, mask, call::FLUSH_ALL).case(name)?;
        equal("number", paging::read_word(address), number + 1).case(name)?;
    }
    for (name, mask) in [("nobody", 0), ("vCPUs that there are not", u64::MAX << 32)] {
        for what in [address, call::FLUSH_ALL, 1 << 47] {
            equal("result", abi::call(call::FLUSH_VCPUS, [mask, what, 0, 0]), 0).case(name)?;
        }
    }
    Ok(())
}

/// A space that the second vCPU has used and left, and comes back to without a flush of its own.
pub fn other_space() -> Verdict {
    static SEEN: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
    const ADDRESS: u64 = HALVES[0];
    for what in [ADDRESS, call::FLUSH_ALL] {
        begin()?;
        paging::word(frame(1, 7)).store(7, Relaxed);
        paging::map(1, ADDRESS, frame(1, 7) | FLAGS, 1);
        second::start(|| {
            let load = |space| abi::call(nr::LOAD_PGTBL, [0, paging::cr3(space), 0, 0]);
            load(1);
            SEEN[0].store(paging::read_word(ADDRESS), Relaxed);
            load(0);
            second::reached(1);
            second::wait(|| second::stage() == 2);
            load(1);
            SEEN[1].store(paging::read_word(ADDRESS), Relaxed);
            load(0);
        })?;
        second::wait_for(1)?;
        paging::word(frame(0, 9)).store(9, Relaxed);
        paging::entry(1, ADDRESS, 1).store(frame(0, 9) | FLAGS, Release);
        abi::call(call::FLUSH_VCPUS, [1 << INDEX, what, 0, 0]);
        second::reached(2);
        second::ended()?;
        equal("before", SEEN[0].load(Relaxed), 7)?;
        equal("after the flush", SEEN[1].load(Relaxed), 9)?;
    }
    Ok(())
}
