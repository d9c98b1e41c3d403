//! Who may use each page of a guest: L1's devices too, or the guest alone (docs/spec/l0-l1.md, 5.6).
//! May: nothing. Context: any. Input: guest-controlled frame numbers.
//!
//! L1 is the enforcer where it runs the guest itself. Its devices reach guest memory by [`Owners::pin`] only,
//! and a pin and a conversion exclude each other in one word, so what a conversion leaves behind is
//! nobody's but the guest's. The guest's own accesses, by instructions or by L1 on their behalf, are
//! no business of this file.

use alloc::boxed::Box;
use core::{
    ops::Range,
    sync::atomic::{
        AtomicU8,
        Ordering::{AcqRel, Acquire, Release},
    },
};
use pv_abi::addr::Gfn;
use spin::Mutex;

/// Who may use a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Owner {
    /// The guest and L1's devices.
    Shared = 0,
    /// It is being converted: no device.
    Transit = 1 << 6,
    /// The guest alone.
    Private = 2 << 6,
}

/// The state takes two bits, the devices that use the page at this moment are counted in the others.
const STATE: u8 = 3 << 6;

/// The owners of all pages of a VM.
#[derive(Debug)]
pub struct Owners {
    words: Box<[AtomicU8]>,
    /// One conversion at a time: a refused one must know which pages it has claimed.
    converting: Mutex<()>,
}

/// A device uses the page until this is dropped.
#[derive(Debug)]
pub struct Pin<'a>(&'a AtomicU8);

impl Pin<'_> {
    /// Leaves the page pinned until [`Owners::release`].
    pub fn keep(self) {
        core::mem::forget(self);
    }
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Release);
    }
}

/// Why a range was not converted; nothing of it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// A page is no memory of the guest's.
    NoMemory,
    /// The page with this number in the range is in use by a device.
    Busy(u64),
}

impl Owners {
    /// All pages below `frames` are shared.
    #[must_use]
    pub fn new(frames: u64) -> Self {
        let words = (0..frames).map(|_| AtomicU8::new(Owner::Shared as u8)).collect();
        Self { words, converting: Mutex::new(()) }
    }

    /// Bytes that [`Self::new`] will take.
    #[must_use]
    pub const fn overhead(frames: u64) -> u64 {
        frames
    }

    /// Keeps the page in `gfn` shared while a device uses it; `None` if it is not shared, or so many
    /// use it that they cannot be counted.
    #[must_use]
    pub fn pin(&self, gfn: Gfn) -> Option<Pin<'_>> {
        let word = self.words.get(usize::try_from(gfn.0).ok()?)?;
        let more = |word: u8| (word < !STATE).then_some(word + 1);
        word.fetch_update(AcqRel, Acquire, more).ok().map(|_| Pin(word))
    }

    /// Ends what [`Pin::keep`] has left: once for each.
    pub fn release(&self, gfn: Gfn) {
        if let Some(word) = self.words.get(gfn.0 as usize) {
            drop(Pin(word));
        }
    }

    /// Makes the pages of `range` the guest's alone. `zero` is called for each that is converted,
    /// while nobody has it, if the content is not to be kept.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn unshare(&self, range: Range<u64>, zero: impl FnMut(Gfn)) -> Result<(), Refused> {
        self.convert(range, Owner::Shared, Owner::Private, zero)
    }

    /// Gives the pages of `range` to devices as well; `zero` as for [`Self::unshare`].
    ///
    /// # Errors
    /// [`Refused::NoMemory`].
    pub fn share(&self, range: Range<u64>, zero: impl FnMut(Gfn)) -> Result<(), Refused> {
        self.convert(range, Owner::Private, Owner::Shared, zero)
    }

    fn convert(
        &self,
        range: Range<u64>,
        from: Owner,
        to: Owner,
        mut zero: impl FnMut(Gfn),
    ) -> Result<(), Refused> {
        let whole = usize::try_from(range.start).ok().zip(usize::try_from(range.end).ok());
        let words = whole.and_then(|(start, end)| self.words.get(start..end));
        let words = words.ok_or(Refused::NoMemory)?;
        let _one = self.converting.lock();
        for (number, word) in words.iter().enumerate() {
            // A page that is there already stays as it is, its content too.
            if word.load(Acquire) & STATE == to as u8 {
                continue;
            }
            let claim = word.compare_exchange(from as u8, Owner::Transit as u8, AcqRel, Acquire);
            if claim.is_err() {
                for word in &words[..number] {
                    settle(word, from);
                }
                return Err(Refused::Busy(number as u64));
            }
        }
        for (number, word) in words.iter().enumerate() {
            if word.load(Acquire) == Owner::Transit as u8 {
                zero(Gfn(range.start + number as u64));
                settle(word, to);
            }
        }
        Ok(())
    }

    /// Pages that a device uses at this moment; none when the guest has ended.
    #[must_use]
    pub fn pinned(&self) -> u64 {
        self.words.iter().filter(|word| word.load(Acquire) & !STATE != 0).count() as u64
    }
}

/// Ends the transit of a page that is in it: only the holder of the lock has claimed any.
fn settle(word: &AtomicU8, owner: Owner) {
    let _ = word.compare_exchange(Owner::Transit as u8, owner as u8, AcqRel, Acquire);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{
        sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        thread,
        vec::Vec,
    };

    const FRAMES: u64 = 8;

    fn keep(_: Gfn) {}

    impl Owners {
        fn owner(&self, gfn: u64) -> u8 {
            self.words[gfn as usize].load(Acquire) & STATE
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Pin(u64),
        Unpin(usize),
        Unshare(Range<u64>),
        Share(Range<u64>),
    }

    fn step() -> impl Strategy<Value = Step> {
        let range = (0..FRAMES, 1..4u64).prop_map(|(start, len)| start..start + len);
        prop_oneof![
            (0..FRAMES + 1).prop_map(Step::Pin),
            (0..8usize).prop_map(Step::Unpin),
            range.clone().prop_map(Step::Unshare),
            range.prop_map(Step::Share),
        ]
    }

    proptest! {
        /// Any sequence of steps leaves each page with the owner, and answers as, a plain model does.
        #[test]
        fn owners_are_as_a_model_says(steps in prop::collection::vec(step(), 0..200)) {
            let owners = Owners::new(FRAMES);
            let mut private = [false; FRAMES as usize];
            let mut pins: Vec<(u64, Pin<'_>)> = Vec::new();
            for step in steps {
                match step {
                    Step::Pin(gfn) => {
                        let pin = owners.pin(Gfn(gfn));
                        let may = private.get(gfn as usize).is_some_and(|private| !private);
                        prop_assert_eq!(pin.is_some(), may);
                        pins.extend(pin.map(|pin| (gfn, pin)));
                    }
                    Step::Unpin(index) if index < pins.len() => drop(pins.swap_remove(index)),
                    Step::Unpin(_) => {}
                    Step::Unshare(range) => {
                        let mut zeroed = Vec::new();
                        let result = owners.unshare(range.clone(), |gfn| zeroed.push(gfn.0));
                        let busy = range.clone().position(|gfn| pins.iter().any(|(p, _)| *p == gfn));
                        let expected = match busy {
                            _ if range.end > FRAMES => Err(Refused::NoMemory),
                            Some(number) => Err(Refused::Busy(number as u64)),
                            None => Ok(()),
                        };
                        prop_assert_eq!(result, expected);
                        let converted = range.filter(|_| result.is_ok());
                        let converted: Vec<_> = converted.filter(|&g| !private[g as usize]).collect();
                        converted.iter().for_each(|&gfn| private[gfn as usize] = true);
                        prop_assert_eq!(zeroed, converted);
                    }
                    Step::Share(range) => {
                        let result = owners.share(range.clone(), keep);
                        prop_assert_eq!(result.is_ok(), range.end <= FRAMES);
                        range.filter(|_| result.is_ok()).for_each(|g| private[g as usize] = false);
                    }
                }
                for gfn in 0..FRAMES {
                    let expected = if private[gfn as usize] { Owner::Private } else { Owner::Shared };
                    prop_assert_eq!(owners.owner(gfn), expected as u8);
                }
                let used = (0..FRAMES).filter(|gfn| pins.iter().any(|(pinned, _)| pinned == gfn));
                prop_assert_eq!(owners.pinned(), used.count() as u64);
            }
        }
    }

    /// Readers spin on pages that go back and forth: none sees what the guest wrote while a page was its
    /// own, and none is refused for ever.
    #[test]
    fn no_reader_sees_a_private_page() {
        const FLIPS: u64 = 20_000;
        const SECRET: u64 = 0x5ec2e7;
        let owners = Owners::new(FRAMES);
        let memory: Vec<_> = (0..FRAMES).map(|_| AtomicU64::new(0)).collect();
        let (over, reads) = (AtomicBool::new(false), AtomicU64::new(0));
        thread::scope(|scope| {
            for reader in 0..2 {
                let (owners, memory, over, reads) = (&owners, &memory, &over, &reads);
                scope.spawn(move || {
                    let mut gfn = reader;
                    while !over.load(Relaxed) {
                        gfn = (gfn + 1) % FRAMES;
                        if let Some(_pin) = owners.pin(Gfn(gfn)) {
                            assert_ne!(memory[gfn as usize].load(Relaxed), SECRET);
                            reads.fetch_add(1, Relaxed);
                        }
                    }
                });
            }
            let mut refused = 0;
            for flip in 0..FLIPS {
                let range = flip % (FRAMES - 1)..flip % (FRAMES - 1) + 2;
                while let Err(why) = owners.unshare(range.clone(), keep) {
                    assert!(matches!(why, Refused::Busy(0 | 1)));
                    refused += 1;
                }
                range.clone().for_each(|gfn| memory[gfn as usize].store(SECRET, Relaxed));
                let zero = |gfn: Gfn| memory[gfn.0 as usize].store(0, Relaxed);
                owners.share(range, zero).unwrap();
            }
            while reads.load(Relaxed) == 0 {
                thread::yield_now();
            }
            over.store(true, Relaxed);
            std::println!("{refused} refused, {} reads", reads.load(Relaxed));
        });
        assert_eq!(owners.pinned(), 0);
    }

    #[test]
    fn pins_are_counted_as_far_as_they_fit() {
        let owners = Owners::new(1);
        let pins: Vec<_> = core::iter::from_fn(|| owners.pin(Gfn(0))).take(1000).collect();
        assert_eq!(pins.len(), 63);
        assert_eq!(owners.unshare(0..1, keep), Err(Refused::Busy(0)));
        drop(pins);
        assert_eq!(owners.unshare(0..1, keep), Ok(()));
    }
}
