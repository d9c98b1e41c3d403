//! The ring of requests and responses that a front end shares with its device.
//! May: nothing. Context: shim. Input: guest-controlled.
//!
//! From Xen's public `io/ring.h`: four indices, then places, each for a request and later for a
//! response. Either side says by an index from when on it wants to be told.

use crate::guest_memory::Memory;
use core::sync::atomic::{Ordering::SeqCst, fence};

/// Offsets in the page.
const REQUESTS: u64 = 0;
const REQUEST_EVENT: u64 = 4;
const RESPONSES: u64 = 8;
const RESPONSE_EVENT: u64 = 12;
const FIRST: u64 = 64;

/// What the ring says cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

/// A device's end of a ring of one page, whose places have `SIZE` bytes each.
#[derive(Clone, Copy, Debug)]
pub struct Ring<const SIZE: usize> {
    page: u64,
    /// Requests taken, responses written, responses told of.
    taken: u32,
    written: u32,
    told: u32,
}

impl<const SIZE: usize> Ring<SIZE> {
    /// Places: as many as fit, and a power of two.
    pub const PLACES: u32 = 1 << ((4096 - FIRST as u32) / SIZE as u32).ilog2();

    /// A ring in the page at `page` that nobody has used.
    #[must_use]
    pub const fn new(page: u64) -> Self {
        Self { page, taken: 0, written: 0, told: 0 }
    }

    /// Takes the next request; `None` if there is none.
    ///
    /// # Errors
    /// [`Broken`] if there are more than places, or fewer than were taken.
    pub fn take(&mut self, memory: &impl Memory) -> Result<Option<[u8; SIZE]>, Broken> {
        let made = memory.load32(self.page + REQUESTS).ok_or(Broken)?;
        let waiting = made.wrapping_sub(self.taken);
        let unanswered = self.taken.wrapping_sub(self.written);
        if waiting > Self::PLACES - unanswered {
            return Err(Broken);
        }
        if waiting == 0 {
            return Ok(None);
        }
        let mut request = [0; SIZE];
        memory.read(self.place(self.taken), &mut request).ok_or(Broken)?;
        self.taken = self.taken.wrapping_add(1);
        Ok(Some(request))
    }

    /// Asks to be told of the next request; true if there is one already.
    pub fn ask(&self, memory: &impl Memory) -> bool {
        memory.store32(self.page + REQUEST_EVENT, self.taken.wrapping_add(1));
        fence(SeqCst);
        memory.load32(self.page + REQUESTS).is_some_and(|made| made != self.taken)
    }

    /// Requests that were taken and are not answered.
    #[must_use]
    pub const fn unanswered(&self) -> u32 {
        self.taken.wrapping_sub(self.written)
    }

    /// Writes a response to a request that was taken; no longer than a place.
    pub fn respond(&mut self, memory: &impl Memory, response: &[u8]) {
        memory.write(self.place(self.written), response);
        self.written = self.written.wrapping_add(1);
    }

    /// Shows the responses written; true if the front end wants to be told.
    #[must_use]
    pub fn show(&mut self, memory: &impl Memory) -> bool {
        let before = core::mem::replace(&mut self.told, self.written);
        if before == self.written {
            return false;
        }
        memory.store32(self.page + RESPONSES, self.written);
        fence(SeqCst);
        let from = memory.load32(self.page + RESPONSE_EVENT).unwrap_or(0);
        self.written.wrapping_sub(from) < self.written.wrapping_sub(before)
    }

    const fn place(&self, number: u32) -> u64 {
        self.page + FIRST + (number % Self::PLACES) as u64 * SIZE as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest_memory::fake::Ram;

    type Ring = super::Ring<112>;
    const PLACES: u32 = Ring::PLACES;

    #[test]
    fn places_are_a_power_of_two() {
        assert_eq!((PLACES, super::Ring::<12>::PLACES, super::Ring::<8>::PLACES), (32, 256, 256));
    }

    #[test]
    fn requests_are_taken_in_their_order() {
        let ram = Ram::new(1);
        let mut ring = Ring::new(0);
        assert_eq!(ring.take(&ram), Ok(None));
        assert!(!ring.ask(&ram));
        assert_eq!(ram.load32(REQUEST_EVENT), Some(1));
        ram.write(FIRST, &[1]).unwrap();
        ram.write(FIRST + 112, &[2]).unwrap();
        ram.store32(REQUESTS, 2).unwrap();
        assert!(ring.ask(&ram));
        assert_eq!(ring.take(&ram).unwrap().unwrap()[0], 1);
        assert_eq!(ring.take(&ram).unwrap().unwrap()[0], 2);
        assert_eq!(ring.take(&ram), Ok(None));
    }

    #[test]
    fn more_requests_than_places_are_an_error() {
        let ram = Ram::new(1);
        let mut ring = Ring::new(0);
        for broken in [PLACES + 1, u32::MAX] {
            ram.store32(REQUESTS, broken).unwrap();
            assert_eq!(ring.take(&ram), Err(Broken));
        }
        // Places are free again only when they were answered.
        ram.store32(REQUESTS, PLACES).unwrap();
        while ring.take(&ram).unwrap().is_some() {}
        ram.store32(REQUESTS, PLACES + 1).unwrap();
        assert_eq!(ring.take(&ram), Err(Broken));
        ring.respond(&ram, &[0; 12]);
        assert!(ring.take(&ram).unwrap().is_some());
        ram.store32(REQUESTS, PLACES - 1).unwrap();
        assert_eq!(ring.take(&ram), Err(Broken), "some were taken back");
    }

    #[test]
    fn the_front_end_is_told_when_it_wants() {
        let ram = Ram::new(1);
        let mut ring = Ring::new(0);
        assert!(!ring.show(&ram));
        ram.store32(RESPONSE_EVENT, 2).unwrap();
        ring.respond(&ram, &[0x34, 0x12, 0, 0, 0, 0, 0, 0, 1, 0, 0xff, 0xff]);
        assert!(!ring.show(&ram), "it waits for the second");
        assert_eq!(ram.load32(RESPONSES), Some(1));
        assert_eq!(ram.load32(FIRST), Some(0x1234));
        assert_eq!(ram.load32(FIRST + 8), Some(0xffff_0001));
        ring.respond(&ram, &[0; 12]);
        ring.respond(&ram, &[0; 12]);
        assert!(ring.show(&ram));
        assert!(!ring.show(&ram), "nothing new");
        ring.respond(&ram, &[0; 12]);
        assert!(!ring.show(&ram), "it has been told and has not asked again");
    }
}
