//! What filling shadow entries costs: exits and entries, counted.

use super::{
    Group, Setting, check,
    page_faults::{
        Access::{Read, Write},
        kernel_access, user_access,
    },
};
use crate::{
    counters::{self, Counters, Exit, counted, counted_within},
    paging::{self, A, D, NX, P, U, W},
    tap::{Verdict, equal},
};
use core::sync::atomic::Ordering::Relaxed;

pub const GROUP: Group = Group {
    name: "fill",
    setting: Setting::Anywhere,
    checks: &[
        check("one_page", "CNT-4", one_page),
        check("fault_around", "CNT-4", fault_around),
        check("only_what_was_used", "CNT-4 MMU-5", only_what_was_used),
        check("second_touch_is_free", "CNT-4", second_touch_is_free),
        check("widening", "CNT-4 MMU-6", widening),
        check("dirty", "CNT-4", dirty),
        check("kernel_after_user", "CNT-4", kernel_after_user),
        check("table_stores", "CNT-4", table_stores),
    ],
};

/// Maps `count` pages from index 64 of the area on.
fn map(count: usize, flags: u64) {
    for index in 0..count {
        let entry = paging::area_entry(0, 64 + index);
        entry.store(paging::frame(index) | P | W | U | NX | flags, Relaxed);
    }
    paging::flush();
    // The way to the leaf table is there already: only entries are counted.
    paging::set_area(63, paging::frame(63) | P | W | U | A | D | NX);
    user_access(Read, paging::area(63));
    kernel_access(Read, paging::area(63));
}

fn touch(count: usize) {
    for index in 0..count {
        user_access(Read, paging::area(64 + index));
    }
}

/// A page that was never used: one exit, one entry.
fn one_page() -> Verdict {
    counters::needed()?;
    map(1, 0);
    let seen = Counters::of(|| touch(1));
    seen.exactly(&[(Exit::PageFaultFilled, 1)])?;
    counted("entries", seen.fills, 1)?;
    counted("events", seen.events, 0)
}

/// Sixteen neighbours that were used before come with one exit.
fn fault_around() -> Verdict {
    counters::needed()?;
    map(16, A | D);
    let seen = Counters::of(|| touch(1));
    seen.exactly(&[(Exit::PageFaultFilled, 1)])?;
    counted("entries", seen.fills, 16)?;
    let rest = Counters::of(|| touch(16));
    rest.exactly(&[(Exit::PageFaultFilled, 0)])
}

/// Neighbours that were not are left alone: their A bits tell the guest the truth.
fn only_what_was_used() -> Verdict {
    map(16, 0);
    let seen = Counters::of(|| touch(1));
    seen.exactly(&[(Exit::PageFaultFilled, 1)])?;
    counted("entries", seen.fills, 1)?;
    for index in 1..16 {
        equal("A", paging::area_entry(0, 64 + index).load(Relaxed) & A, 0)?;
    }
    let rest = Counters::of(|| touch(16));
    rest.exactly(&[(Exit::PageFaultFilled, 15)])
}

/// Nothing is lost between touches, nor by system calls and events between them.
fn second_touch_is_free() -> Verdict {
    counters::needed()?;
    map(16, 0);
    touch(16);
    Counters::of(|| touch(16)).exactly(&[(Exit::PageFaultFilled, 0)])
}

/// A right that the guest has added without a flush costs one exit and no new entry.
fn widening() -> Verdict {
    map(1, A | D);
    paging::area_entry(0, 64).fetch_and(!W, Relaxed);
    paging::invlpg(paging::area(64));
    touch(1);
    paging::area_entry(0, 64).fetch_or(W, Relaxed);
    let seen = Counters::of(|| user_access(Write, paging::area(64)));
    seen.exactly(&[(Exit::PageFaultFilled, 1)])?;
    counted_within("entries", seen.fills, 0, 1)
}

/// The first write to a clean page costs one exit, the next none.
fn dirty() -> Verdict {
    counters::needed()?;
    map(1, A);
    touch(1);
    let write = || {
        user_access(Write, paging::area(64));
    };
    Counters::of(write).exactly(&[(Exit::PageFaultFilled, 1)])?;
    Counters::of(write).exactly(&[(Exit::PageFaultFilled, 0)])
}

/// Both modes have entries of their own: at most one exit for each.
fn kernel_after_user() -> Verdict {
    counters::needed()?;
    map(1, A | D);
    touch(1);
    let access = || {
        kernel_access(Read, paging::area(64));
    };
    let first = Counters::of(access);
    counted_within("exits", first.exits, 0, 1)?;
    Counters::of(access).exactly(&[(Exit::PageFaultFilled, 0)])
}

/// Stores into a table that is in use: at most the first is noticed.
fn table_stores() -> Verdict {
    counters::needed()?;
    map(16, A | D);
    touch(16);
    let seen = Counters::of(|| {
        for _ in 0..10 {
            for index in 0..16 {
                paging::area_entry(0, 64 + index).fetch_xor(1 << 9, Relaxed);
            }
        }
    });
    counted_within("exits", seen.exits, 0, 1)?;
    Counters::of(|| touch(16)).exactly(&[(Exit::PageFaultFilled, 0)])
}
