//! Walks a guest's split virtqueue (virtio 1.2, 2.7), as the device.
//! May: guest-memory. Context: run-loop. Input: guest-controlled rings.
//!
//! Every index, address and flag is read once, checked, and then used. What a guest could gain by
//! changing the rings meanwhile is that it gets another of its own requests.

use super::DeviceMemory;
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

impl Table {
    fn get(self, memory: &impl DeviceMemory, index: u16) -> Result<Descriptor, Broken> {
        if u32::from(index) >= self.len {
            return Err(Broken::Index);
        }
        let at = self.at.checked_add(u64::from(index) * DESCRIPTOR).ok_or(Broken::Ring)?;
        let mut bytes = [0; DESCRIPTOR as usize];
        if !memory.read(at, &mut bytes) {
            return Err(Broken::Ring);
        }
        let word = u128::from_le_bytes(bytes);
        let buffer = Buffer { gpa: word as u64, len: (word >> 64) as u32 };
        Ok(Descriptor { buffer, flags: (word >> 96) as u16, next: (word >> 112) as u16 })
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
        let mut table = Table { at: self.descriptors, len: self.size.into() };
        let mut index = head;
        let mut indirect = false;
        // Each turn takes a descriptor, and there are no more than this without a loop.
        for _ in 0..self.size {
            let mut descriptor = table.get(memory, index)?;
            if descriptor.flags & INDIRECT != 0 {
                let Buffer { gpa, len } = descriptor.buffer;
                let entries = len / DESCRIPTOR as u32;
                let whole = len.is_multiple_of(DESCRIPTOR as u32) && entries > 0;
                if indirect || !whole || descriptor.flags & NEXT != 0 {
                    return Err(Broken::Indirect);
                }
                indirect = true;
                table = Table { at: gpa, len: entries };
                descriptor = table.get(memory, 0)?;
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
mod tests {
    use super::{super::fake::Ram, *};
    use proptest::prelude::*;
    use std::{vec, vec::Vec};

    const SIZE: u16 = 16;
    const TABLE: u64 = 0x1000;
    const DRIVER: u64 = 0x2000;
    const DEVICE: u64 = 0x3000;
    const INDIRECT_TABLE: u64 = 0x4000;

    impl Queue {
        pub(in super::super) fn pop(&mut self, ram: &Ram) -> Result<Option<Chain>, Broken> {
            let mut chain = Chain::default();
            Ok(self.pop_into(ram, &mut chain)?.then_some(chain))
        }
    }

    fn queue() -> Queue {
        Queue::new(SIZE.into(), TABLE, DRIVER, DEVICE).unwrap()
    }

    fn put(ram: &Ram, table: u64, index: u16, gpa: u64, len: u32, flags: u16, next: u16) {
        let word = u128::from(next) << 112
            | u128::from(flags) << 96
            | u128::from(len) << 64
            | u128::from(gpa);
        assert!(ram.write(table + 16 * u64::from(index), &word.to_le_bytes()));
    }

    /// Makes `heads` available.
    fn offer(ram: &Ram, from: u16, heads: &[u16]) {
        for (number, head) in heads.iter().enumerate() {
            let slot = from.wrapping_add(number as u16) % SIZE;
            assert!(ram.store16(DRIVER + 4 + 2 * u64::from(slot), *head));
        }
        assert!(ram.store16(DRIVER + 2, from.wrapping_add(heads.len() as u16)));
    }

    #[test]
    fn chains_come_as_they_were_made() {
        let ram = Ram::new(0x8000);
        put(&ram, TABLE, 3, 0x5000, 16, NEXT, 7);
        put(&ram, TABLE, 7, 0x6000, 512, NEXT | WRITE, 1);
        put(&ram, TABLE, 1, 0x5010, 1, WRITE, 0);
        offer(&ram, 0, &[3]);
        let mut queue = queue();
        let chain = queue.pop(&ram).unwrap().unwrap();
        assert_eq!(chain.head, 3);
        assert_eq!(chain.readable[..], [Buffer { gpa: 0x5000, len: 16 }]);
        let writable = [Buffer { gpa: 0x6000, len: 512 }, Buffer { gpa: 0x5010, len: 1 }];
        assert_eq!(chain.writable[..], writable);
        assert_eq!(queue.pop(&ram), Ok(None));
        queue.put_back();
        assert_eq!(queue.pop(&ram), Ok(Some(chain)));
        queue.push_used(&ram, 3, 513).unwrap();
        assert_eq!(ram.load16(DEVICE + 2), Some(1));
        let mut entry = [0; 8];
        assert!(ram.read(DEVICE + 4, &mut entry));
        assert_eq!(u64::from_le_bytes(entry), 513 << 32 | 3);
        assert_eq!(queue.wants_interrupt(&ram), Ok(true));
        assert!(ram.store16(DRIVER, NO_INTERRUPT));
        assert_eq!(queue.wants_interrupt(&ram), Ok(false));
    }

    #[test]
    fn a_driver_that_was_told_not_to_tell_is_looked_after() {
        let ram = Ram::new(0x8000);
        put(&ram, TABLE, 0, 0x5000, 16, 0, 0);
        let mut queue = queue();
        assert_eq!(queue.listen(&ram), Ok(false));
        queue.silence(&ram).unwrap();
        assert_eq!(ram.load16(DEVICE), Some(NO_NOTIFY));
        // It believes the flag for as long as it is there.
        offer(&ram, 0, &[0]);
        assert_eq!(queue.listen(&ram), Ok(true), "it has not told of this one");
        assert_eq!(ram.load16(DEVICE), Some(0));
        let mut chain = Chain::default();
        assert_eq!(queue.pop_into(&ram, &mut chain), Ok(true));
        assert_eq!(chain.readable[..], [Buffer { gpa: 0x5000, len: 16 }]);
        queue.silence(&ram).unwrap();
        assert_eq!(queue.listen(&ram), Ok(false), "there is no more");
        // What was in it is in it no longer.
        put(&ram, TABLE, 1, 0x6000, 512, WRITE, 0);
        offer(&ram, 1, &[1]);
        assert_eq!(queue.pop_into(&ram, &mut chain), Ok(true));
        assert_eq!((chain.head, chain.readable.len(), chain.writable.len()), (1, 0, 1));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let broken = |prepare: &dyn Fn(&mut Ram)| {
            let mut ram = Ram::new(0x8000);
            offer(&ram, 0, &[0]);
            prepare(&mut ram);
            queue().pop(&ram)
        };
        assert_eq!(broken(&|ram| offer(ram, 0, &[SIZE])), Err(Broken::Index));
        let too_many = |ram: &mut Ram| assert!(ram.store16(DRIVER + 2, SIZE + 1));
        assert_eq!(broken(&too_many), Err(Broken::Overrun));
        assert_eq!(broken(&|ram| put(ram, TABLE, 0, 0x5000, 1, NEXT, 0)), Err(Broken::TooLong));
        assert_eq!(broken(&|ram| put(ram, TABLE, 0, 0x5000, 1, NEXT, 99)), Err(Broken::Index));
        assert_eq!(broken(&|ram| put(ram, TABLE, 0, 0x5000, 0, 0, 0)), Err(Broken::Buffer));
        assert_eq!(broken(&|ram| put(ram, TABLE, 0, u64::MAX, 2, 0, 0)), Err(Broken::Buffer));
        let order = |ram: &mut Ram| {
            put(ram, TABLE, 0, 0x5000, 1, NEXT | WRITE, 1);
            put(ram, TABLE, 1, 0x5000, 1, 0, 0);
        };
        assert_eq!(broken(&order), Err(Broken::Order));
        for page in [TABLE, DRIVER] {
            let hide = |ram: &mut Ram| assert!(ram.private.insert(page / 4096));
            assert_eq!(broken(&hide), Err(Broken::Ring));
        }
        for (len, flags) in [(0, 0), (17, 0), (16, NEXT)] {
            let table =
                |ram: &mut Ram| put(ram, TABLE, 0, INDIRECT_TABLE, len, INDIRECT | flags, 0);
            assert_eq!(broken(&table), Err(Broken::Indirect), "{len} {flags}");
        }
        let nested = |ram: &mut Ram| {
            put(ram, TABLE, 0, INDIRECT_TABLE, 32, INDIRECT, 0);
            put(ram, INDIRECT_TABLE, 0, 0x5000, 1, NEXT, 1);
            put(ram, INDIRECT_TABLE, 1, TABLE, 16, INDIRECT, 0);
        };
        assert_eq!(broken(&nested), Err(Broken::Indirect));
    }

    #[test]
    fn sizes_and_places_are_checked() {
        let place = |size, at| Queue::new(size, at, DRIVER, DEVICE);
        assert!(place(256, TABLE).is_some());
        for size in [0, 3, 257, 512, u32::MAX] {
            assert_eq!(place(size, TABLE), None, "{size}");
        }
        assert_eq!(place(16, TABLE + 8), None);
        assert_eq!(place(16, !15), None, "past the last address");
        assert_eq!(Queue::new(16, TABLE, DRIVER + 1, DEVICE), None);
        assert_eq!(Queue::new(16, TABLE, DRIVER, DEVICE + 2), None);
    }

    /// A chain to be laid out: buffers to read, buffers to write, and whether by an indirect table.
    #[derive(Clone, Debug)]
    struct Wanted {
        readable: Vec<Buffer>,
        writable: Vec<Buffer>,
        indirect: bool,
    }

    fn buffers(most: usize) -> impl Strategy<Value = Vec<Buffer>> {
        let buffer = (0..u64::MAX / 2, 1..u32::MAX).prop_map(|(gpa, len)| Buffer { gpa, len });
        prop::collection::vec(buffer, 0..most)
    }

    fn wanted() -> impl Strategy<Value = Wanted> {
        (buffers(7), buffers(7), any::<bool>())
            .prop_filter("a chain has a buffer", |(r, w, _)| r.len() + w.len() > 0)
            .prop_map(|(readable, writable, indirect)| Wanted { readable, writable, indirect })
    }

    impl Wanted {
        /// Lays it out from descriptor `order[0]` on.
        fn lay(&self, ram: &Ram, order: &[u16]) {
            let all: Vec<_> = self
                .readable
                .iter()
                .map(|buffer| (buffer, 0))
                .chain(self.writable.iter().map(|buffer| (buffer, WRITE)))
                .collect();
            if self.indirect {
                put(ram, TABLE, order[0], INDIRECT_TABLE, 16 * all.len() as u32, INDIRECT, 0);
            }
            for (number, (buffer, flags)) in all.iter().enumerate() {
                let last = number + 1 == all.len();
                let flags = flags | if last { 0 } else { NEXT };
                let place =
                    |number: usize| if self.indirect { number as u16 } else { order[number] };
                let next = if last { 0 } else { place(number + 1) };
                let table = if self.indirect { INDIRECT_TABLE } else { TABLE };
                put(ram, table, place(number), buffer.gpa, buffer.len, flags, next);
            }
        }
    }

    proptest! {
        /// Chains that are well-formed come out as they were laid out, wherever the indices are.
        #[test]
        fn well_formed_chains_come_out(
            chains in prop::collection::vec(wanted(), 1..40),
            order in Just((0..SIZE).collect::<Vec<_>>()).prop_shuffle(),
            start in any::<u16>(),
        ) {
            let ram = Ram::new(0x8000);
            let mut queue = Queue { taken: start, used: start, ..queue() };
            for (number, wanted) in chains.iter().enumerate() {
                wanted.lay(&ram, &order);
                offer(&ram, start.wrapping_add(number as u16), &order[..1]);
                let chain = queue.pop(&ram).unwrap().unwrap();
                prop_assert_eq!(chain.head, order[0]);
                prop_assert_eq!(&chain.readable[..], &wanted.readable[..]);
                prop_assert_eq!(&chain.writable[..], &wanted.writable[..]);
                queue.push_used(&ram, chain.head, 1).unwrap();
                let used = start.wrapping_add(number as u16).wrapping_add(1);
                prop_assert_eq!(ram.load16(DEVICE + 2), Some(used));
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
        /// Whatever lies in the rings, each chain is bounded and ordered, or the queue is broken.
        #[test]
        fn hostile_rings_are_bounded(
            seed in any::<u64>(),
            size in (0..9u32).prop_map(|shift| 1 << shift),
            descriptors in (0..0x700u64).prop_map(|at| at * 16),
            driver in (0..0x3800u64).prop_map(|at| at * 2),
            device in (0..0x1c00u64).prop_map(|at| at * 4),
            small in any::<bool>(),
        ) {
            let mut random = seed | 1;
            let mut next = || {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                random
            };
            let ram = Ram::new(0x8000);
            // Small numbers make chains that go on for a while.
            let bytes = vec![0u8; 0x8000];
            let bytes = bytes.iter().map(|_| next() as u8 & if small { 7 } else { 0xff }).collect();
            *ram.bytes.borrow_mut() = bytes;
            let Some(mut queue) = Queue::new(size, descriptors, driver, device) else {
                return Ok(());
            };
            // Fifty looks at a ring that the driver goes on changing.
            for _ in 0..50 {
                match queue.pop(&ram) {
                    Ok(None) | Err(_) => {}
                    Ok(Some(chain)) => {
                        let buffers = chain.readable.len() + chain.writable.len();
                        prop_assert!((1..=size as usize).contains(&buffers));
                        for buffer in chain.readable.iter().chain(&chain.writable) {
                            prop_assert!(buffer.len > 0);
                            prop_assert!(buffer.gpa.checked_add(buffer.len.into()).is_some());
                        }
                        let _ = queue.push_used(&ram, chain.head, 0);
                    }
                }
                let available = queue.taken.wrapping_add((next() % (u64::from(size) + 2)) as u16);
                let _ = ram.store16(driver + 2, available);
            }
        }
    }
}
