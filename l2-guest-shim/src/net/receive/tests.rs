//! Half a connection between a front end that has buffers and a device that fills them.

use super::*;
use crate::{guest_memory::fake::Ram, virtio::fake::Served};
use proptest::prelude::*;

/// Pages: the grant table, the ring, two for the queue, then those to be lent.
const RING: u64 = 0x1000;
const QUEUE: u64 = 0x2000;
const FIRST_LENT: u32 = 4;
const PAGES: u32 = 60;
const GRANTS: Grants = Grants { table: 0, entries: 512, ram_pages: PAGES as u64 };
const RING_GRANT: u32 = 511;

/// Kernel and device around the half.
struct World {
    ram: Ram,
    receive: Receive,
    device: Served,
    requests: u32,
}

impl World {
    fn new() -> Self {
        let ram = Ram::new(PAGES as usize);
        for page in FIRST_LENT..PAGES {
            lend(&ram, page, 1, page);
        }
        lend(&ram, RING_GRANT, 1, (RING >> 12) as u32);
        let receive = Receive::new(&ram, GRANTS, RING_GRANT, QUEUE).unwrap();
        let device = Served::new(receive.setup());
        Self { ram, receive, device, requests: 0 }
    }

    fn place(&self, number: u32) -> u64 {
        RING + 64 + u64::from(number % Ring::PLACES) * RECEIVED as u64
    }

    /// Puts buffers with these grants into the ring.
    fn lend(&mut self, grants: &[u32]) -> Outcome {
        for &grant in grants {
            let id = self.requests as u16 ^ 0x100;
            let [a, b] = id.to_le_bytes();
            let [c, d, e, f] = grant.to_le_bytes();
            self.ram.write(self.place(self.requests), &[a, b, 0, 0, c, d, e, f]).unwrap();
            self.requests = self.requests.wrapping_add(1);
        }
        self.ram.store32(RING, self.requests).unwrap();
        // The front end wants to be told of the next response.
        let responses = self.ram.load32(RING + 8).unwrap();
        self.ram.store32(RING + 12, responses.wrapping_add(1)).unwrap();
        self.receive.kick(&self.ram)
    }

    /// The device puts a frame with these header bytes into as many buffers as it needs; false if there
    /// are too few.
    fn frame(&mut self, flags: u8, frame: &[u8]) -> bool {
        let all = [&[flags, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], frame].concat();
        let pages: Vec<_> = all.chunks(4096).collect();
        let count = pages.len() as u16;
        let mut chains = Vec::new();
        for _ in &pages {
            let Some(chain) = self.device.take(&self.ram) else { return false };
            chains.push(chain);
        }
        for (page, (_, chain)) in pages.iter().zip(&chains) {
            let &[(gpa, 4096, true)] = &chain[..] else { panic!("{chain:?}") };
            self.ram.write(gpa, page).unwrap();
        }
        self.ram.write(chains[0].1[0].0 + 10, &count.to_le_bytes()).unwrap();
        for (page, (head, _)) in pages.iter().zip(chains) {
            self.device.put(&self.ram, head.into(), page.len() as u32);
        }
        true
    }

    /// The response to request `number`, and how many are shown.
    fn response(&self, number: u32) -> (u32, Filled) {
        let mut bytes = [0; RECEIVED];
        self.ram.read(self.place(number), &mut bytes).unwrap();
        let [a, b, c, d, e, f, g, h] = bytes;
        let word = |low, high| u16::from_le_bytes([low, high]);
        let filled = Filled {
            id: word(a, b),
            offset: word(c, d),
            flags: word(e, f),
            status: word(g, h) as i16,
        };
        (self.ram.load32(RING + 8).unwrap(), filled)
    }

    fn is_in_use(&self, reference: u32) -> bool {
        self.ram.load16(8 * u64::from(reference)).unwrap() & 0x18 != 0
    }

    fn nothing_lent_is_in_use(&self) -> bool {
        (0..PAGES).all(|page| !self.is_in_use(page))
    }
}

fn lend(ram: &Ram, reference: u32, flags: u32, frame: u32) {
    ram.store32(8 * u64::from(reference), flags).unwrap();
    ram.store32(8 * u64::from(reference) + 4, frame).unwrap();
}

const DOORBELL: Outcome = Outcome { doorbell: true, notify: false, broken: false };
const NOTIFY: Outcome = Outcome { doorbell: false, notify: true, broken: false };

#[test]
fn a_frame_in_one_buffer() {
    let mut world = World::new();
    assert_eq!(world.lend(&[10, 20]), DOORBELL);
    assert!(world.is_in_use(10) && world.is_in_use(20));
    assert_eq!(world.ram.load32(RING + 4), Some(3), "it asks to be told of the next");
    assert_eq!(world.receive.complete(&world.ram), Outcome::default());
    assert!(world.frame(0, b"fourteen bytes and more"));
    assert_eq!(world.receive.complete(&world.ram), NOTIFY);
    let filled = Filled { id: 0x100, offset: 12, flags: 0, status: 23 };
    assert_eq!(world.response(0), (1, filled));
    let mut bytes = [0; 23];
    world.ram.read((10 << 12) + 12, &mut bytes).unwrap();
    assert_eq!(&bytes, b"fourteen bytes and more");
    assert!(!world.is_in_use(10) && world.is_in_use(20));
    assert_eq!(world.receive.complete(&world.ram), Outcome::default());
}

#[test]
fn a_frame_in_several_buffers() {
    let mut world = World::new();
    world.lend(&[10, 11, 12, 13]);
    assert!(world.frame(0, &[7; 9000]));
    assert!(world.frame(0, &[8; 60]));
    assert_eq!(world.receive.complete(&world.ram), NOTIFY);
    let filled = |id, offset, flags, status| (4, Filled { id, offset, flags, status });
    assert_eq!(world.response(0), filled(0x100, 12, MORE_DATA, 4084));
    assert_eq!(world.response(1), filled(0x101, 0, MORE_DATA, 4096));
    assert_eq!(world.response(2), filled(0x102, 0, 0, 820));
    assert_eq!(world.response(3), filled(0x103, 12, 0, 60));
    assert!(world.nothing_lent_is_in_use());
}

impl World {
    /// The device puts a long packet of IPv4 to be divided by 1448 into buffers, of which the second stays
    /// empty.
    fn long_frame(&mut self, frame: &[u8]) {
        let header = [1, header::GSO_TCPV4, 0, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0];
        let all = [&header[..], frame].concat();
        let mut pages: Vec<_> = all.chunks(4096).collect();
        pages.insert(1, &[]);
        let count = (pages.len() as u16).to_le_bytes();
        let mut first = None;
        for page in pages {
            let (head, chain) = self.device.take(&self.ram).unwrap();
            let gpa = chain[0].0;
            self.ram.write(gpa, page).unwrap();
            self.ram.write(*first.get_or_insert(gpa) + 10, &count).unwrap();
            self.device.put(&self.ram, head.into(), page.len() as u32);
        }
    }

    fn raw(&self, number: u32) -> [u8; RECEIVED] {
        let mut bytes = [0; RECEIVED];
        self.ram.read(self.place(number), &mut bytes).unwrap();
        bytes
    }
}

#[test]
fn a_long_packet_is_told_how_to_be_divided() {
    const EXTRA: [u8; RECEIVED] = [1, 0, 0xa8, 5, 1, 0, 0, 0];
    let mut world = World::new();
    world.lend(&[10, 11, 12, 13, 14, 15]);
    world.long_frame(&[7; 5000]);
    world.long_frame(&[8; 1000]);
    assert!(world.frame(0, &[9; 60]));
    assert_eq!(world.receive.complete(&world.ram), NOTIFY);
    let flags = CSUM_BLANK | DATA_VALIDATED | EXTRA_INFO;
    let filled = |id, offset, flags, status| (6, Filled { id, offset, flags, status });
    assert_eq!(world.response(0), filled(0x100, 12, flags | MORE_DATA, 4084));
    assert_eq!(world.raw(1), EXTRA, "in place of a buffer");
    assert_eq!(world.response(2), filled(0x102, 0, 0, 916));
    assert_eq!(world.response(3), filled(0x103, 12, flags, 1000));
    assert_eq!(world.raw(4), EXTRA);
    assert_eq!(world.response(5), filled(0x105, 12, 0, 60));
    assert!(world.nothing_lent_is_in_use());
}

#[test]
fn a_buffer_that_is_not_lent_can_say_how_to_divide() {
    let mut world = World::new();
    world.lend(&[10, 500, 12, 13, 14]);
    world.long_frame(&[7; 5000]);
    assert_eq!(world.receive.complete(&world.ram), NOTIFY);
    assert_eq!(world.raw(1), [1, 0, 0xa8, 5, 1, 0, 0, 0]);
    let status = |number| world.response(number).1.status;
    assert_eq!([2, 3].map(status), [status::ERROR, 916], "the frame is lost, the order is kept");
    assert!(world.frame(0, &[9; 60]));
    assert_eq!(world.receive.complete(&world.ram), Outcome::default(), "it has been told");
    assert_eq!(world.response(4).1.status, 60);
    assert!(world.nothing_lent_is_in_use());
}

#[test]
fn the_front_end_is_told_of_checksums() {
    let mut world = World::new();
    world.lend(&[10, 11, 12]);
    for flags in [1, 2, 0] {
        assert!(world.frame(flags, &[0; 60]));
    }
    world.receive.complete(&world.ram);
    let flags = [0, 1, 2].map(|number| world.response(number).1.flags);
    assert_eq!(flags, [CSUM_BLANK | DATA_VALIDATED, DATA_VALIDATED, 0]);
}

#[test]
fn what_is_not_lent_is_answered_in_its_turn() {
    let mut world = World::new();
    let error = |number| (number, status::ERROR);
    assert_eq!(world.lend(&[2]), NOTIFY, "nothing is before it");
    assert_eq!((world.response(0).0, world.response(0).1.status), error(1));
    lend(&world.ram, 9, 1 | 4, 9);
    assert_eq!(world.lend(&[10, 9, 600, 11]), DOORBELL);
    assert_eq!(world.response(0).0, 1);
    assert!(world.frame(0, &[0; 60]));
    assert_eq!(world.receive.complete(&world.ram), NOTIFY);
    assert_eq!((world.response(1).0, world.response(1).1.status), (4, 60));
    assert_eq!([2, 3].map(|number| world.response(number).1.status), [status::ERROR; 2]);
    assert!(world.frame(0, &[0; 61]));
    world.receive.complete(&world.ram);
    assert_eq!((world.response(4).0, world.response(4).1.status), (5, 61));
    // Within a frame, it is a part of it.
    world.lend(&[10, 2, 11]);
    assert!(world.frame(0, &[0; 5000]));
    world.receive.complete(&world.ram);
    let [a, b, c] = [5, 6, 7].map(|number| world.response(number).1);
    assert_eq!((a.flags, b.flags, c.flags), (MORE_DATA, MORE_DATA, 0));
    assert_eq!((a.status, b.status, c.status), (4084, status::ERROR, 916));
}

#[test]
fn a_length_that_cannot_be_is_an_error() {
    let mut world = World::new();
    world.lend(&[10, 11, 12, 13]);
    for page in 10..14 {
        world.ram.write(page << 12, &[9; HEADER]).unwrap();
    }
    for len in [0, 11, 4097, u32::MAX] {
        let (head, _) = world.device.take(&world.ram).unwrap();
        world.device.put(&world.ram, head.into(), len);
    }
    world.receive.complete(&world.ram);
    assert_eq!([0, 1, 2, 3].map(|number| world.response(number).1.status), [status::ERROR; 4]);
    assert_eq!([0, 1].map(|number| world.response(number).1.flags), [0; 2], "they stand alone");
}

#[test]
fn buffers_used_out_of_turn_end_the_connection() {
    let mut world = World::new();
    world.lend(&[10, 11]);
    let first = world.device.take(&world.ram).unwrap().0;
    let second = world.device.take(&world.ram).unwrap().0;
    world.device.put(&world.ram, second.into(), 60);
    world.device.put(&world.ram, first.into(), 60);
    assert!(world.receive.complete(&world.ram).broken);
    assert!(world.is_in_use(10));
    world.receive.close(&world.ram);
    assert!(world.nothing_lent_is_in_use());
    let mut world = World::new();
    world.device.put(&world.ram, 0, 60);
    assert!(world.receive.complete(&world.ram).broken, "there is none");
    let mut world = World::new();
    world.ram.store32(RING, 257).unwrap();
    assert!(world.receive.kick(&world.ram).broken);
}

#[test]
fn a_ring_that_is_not_lent_is_refused() {
    let ram = Ram::new(4);
    assert!(Receive::new(&ram, GRANTS, RING_GRANT, QUEUE).is_none());
    lend(&ram, RING_GRANT, 1 | 4, 1);
    assert!(Receive::new(&ram, GRANTS, RING_GRANT, QUEUE).is_none());
}

#[test]
fn all_places_are_used_over_and_over() {
    let mut world = World::new();
    let all: Vec<_> = (0..256).map(|n| FIRST_LENT + n % (PAGES - FIRST_LENT)).collect();
    world.lend(&all);
    for round in 0..1000 {
        assert!(world.frame(0, &[0; 60]));
        assert!(world.receive.complete(&world.ram).notify);
        let (shown, filled) = world.response(round);
        assert_eq!((shown, filled.id), (round + 1, round as u16 ^ 0x100));
        world.lend(&[FIRST_LENT]);
    }
    assert_eq!(world.receive.queue.free(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever the front end lends, and however the frames are: each buffer is answered once and in its
    /// turn. With all cases these are about 10^5 buffers.
    #[test]
    fn any_buffers(steps in prop::collection::vec(
        (prop::collection::vec(prop_oneof![4 => FIRST_LENT..PAGES, 1 => 512..520_u32, 1 => 0..FIRST_LENT], 0..12), 1..20_000usize),
        20..80))
    {
        let mut world = World::new();
        for (grants, len) in steps {
            if world.requests + grants.len() as u32 - world.response(0).0 <= 256 {
                prop_assert!(!world.lend(&grants).broken);
            }
            if world.receive.oldest().is_some() {
                // What the device took and had too little of is lost.
                // No byte of it is a division: pages that are lent twice have data where headers were.
                let taken = world.frame(0, &vec![2; len]);
                prop_assert!(!world.receive.complete(&world.ram).broken);
                if !taken {
                    return Ok(());
                }
            }
            let shown = world.response(0).0;
            for number in shown.saturating_sub(200)..shown {
                if number + 256 > world.requests {
                    prop_assert_eq!(world.response(number).1.id, number as u16 ^ 0x100);
                }
            }
        }
        world.receive.close(&world.ram);
        prop_assert!(world.nothing_lent_is_in_use());
    }

    /// Whatever the indices of both rings are.
    #[test]
    fn any_indices(steps in prop::collection::vec((0..6u8, any::<u32>()), 1..400)) {
        let mut world = World::new();
        for (what, value) in steps {
            match what {
                0 => world.device.put(&world.ram, value % 300, value % 5000),
                1 => world.ram.store32(RING, value % 600).unwrap(),
                2 => {
                    let used = world.receive.setup().1[2];
                    world.ram.store16(used + 2, value as u16).unwrap();
                }
                _ => {
                    world.lend(&[value % 70]);
                }
            }
            world.receive.kick(&world.ram);
            world.receive.complete(&world.ram);
        }
        world.receive.close(&world.ram);
        prop_assert!(world.nothing_lent_is_in_use());
    }
}
