//! Gives out address space of this process in which nothing is mapped.
//!
//! A page that is mapped where nothing was costs the kernel a third of one that replaces a part of a
//! reservation, which must be split for it. Without a reservation, it is the choice of place that
//! keeps others out: the kernel places mappings from the top of the address space down, or from a
//! third of it up where the stack has no limit, and the program and its heap lie at its ends. It
//! would come here after handing out more than 40 TiB, of which this process never asks a twentieth.

use std::{
    collections::BTreeMap,
    io,
    ops::Range,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Where holes are: below a third of 47 bits, and far above a heap that starts at 0. Regions of all
/// VMs of one L1 need 16 TiB at most.
const WINDOW: Range<u64> = 4 << 40..40 << 40;

/// The holes in use: their starts and ends.
static TAKEN: Mutex<BTreeMap<u64, u64>> = Mutex::new(BTreeMap::new());

/// A part of the window that is nobody else's.
#[derive(Debug)]
pub struct Hole(Range<u64>);

fn taken() -> MutexGuard<'static, BTreeMap<u64, u64>> {
    TAKEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where so many bytes are free, from a multiple of `align` on.
fn find(taken: &BTreeMap<u64, u64>, bytes: u64, align: u64) -> Option<Range<u64>> {
    let mut start = WINDOW.start.next_multiple_of(align);
    for (other, end) in taken {
        if other.saturating_sub(start) >= bytes {
            break;
        }
        start = end.next_multiple_of(align);
    }
    let end = start.checked_add(bytes)?;
    (end <= WINDOW.end && bytes > 0).then_some(start..end)
}

impl Hole {
    /// Takes the first `bytes` of the window that are free, from a multiple of `align` on.
    ///
    /// # Errors
    /// There are not so many.
    pub fn take(bytes: u64, align: u64) -> io::Result<Self> {
        let mut taken = taken();
        let range = find(&taken, bytes, align).ok_or(io::ErrorKind::OutOfMemory)?;
        taken.insert(range.start, range.end);
        Ok(Self(range))
    }

    /// Its addresses.
    #[must_use]
    pub const fn range(&self) -> &Range<u64> {
        &self.0
    }
}

impl Drop for Hole {
    fn drop(&mut self) {
        taken().remove(&self.0.start);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALIGN: u64 = 0x1000;

    #[test]
    fn the_first_free_place_is_found() {
        let start = WINDOW.start;
        let taken = BTreeMap::from([
            (start, start + 0x2000),
            (start + 0x4000, start + 0x4800),
            (start + 0x8000, start + 0x9000),
        ]);
        let found = |bytes| find(&taken, bytes, ALIGN).map(|range| range.start - start);
        assert_eq!(found(0x2000), Some(0x2000));
        assert_eq!(found(0x2001), Some(0x5000), "from a multiple on");
        assert_eq!(found(0x3001), Some(0x9000));
        assert_eq!(found(WINDOW.end - start - 0x9000), Some(0x9000));
        for bytes in [0, WINDOW.end - start - 0x8fff, u64::MAX] {
            assert_eq!(found(bytes), None);
        }
    }

    #[test]
    fn holes_do_not_meet() {
        let [one, other] = [1, 2].map(|_| Hole::take(0x1800, ALIGN).unwrap());
        assert!(one.0.end <= other.0.start || other.0.end <= one.0.start);
        assert!([&one, &other].iter().all(|hole| taken().contains_key(&hole.0.start)));
    }

    #[test]
    fn the_kernel_places_nothing_in_the_window() {
        let kept: Vec<Vec<u8>> = (0..64).map(|_| vec![1; 4 << 20]).collect();
        // Other tests map there, but only into holes.
        let holes = taken();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let starts = maps.lines().filter_map(|line| line.split_once('-')).map(|(start, _)| start);
        let starts = starts.map(|start| u64::from_str_radix(start, 16).unwrap());
        let inside = |at: u64| holes.range(..=at).next_back().is_some_and(|(_, end)| at < *end);
        let astray: Vec<u64> = starts.filter(|at| WINDOW.contains(at) && !inside(*at)).collect();
        assert_eq!(astray, [0; 0], "{} blocks", kept.len());
    }
}
