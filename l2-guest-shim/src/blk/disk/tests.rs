//! A connection between a front end and a device that both are a few lines.

use super::*;
use crate::{
    blk::device::Discard,
    guest_memory::fake::Ram,
    virtio::fake::{Seen, Served},
};
use proptest::prelude::*;

mod hostile;

/// Pages: the grant table, the ring, the queue, then those to be lent.
const RING: u64 = 0x1000;
const QUEUE: u64 = 0x2000;
const FIRST_LENT: u32 = 3;
const PAGES: u32 = 80;
const GRANTS: Grants = Grants { table: 0, entries: 512, ram_pages: PAGES as u64 };
const RING_GRANT: u32 = 511;
const PROPERTIES: Properties = Properties {
    sectors: 64,
    block: 512,
    segments: 32,
    read_only: false,
    flush: true,
    discard: Some(Discard { most: 40, alignment: 8 }),
    queues: 1,
};

/// Kernel and device around a connection.
struct World {
    ram: Ram,
    connection: Connection<'static>,
    requests: u32,
    disk: Vec<u8>,
    device: Served,
    flushes: usize,
    /// The device answers with this status.
    status: u8,
}

impl World {
    fn with(properties: Properties) -> Self {
        let ram = Ram::new(PAGES as usize);
        for page in FIRST_LENT..PAGES {
            lend(&ram, page, 1, page);
        }
        lend(&ram, RING_GRANT, 1, (RING >> 12) as u32);
        let connection =
            Connection::new(&ram, GRANTS, properties, RING_GRANT, QUEUE, lossy()).unwrap();
        let device = Served::new(connection.setup());
        let disk = (0..64 * 512_u32).map(|n| (n / 512) as u8).collect();
        Self { ram, connection, requests: 0, disk, device, flushes: 0, status: answer::OK }
    }

    fn new() -> Self {
        Self::with(PROPERTIES)
    }

    /// Puts a request into the ring.
    fn ask(&mut self, head: [u8; 4], sector: u64, segments: &[(u32, u8, u8)]) {
        let at = RING + 64 + u64::from(self.requests % Ring::PLACES) * SIZE as u64;
        self.ram.write(at, &[0; SIZE]).unwrap();
        self.ram.write(at, &head).unwrap();
        self.ram.write(at + 8, &u64::from(self.requests).to_le_bytes()).unwrap();
        self.ram.write(at + 16, &sector.to_le_bytes()).unwrap();
        self.segments(at + 24, segments);
        self.requests = self.requests.wrapping_add(1);
        self.ram.store32(RING, self.requests).unwrap();
    }

    fn segments(&self, at: u64, segments: &[(u32, u8, u8)]) {
        for (&(grant, first, last), at) in segments.iter().zip((at..).step_by(8)) {
            self.ram.write(at, &grant.to_le_bytes()).unwrap();
            self.ram.write(at + 4, &[first, last]).unwrap();
        }
    }

    fn kick(&mut self) -> Outcome {
        self.connection.kick(&self.ram)
    }

    /// The device serves what it was given: how many. Each chain is header, data, status.
    fn serve(&mut self) -> usize {
        let chains = core::iter::from_fn(|| self.device.take(&self.ram)).collect::<Vec<_>>();
        for (head, chain) in &chains {
            self.execute(chain);
            self.device.put(&self.ram, (*head).into(), 0);
        }
        chains.len()
    }

    fn execute(&mut self, chain: &[Seen]) {
        let (header, 16, false) = chain[0] else { panic!("{chain:?}") };
        let (status, 1, true) = chain[chain.len() - 1] else { panic!("{chain:?}") };
        let kind = self.ram.load32(header).unwrap();
        let mut at = self.ram.load32(header + 8).unwrap() as usize * 512;
        for &(gpa, len, writes) in &chain[1..chain.len() - 1] {
            if kind == virtio::DISCARD {
                let mut range = [0; RANGE];
                self.ram.read(gpa, &mut range[..len]).unwrap();
                let range = u128::from_le_bytes(range);
                let (first, sectors) = (range as u64 as usize, (range >> 64) as usize);
                self.disk[512 * first..512 * (first + sectors)].fill(0xdd);
                continue;
            }
            assert_eq!(writes, kind == virtio::IN);
            if writes {
                self.ram.write(gpa, &self.disk[at..at + len]).unwrap();
            } else {
                self.ram.read(gpa, &mut self.disk[at..at + len]).unwrap();
            }
            at += len;
        }
        self.flushes += usize::from(kind == virtio::FLUSH);
        self.ram.write(status, &[self.status]).unwrap();
    }

    fn complete(&mut self) -> Outcome {
        self.connection.complete(&self.ram)
    }

    /// Responses so far, and what the one with number `number` says: id, operation, status.
    fn response(&self, number: u32) -> (u32, u64, u8, i16) {
        let at = RING + 64 + u64::from(number % Ring::PLACES) * SIZE as u64;
        let mut bytes = [0; 12];
        self.ram.read(at, &mut bytes).unwrap();
        let [id @ .., operation, _, low, high] = bytes;
        let shown = self.ram.load32(RING + 8).unwrap();
        (shown, u64::from_le_bytes(id), operation, i16::from_le_bytes([low, high]))
    }

    /// Asks for one thing and takes it all the way: its status.
    fn status(&mut self, head: [u8; 4], sector: u64, segments: &[(u32, u8, u8)]) -> i16 {
        self.ask(head, sector, segments);
        let number = self.requests - 1;
        self.kick();
        self.serve();
        self.complete();
        let (shown, id, operation, status) = self.response(number);
        assert_eq!((shown, id, operation), (self.requests, number.into(), head[0]));
        assert!(self.nothing_lent_is_in_use());
        status
    }

    fn nothing_lent_is_in_use(&self) -> bool {
        (0..PAGES).all(|page| self.ram.load16(8 * u64::from(page)).unwrap() & 0x18 == 0)
    }

    fn byte(&self, gpa: u64) -> u8 {
        let mut byte = [0];
        self.ram.read(gpa, &mut byte).unwrap();
        byte[0]
    }
}

fn lossy() -> &'static AtomicBool {
    Box::leak(Box::new(AtomicBool::new(false)))
}

fn lend(ram: &Ram, reference: u32, flags: u32, frame: u32) {
    ram.store32(8 * u64::from(reference), flags).unwrap();
    ram.store32(8 * u64::from(reference) + 4, frame).unwrap();
}

const READ: [u8; 4] = [0, 1, 0, 0];
const TO_DISK: [u8; 4] = [1, 1, 0, 0];

#[test]
fn a_read_and_a_write() {
    let mut world = World::new();
    world.ram.store32(RING + 12, 1).unwrap();
    world.ask([0, 2, 0, 0], 5, &[(10, 0, 7), (20, 2, 2)]);
    assert_eq!(world.kick(), Outcome { doorbell: true, ..Outcome::default() });
    assert_eq!(world.ram.load16(80), Some(0x19), "the page is being written");
    assert_eq!(world.complete(), Outcome::default());
    assert_eq!(world.serve(), 1);
    assert_eq!(world.complete(), Outcome { notify: true, ..Outcome::default() });
    assert_eq!(world.response(0), (1, 0, 0, status::OKAY));
    assert_eq!((world.byte(0xa000), world.byte(0xa000 + 512), world.byte(0xafff)), (5, 6, 12));
    assert_eq!((world.byte(0x14000 + 1024), world.byte(0x14000)), (13, 0));
    assert!(world.nothing_lent_is_in_use());

    world.ram.write(0xb200, &[99; 512]).unwrap();
    assert_eq!(world.status(TO_DISK, 63, &[(11, 1, 1)]), status::OKAY);
    assert_eq!(world.disk[63 * 512..], [99; 512]);
}

#[test]
fn neighbours_are_one_buffer() {
    let mut world = World::new();
    world.ask([0, 4, 0, 0], 0, &[(10, 0, 7), (11, 0, 7), (12, 0, 3), (14, 0, 0)]);
    world.kick();
    assert_eq!(world.connection.queue.free(), 128 - 4);
    world.serve();
    world.complete();
    assert_eq!(world.connection.queue.free(), 128);
    assert_eq!((world.byte(0xb000), world.byte(0xc000), world.byte(0xe000)), (8, 16, 20));
}

#[test]
fn indirect_segments() {
    let mut world = World::new();
    let all: Vec<_> = (0..32).map(|n| (10 + 2 * n, 0, 0)).collect();
    world.segments(9 << 12, &all);
    let ask = |world: &mut World, head: [u8; 4], grant: u32| {
        world.ask(head, 0, &[]);
        let at = RING + 64 + u64::from((world.requests - 1) % Ring::PLACES) * SIZE as u64;
        world.ram.write(at + 28, &grant.to_le_bytes()).unwrap();
        world.kick();
        world.serve();
        world.complete();
        assert!(world.nothing_lent_is_in_use());
        world.response(world.requests - 1).3
    };
    assert_eq!(ask(&mut world, [6, 0, 32, 0], 9), status::OKAY);
    assert_eq!((world.byte(10 << 12), world.byte(72 << 12)), (0, 31));
    assert_eq!(ask(&mut world, [6, 1, 32, 0], 9), status::OKAY);
    assert_eq!(ask(&mut world, [6, 0, 32, 0], 2), status::ERROR, "the page is not lent");
    world.segments(9 << 12, &[(10, 1, 0)]);
    assert_eq!(ask(&mut world, [6, 0, 32, 0], 9), status::ERROR, "less than no sector");
}

#[test]
fn a_flush_is_passed_on() {
    let mut world = World::new();
    assert_eq!(world.status([3, 0, 0, 0], 0, &[]), status::OKAY);
    assert_eq!(world.flushes, 1);
    let mut plain = World::with(Properties { flush: false, ..PROPERTIES });
    assert_eq!(plain.status([3, 0, 0, 0], 0, &[]), status::EOPNOTSUPP);
}

/// Linux goes on after a failed flush as if nothing had happened.
#[test]
fn nothing_is_written_after_a_failed_flush() {
    let mut world = World::new();
    let write = ([op::WRITE, 1, 0, 0], 1, &[(FIRST_LENT, 0, 0)]);
    assert_eq!(world.status(write.0, write.1, write.2), status::OKAY);
    world.status = answer::IOERR;
    assert_eq!(world.status([op::FLUSH, 0, 0, 0], 0, &[]), status::ERROR);
    world.status = answer::OK;
    assert_eq!(world.status(write.0, write.1, write.2), status::ERROR);
    assert_eq!(world.status([op::FLUSH, 0, 0, 0], 0, &[]), status::ERROR);
    let read = world.status([op::READ, 1, 0, 0], 1, &[(FIRST_LENT, 0, 0)]);
    assert_eq!(read, status::OKAY, "what is there can be read");
}

/// A flush covers what any ring of the disk has written, and so does its failure.
#[test]
fn nothing_is_written_by_another_ring_either() {
    let (mut first, mut second) = (World::new(), World::new());
    second.connection.lossy = first.connection.lossy;
    let write = ([op::WRITE, 1, 0, 0], 1, &[(FIRST_LENT, 0, 0)]);
    assert_eq!(second.status(write.0, write.1, write.2), status::OKAY);
    first.status = answer::IOERR;
    assert_eq!(first.status([op::FLUSH, 0, 0, 0], 0, &[]), status::ERROR);
    assert_eq!(second.status(write.0, write.1, write.2), status::ERROR);
}

#[test]
fn discards_are_passed_on() {
    let mut world = World::new();
    let mut discard = |sector: u64, sectors: u32| {
        // The number of sectors is where a segment's grant would be.
        world.status([op::DISCARD, 0, 0, 0], sector, &[(sectors, 0, 0)])
    };
    assert_eq!(discard(10, 40), status::OKAY);
    assert_eq!(discard(10, 41), status::ERROR, "too many");
    assert_eq!(discard(25, 40), status::ERROR, "past the end");
    assert_eq!(discard(u64::MAX, 1), status::ERROR);
    let discarded = world.disk.chunks(512).map(|sector| sector.iter().all(|&byte| byte == 0xdd));
    assert!(discarded.eq((0..64).map(|sector| (10..50).contains(&sector))));
    world.connection.properties.read_only = true;
    assert_eq!(world.status([op::DISCARD, 0, 0, 0], 0, &[(1, 0, 0)]), status::ERROR);
}

#[test]
fn what_cannot_be_is_refused() {
    let mut world = World::new();
    let ok = [(10, 0, 0)];
    assert_eq!(world.status([2, 1, 0, 0], 0, &ok), status::EOPNOTSUPP, "barriers");
    assert_eq!(world.status(READ, 64, &ok), status::ERROR, "past the end");
    assert_eq!(world.status(READ, u64::MAX, &ok), status::ERROR);
    assert_eq!(world.status(READ, 63, &[(10, 0, 1)]), status::ERROR);
    assert_eq!(world.status(READ, 0, &[(10, 0, 8)]), status::ERROR, "past the page");
    assert_eq!(world.status([0, 2, 0, 0], 0, &[(10, 0, 0), (2, 0, 0)]), status::ERROR);
    lend(&world.ram, 10, 1 | 4, 10);
    assert_eq!(world.status(READ, 0, &ok), status::ERROR, "lent for reading");
    assert_eq!(world.status(TO_DISK, 0, &ok), status::OKAY);
    world.status = 1;
    assert_eq!(world.status(TO_DISK, 0, &ok), status::ERROR, "the device says so");
    world.status = 2;
    assert_eq!(world.status(TO_DISK, 0, &ok), status::EOPNOTSUPP);
    let mut world = World::with(Properties { read_only: true, ..PROPERTIES });
    assert_eq!(world.status(TO_DISK, 0, &ok), status::ERROR);
    assert_eq!(world.status(READ, 0, &ok), status::OKAY);
}

#[test]
fn requests_wait_for_room() {
    let mut world = World::new();
    let all: Vec<_> = (0..11).map(|n| (10 + 2 * n, 0, 0)).collect();
    for _ in 0..Ring::PLACES {
        world.ask([0, 11, 0, 0], 0, &all);
    }
    assert!(world.kick().doorbell);
    let mut rounds = 0;
    while world.ram.load32(RING + 8).unwrap() < Ring::PLACES {
        assert_eq!(world.serve(), if rounds < 3 { 9 } else { 5 });
        assert_eq!(world.complete().doorbell, rounds < 3);
        rounds += 1;
    }
    assert_eq!(
        world.ram.load32(RING + 4),
        Some(Ring::PLACES + 1),
        "it asks to be told of the next"
    );
    assert!(
        (0..Ring::PLACES).all(|n| world.response(n) == (Ring::PLACES, n.into(), 0, status::OKAY))
    );
    assert!(world.nothing_lent_is_in_use());
}

#[test]
fn the_end_gives_everything_back() {
    let mut world = World::new();
    world.ask(READ, 0, &[(10, 0, 0)]);
    world.kick();
    assert_eq!(world.ram.load16(8 * u64::from(RING_GRANT)), Some(0x19));
    world.connection.close(&world.ram);
    assert!(world.nothing_lent_is_in_use());
    assert_eq!(world.ram.load16(8 * u64::from(RING_GRANT)), Some(1));
}

#[test]
fn a_ring_that_is_not_lent_is_refused() {
    let ram = Ram::new(3);
    assert!(Connection::new(&ram, GRANTS, PROPERTIES, RING_GRANT, QUEUE, lossy()).is_none());
    lend(&ram, RING_GRANT, 1 | 4, 1);
    assert!(Connection::new(&ram, GRANTS, PROPERTIES, RING_GRANT, QUEUE, lossy()).is_none());
}

#[test]
fn a_broken_ring_is_left_alone() {
    let mut world = World::new();
    world.ram.store32(RING, 33).unwrap();
    assert!(world.kick().broken);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is in the ring: each request taken is answered once, and nothing stays in use.
    #[test]
    fn any_requests(raw in prop::collection::vec(
        (prop::collection::vec(any::<u8>(), SIZE), 0..7u8, 0..13u8, 0..70u64), 1..120))
    {
        let mut world = World::new();
        for chunk in raw.chunks(20) {
            for (bytes, operation, count, sector) in chunk {
                world.ask([*operation, *count, 0, 0], *sector, &[]);
                let at = RING + 64 + u64::from((world.requests - 1) % Ring::PLACES) * SIZE as u64;
                // Grants that may exist, sectors that may be within a page.
                for (n, segment) in bytes[24..].chunks_exact(8).enumerate() {
                    let [a, _, _, _, b, c, ..] = *segment else { unreachable!() };
                    let segment = [a % 90, 0, 0, 0, b % 9, c % 10, 0, 0];
                    world.ram.write(at + 24 + 8 * n as u64, &segment).unwrap();
                }
            }
            prop_assert!(!world.kick().broken);
            while world.serve() > 0 {
                world.complete();
            }
            prop_assert_eq!(world.ram.load32(RING + 8), Some(world.requests));
            prop_assert!(world.nothing_lent_is_in_use());
            prop_assert_eq!(world.connection.queue.free(), 128);
        }
    }
}
