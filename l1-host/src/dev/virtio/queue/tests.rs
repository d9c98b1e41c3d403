//! Rings that are well-formed, and rings full of noise.

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
    let word =
        u128::from(next) << 112 | u128::from(flags) << 96 | u128::from(len) << 64 | u128::from(gpa);
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
        let table = |ram: &mut Ram| put(ram, TABLE, 0, INDIRECT_TABLE, len, INDIRECT | flags, 0);
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
            let place = |number: usize| if self.indirect { number as u16 } else { order[number] };
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

/// A page with several descriptors is held once; one that may lie in two pages is read.
#[test]
fn descriptors_are_read_in_two_ways() {
    let ram = Ram::new(0x8000);
    put(&ram, TABLE, 0, 0x5000, 16, NEXT, 1);
    put(&ram, TABLE, 1, 0x5010, 16, NEXT, 2);
    put(&ram, TABLE, 2, 0x6000, 16, WRITE, 0);
    let unaligned = INDIRECT_TABLE + 0xff8;
    put(&ram, TABLE, 4, unaligned, 32, INDIRECT, 0);
    put(&ram, unaligned, 0, 0x5000, 16, NEXT, 1);
    put(&ram, unaligned, 1, 0x6000, 16, WRITE, 0);
    offer(&ram, 0, &[0, 4]);
    let mut queue = queue();
    let mut counts = || {
        let before = (ram.holds.get(), ram.reads.get());
        let chain = queue.pop(&ram).unwrap().unwrap();
        assert_eq!(chain.writable[..], [Buffer { gpa: 0x6000, len: 16 }]);
        // Beside the ring's index and entry, which are read by themselves.
        (ram.holds.get() - before.0, ram.reads.get() - before.1 - 2)
    };
    assert_eq!(counts(), (1, 0));
    assert_eq!(counts(), (1, 2));
}
