//! Walks a guest's split virtqueue (virtio 1.2, 2.7), as the device.
//! May: guest-memory. Context: run-loop. Input: guest-controlled rings.
//!
//! Every index, address and flag is read once, checked, and then used. What a guest could gain by
//! changing the rings meanwhile is that it gets another of its own requests.

use super::{DeviceMemory, Page};
use arrayvec::ArrayVec;
use core::sync::atomic::{Ordering::SeqCst, fence};
use pv_abi::{
    ext::devices::QUEUE_MOST,
    virtio::queue::{DESCRIPTOR, INDIRECT, NEXT, NO_INTERRUPT, NO_NOTIFY, WRITE},
};

/// Entries of a queue at most.
pub const MOST: usize = QUEUE_MOST as usize;

/// A queue as the driver has set it up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Queue {
    size: u16,
    descriptors: u64,
    driver: u64,
    device: u64,
    /// Chains taken, and chains given back, modulo 2^16.
    taken: u16,
    used: u16,
    /// The driver was told not to tell.
    silent: bool,
}

/// A piece of guest memory that a chain names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Buffer {
    /// Where it starts.
    pub gpa: u64,
    /// Its bytes.
    pub len: u32,
}

/// A chain of descriptors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Its first descriptor, by which the driver knows it.
    pub head: u16,
    /// What the device may read.
    pub readable: ArrayVec<Buffer, MOST>,
    /// What it may write; all of it follows what it may read.
    pub writable: ArrayVec<Buffer, MOST>,
}

/// What is wrong with a queue. The device stops until it is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// A ring lies where no device may look.
    Ring,
    /// More chains are available than the queue has room for.
    Overrun,
    /// A descriptor's number is beyond the queue, or its table.
    Index,
    /// A chain is longer than the queue: it may be a loop.
    TooLong,
    /// An indirect table that is empty, uneven, within another, or goes on.
    Indirect,
    /// A buffer to read follows one to write.
    Order,
    /// A buffer is empty, or goes on past the last address.
    Buffer,
    /// A buffer to read is in a queue for those to write, or the other way round.
    Direction,
    /// A chain without room for what every request has: there is nobody to tell.
    Unanswerable,
    /// More comes than a driver could wait for.
    Endless,
}

impl Broken {
    /// All, with the names that statistics use.
    pub const ALL: [(Self, &'static str); 10] = [
        (Self::Ring, "virtio_stop_ring"),
        (Self::Overrun, "virtio_stop_overrun"),
        (Self::Index, "virtio_stop_index"),
        (Self::TooLong, "virtio_stop_too_long"),
        (Self::Indirect, "virtio_stop_indirect"),
        (Self::Order, "virtio_stop_order"),
        (Self::Buffer, "virtio_stop_buffer"),
        (Self::Direction, "virtio_stop_direction"),
        (Self::Unanswerable, "virtio_stop_unanswerable"),
        (Self::Endless, "virtio_stop_endless"),
    ];
}

impl core::fmt::Display for Broken {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Ring => "a ring lies where no device may look",
            Self::Overrun => "more is available than the queue has room for",
            Self::Index => "a descriptor is named that there is not",
            Self::TooLong => "a chain is longer than the queue",
            Self::Indirect => "an indirect table is not well-formed",
            Self::Order => "a buffer to read follows one to write",
            Self::Buffer => "a buffer is empty, or goes past the last address",
            Self::Direction => "a buffer is in the wrong queue",
            Self::Unanswerable => "a request has no header, or no room for the answer",
            Self::Endless => "the driver sends more than it could wait for",
        })
    }
}

#[derive(Clone, Copy)]
struct Descriptor {
    buffer: Buffer,
    flags: u16,
    next: u16,
}

/// Where descriptors are: the queue's own table, or an indirect one.
#[derive(Clone, Copy)]
struct Table {
    at: u64,
    len: u32,
}

/// Reads the descriptors of a chain, most of which lie in one page: to read each for itself costs three times as much.
struct Reader<'a, M: DeviceMemory> {
    memory: &'a M,
    /// The page of the last one, and its number.
    held: Option<(u64, M::Page<'a>)>,
}

impl<'a, M: DeviceMemory> Reader<'a, M> {
    const fn new(memory: &'a M) -> Self {
        Self { memory, held: None }
    }

    fn get(&mut self, table: Table, index: u16) -> Result<Descriptor, Broken> {
        if u32::from(index) >= table.len {
            return Err(Broken::Index);
        }
        let at = table.at.checked_add(u64::from(index) * DESCRIPTOR).ok_or(Broken::Ring)?;
        let word = match self.page(at) {
            Some(page) => page.read((at & 0xfff) as usize),
            None => {
                let mut bytes = [0; DESCRIPTOR as usize];
                if !self.memory.read(at, &mut bytes) {
                    return Err(Broken::Ring);
                }
                u128::from_le_bytes(bytes)
            }
        };
        let buffer = Buffer { gpa: word as u64, len: (word >> 64) as u32 };
        Ok(Descriptor { buffer, flags: (word >> 96) as u16, next: (word >> 112) as u16 })
    }

    /// The page with the descriptor at `at`; `None` if it may lie in two, or the page cannot be held.
    fn page(&mut self, at: u64) -> Option<&M::Page<'a>> {
        if !at.is_multiple_of(DESCRIPTOR) {
            return None;
        }
        let number = at >> 12;
        if self.held.as_ref().is_none_or(|(held, _)| *held != number) {
            self.held = self.memory.hold(number).map(|page| (number, page));
        }
        self.held.as_ref().map(|(_, page)| page)
    }
}

impl Queue {
    /// The queue of `size` entries with these parts; `None` if the size or an address is none that
    /// a driver may choose.
    #[must_use]
    pub fn new(size: u32, descriptors: u64, driver: u64, device: u64) -> Option<Self> {
        let fits = |at: u64, align: u64, bytes: u64| {
            at.is_multiple_of(align) && at.checked_add(bytes).is_some()
        };
        let entries = u64::from(size);
        let fine = (1..=QUEUE_MOST).contains(&size)
            && size.is_power_of_two()
            && fits(descriptors, 16, DESCRIPTOR * entries)
            && fits(driver, 2, 6 + 2 * entries)
            && fits(device, 4, 6 + 8 * entries);
        fine.then_some(Self {
            size: size as u16,
            descriptors,
            driver,
            device,
            taken: 0,
            used: 0,
            silent: false,
        })
    }

    /// Takes the next chain that the driver has made available: true if it is in `chain` now, whatever was in
    /// it before. A chain has 8 KiB, which takes longer to move than most requests.
    ///
    /// # Errors
    /// [`Broken`]: the queue cannot be used any more.
    pub fn pop_into(
        &mut self,
        memory: &impl DeviceMemory,
        chain: &mut Chain,
    ) -> Result<bool, Broken> {
        let waiting = self.waiting(memory)?;
        if waiting == 0 {
            return Ok(false);
        }
        if waiting > self.size {
            return Err(Broken::Overrun);
        }
        // What the driver wrote before it moved the index must not be read before.
        fence(SeqCst);
        let slot = self.driver + 4 + 2 * u64::from(self.taken % self.size);
        let head = memory.load16(slot).ok_or(Broken::Ring)?;
        self.walk(memory, head, chain)?;
        self.taken = self.taken.wrapping_add(1);
        Ok(true)
    }

    /// How many chains are available.
    fn waiting(&self, memory: &impl DeviceMemory) -> Result<u16, Broken> {
        let available = memory.load16(self.driver + 2).ok_or(Broken::Ring)?;
        Ok(available.wrapping_sub(self.taken))
    }

    /// Takes back the last [`Self::pop_into`]: the chain is the next one once more.
    pub fn put_back(&mut self) {
        self.taken = self.taken.wrapping_sub(1);
    }

    fn walk(&self, memory: &impl DeviceMemory, head: u16, chain: &mut Chain) -> Result<(), Broken> {
        chain.head = head;
        chain.readable.clear();
        chain.writable.clear();
        let mut reader = Reader::new(memory);
        let mut table = Table { at: self.descriptors, len: self.size.into() };
        let mut index = head;
        let mut indirect = false;
        // Each turn takes a descriptor, and there are no more than this without a loop.
        for _ in 0..self.size {
            let mut descriptor = reader.get(table, index)?;
            if descriptor.flags & INDIRECT != 0 {
                let Buffer { gpa, len } = descriptor.buffer;
                let entries = len / DESCRIPTOR as u32;
                let whole = len.is_multiple_of(DESCRIPTOR as u32) && entries > 0;
                if indirect || !whole || descriptor.flags & NEXT != 0 {
                    return Err(Broken::Indirect);
                }
                indirect = true;
                table = Table { at: gpa, len: entries };
                descriptor = reader.get(table, 0)?;
                if descriptor.flags & INDIRECT != 0 {
                    return Err(Broken::Indirect);
                }
            }
            chain.add(descriptor)?;
            if descriptor.flags & NEXT == 0 {
                return Ok(());
            }
            index = descriptor.next;
        }
        Err(Broken::TooLong)
    }

    /// Gives the chain with this head back, of which the device has written `written` bytes.
    ///
    /// # Errors
    /// [`Broken::Ring`].
    pub fn push_used(
        &mut self,
        memory: &impl DeviceMemory,
        head: u16,
        written: u32,
    ) -> Result<(), Broken> {
        self.push_all(memory, &[(head, written)])
    }

    /// The same for several chains, no more than were taken; the driver sees all of them at once.
    ///
    /// # Errors
    /// [`Broken::Ring`].
    pub fn push_all(
        &mut self,
        memory: &impl DeviceMemory,
        chains: &[(u16, u32)],
    ) -> Result<(), Broken> {
        let mut used = self.used;
        for &(head, written) in chains {
            let slot = self.device + 4 + 8 * u64::from(used % self.size);
            let entry = u64::from(written) << 32 | u64::from(head);
            if !memory.write(slot, &entry.to_le_bytes()) {
                return Err(Broken::Ring);
            }
            used = used.wrapping_add(1);
        }
        // Whoever sees the index sees the entries, and what the device has written.
        fence(SeqCst);
        self.used = used;
        memory.store16(self.device + 2, used).then_some(()).ok_or(Broken::Ring)
    }

    /// Tells the driver that the device need not hear of what it makes available.
    ///
    /// # Errors
    /// [`Broken::Ring`].
    pub fn silence(&mut self, memory: &impl DeviceMemory) -> Result<(), Broken> {
        if !self.silent {
            self.set_flags(memory, NO_NOTIFY)?;
            self.silent = true;
        }
        Ok(())
    }

    /// Takes [`Self::silence`] back. True if something is available that the driver may not have told of.
    ///
    /// # Errors
    /// [`Broken::Ring`].
    pub fn listen(&mut self, memory: &impl DeviceMemory) -> Result<bool, Broken> {
        if !self.silent {
            return Ok(false);
        }
        self.set_flags(memory, 0)?;
        self.silent = false;
        // The flag is out before the index is looked at; the driver does it the other way round.
        fence(SeqCst);
        Ok(self.waiting(memory)? != 0)
    }

    fn set_flags(&self, memory: &impl DeviceMemory, flags: u16) -> Result<(), Broken> {
        memory.store16(self.device, flags).then_some(()).ok_or(Broken::Ring)
    }

    /// True if the driver wants to hear of what was used.
    ///
    /// # Errors
    /// [`Broken::Ring`].
    pub fn wants_interrupt(&self, memory: &impl DeviceMemory) -> Result<bool, Broken> {
        // The index is out before the flag is looked at; the driver does it the other way round.
        fence(SeqCst);
        let flags = memory.load16(self.driver).ok_or(Broken::Ring)?;
        Ok(flags & NO_INTERRUPT == 0)
    }
}

impl Chain {
    fn add(&mut self, descriptor: Descriptor) -> Result<(), Broken> {
        let Buffer { gpa, len } = descriptor.buffer;
        if len == 0 || gpa.checked_add(len.into()).is_none() {
            return Err(Broken::Buffer);
        }
        let to = if descriptor.flags & WRITE != 0 {
            &mut self.writable
        } else if self.writable.is_empty() {
            &mut self.readable
        } else {
            return Err(Broken::Order);
        };
        to.try_push(descriptor.buffer).map_err(|_| Broken::TooLong)
    }
}

#[cfg(test)]
mod tests;
