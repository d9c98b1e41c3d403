//! Measures page faults and what makes and undoes them.

use super::Operation;
use crate::sys::{
    memory::{Access, Region, map_touch_unmap as one_page},
    process,
};
use std::io;

/// Pages touched before they are unmapped again, at most: a guest has only so much memory.
const STORM: u64 = 4096;

fn text(error: io::Error) -> String {
    error.to_string()
}

/// Everything about one page.
pub fn map_touch_unmap() -> Result<Operation, String> {
    Ok(Box::new(|n, watch| watch.time(|| (0..n).for_each(|_| one_page()))))
}

/// Faults alone.
pub fn first_touch() -> Result<Operation, String> {
    Ok(Box::new(|n, watch| {
        pieces(n, STORM, |region| watch.time(|| region.touch_all()));
    }))
}

/// Unmapping alone.
pub fn unmap_per_page() -> Result<Operation, String> {
    Ok(Box::new(|n, watch| {
        pieces(n, STORM, |region| {
            region.touch_all();
            watch.time(|| region.unmap());
        });
    }))
}

/// Unmapping few pages, as programs do it: the flush weighs more than the pages.
pub fn unmap_16() -> Result<Operation, String> {
    Ok(Box::new(|n, watch| {
        for _ in 0..n {
            pieces(16, 16, |region| {
                region.touch_all();
                watch.time(|| region.unmap());
            });
        }
    }))
}

/// Runs `body` on fresh regions of `n` pages together, each of `piece` pages or fewer.
fn pieces(n: u64, piece: u64, mut body: impl FnMut(&mut Region)) {
    let mut left = n;
    while left > 0 {
        let pages = left.min(piece);
        let Ok(mut region) = Region::new(pages) else { process::give_up("out of memory") };
        body(&mut region);
        left -= pages;
    }
}

/// A page that comes and goes under a mapping that stays.
pub fn discard_refault() -> Result<Operation, String> {
    let region = Region::new(1).map_err(text)?;
    Ok(Box::new(move |n, watch| {
        watch.time(|| {
            for _ in 0..n {
                region.touch_first();
                region.discard();
            }
        });
    }))
}

/// The child's first write to each page of its parent.
pub fn copy_on_write() -> Result<Operation, String> {
    let region = Region::new(1024).map_err(text)?;
    region.touch_all();
    Ok(Box::new(move |n, watch| {
        let time = process::time_in_child(|| region.touch(n));
        watch.add(time.unwrap_or_else(|error| process::give_up(&error.to_string())));
    }))
}

/// A page made read-only and writable again.
pub fn protect_flip() -> Result<Operation, String> {
    let region = Region::new(1).map_err(text)?;
    region.touch_first();
    Ok(Box::new(move |n, watch| watch.time(|| flip(&region, n))))
}

/// Makes a page read-only and writable again, `n` times.
pub fn flip(region: &Region, n: u64) {
    for _ in 0..n {
        region.protect(Access::Read);
        region.protect(Access::Write);
        region.touch_first();
    }
}
