//! Virtio devices that L1 models for guests (virtio 1.2; spec 2.9).
//!
//! `registers` is the virtio-mmio block, `queue` walks a split virtqueue, `copy` is what most of the others do
//! with its chains: `block` makes requests of a disk of them, `net` moves frames from and to a card's, `control`
//! answers its commands, `entropy`
//! fills them, `port` moves a console's bytes, `packet` those between sockets. They know no hardware and are
//! tested on the host. The rest puts them together: `front` is what all devices have; `disk`, `card`, `random`,
//! `terminal` and `vsock` do what these do; `slots` holds the devices.

pub mod block;
#[cfg(target_os = "none")]
pub mod card;
pub mod control;
pub mod copy;
#[cfg(target_os = "none")]
pub mod disk;
pub mod entropy;
#[cfg(target_os = "none")]
pub mod front;
#[cfg(target_os = "none")]
mod memory;
pub mod net;
pub mod packet;
pub mod port;
pub mod queue;
#[cfg(target_os = "none")]
mod random;
pub mod registers;
#[cfg(target_os = "none")]
pub mod slots;
#[cfg(target_os = "none")]
pub mod terminal;
#[cfg(target_os = "none")]
pub mod vsock;

/// Guest memory as a device sees it: what is no RAM, or the guest's alone, cannot be reached.
pub trait DeviceMemory {
    /// A page that devices may use as long as it is held.
    type Page<'a>: Page
    where
        Self: 'a;
    /// Holds the page with this number; `None` if it cannot be reached. It costs as much as a short read, so it is for
    /// several reads of one page.
    fn hold(&self, number: u64) -> Option<Self::Page<'_>>;
    /// Copies `out.len()` bytes, a page's worth at most, from guest-physical `gpa`; false if they
    /// cannot all be reached.
    #[must_use]
    fn read(&self, gpa: u64, out: &mut [u8]) -> bool;
    /// Copies `data`, a page's worth at most, to guest-physical `gpa`; false if it cannot all be
    /// reached.
    #[must_use]
    fn write(&self, gpa: u64, data: &[u8]) -> bool;
    /// Reads the 16 bits at `gpa`, a multiple of 2, at once.
    fn load16(&self, gpa: u64) -> Option<u16>;
    /// Writes the 16 bits at `gpa`, a multiple of 2, at once; false if they cannot be reached.
    #[must_use]
    fn store16(&self, gpa: u64, value: u16) -> bool;
}

/// A page that is held.
pub trait Page {
    /// Copies the 16 bytes at `offset`, a multiple of 16 below 4096.
    fn read(&self, offset: usize) -> u128;
}

#[cfg(test)]
pub mod fake {
    //! Guest memory of a test: bytes from address 0 on, some pages out of reach.

    use super::{DeviceMemory, Page};
    use std::{
        cell::{Cell, RefCell},
        collections::HashSet,
        vec,
        vec::Vec,
    };

    /// The memory.
    #[derive(Debug, Default)]
    pub struct Ram {
        /// Its bytes.
        pub bytes: RefCell<Vec<u8>>,
        /// Pages that no device may use.
        pub private: HashSet<u64>,
        /// How often a page was held, and how often memory was read.
        pub holds: Cell<u32>,
        /// See above.
        pub reads: Cell<u32>,
    }

    /// What a page held when it was taken.
    #[derive(Debug)]
    pub struct Held(Vec<u8>);

    impl Page for Held {
        fn read(&self, offset: usize) -> u128 {
            u128::from_le_bytes(self.0[offset..offset + 16].try_into().expect("16 bytes"))
        }
    }

    impl Ram {
        /// `len` zeros.
        #[must_use]
        pub fn new(len: usize) -> Self {
            Self { bytes: RefCell::new(vec![0; len]), ..Self::default() }
        }

        fn range(&self, gpa: u64, len: usize) -> Option<core::ops::Range<usize>> {
            let start = usize::try_from(gpa).ok()?;
            let end = start.checked_add(len)?;
            let fits = end <= self.bytes.borrow().len();
            let shared = (start..end).all(|at| !self.private.contains(&(at as u64 / 4096)));
            (fits && shared).then_some(start..end)
        }
    }

    impl DeviceMemory for Ram {
        type Page<'a> = Held;

        fn hold(&self, number: u64) -> Option<Held> {
            let range = self.range(number.checked_mul(4096)?, 4096)?;
            self.holds.set(self.holds.get() + 1);
            Some(Held(self.bytes.borrow()[range].to_vec()))
        }

        fn read(&self, gpa: u64, out: &mut [u8]) -> bool {
            assert!(out.len() <= 4096);
            self.reads.set(self.reads.get() + 1);
            let range = self.range(gpa, out.len());
            range.is_some_and(|range| {
                out.copy_from_slice(&self.bytes.borrow()[range]);
                true
            })
        }

        fn write(&self, gpa: u64, data: &[u8]) -> bool {
            assert!(data.len() <= 4096);
            let range = self.range(gpa, data.len());
            range.is_some_and(|range| {
                self.bytes.borrow_mut()[range].copy_from_slice(data);
                true
            })
        }

        fn load16(&self, gpa: u64) -> Option<u16> {
            assert!(gpa.is_multiple_of(2));
            let mut bytes = [0; 2];
            self.read(gpa, &mut bytes).then(|| u16::from_le_bytes(bytes))
        }

        fn store16(&self, gpa: u64, value: u16) -> bool {
            assert!(gpa.is_multiple_of(2));
            self.write(gpa, &value.to_le_bytes())
        }
    }
}
