//! Half a connection between a front end that sends and a device that takes frames.

use super::*;
use crate::{
    guest_memory::fake::Ram,
    virtio::fake::{Seen, Served},
};
use proptest::prelude::*;

/// Pages: the grant table, the ring, two for the queue, then those to be lent.
const RING: u64 = 0x1000;
const QUEUE: u64 = 0x2000;
const FIRST_LENT: u32 = 4;
const PAGES: u32 = 60;
const GRANTS: Grants = Grants { table: 0, entries: 512, ram_pages: PAGES as u64 };
const RING_GRANT: u32 = 511;
const CUTS: Cuts = Cuts { v4: true, v6: false };

/// Kernel and device around the half.
struct World {
    ram: Ram,
    transmit: Transmit,
    device: Served,
    requests: u32,
    /// Frames that the device has taken, and their headers.
    frames: Vec<(Vec<u8>, Vec<u8>)>,
    /// Chains that the device has and does not give back.
    held: Vec<u16>,
    doorbells: usize,
}

impl World {
    fn new() -> Self {
        let ram = Ram::new(PAGES as usize);
        for page in FIRST_LENT..PAGES {
            lend(&ram, page, 1 | 4, page);
        }
        lend(&ram, RING_GRANT, 1, (RING >> 12) as u32);
        let transmit = Transmit::new(&ram, GRANTS, CUTS, RING_GRANT, QUEUE).unwrap();
        let device = Served::new(transmit.setup());
        let (frames, held) = (Vec::new(), Vec::new());
        Self { ram, transmit, device, requests: 0, frames, held, doorbells: 0 }
    }

    fn place(&self, number: u32) -> u64 {
        RING + 64 + u64::from(number % Ring::PLACES) * SENT as u64
    }

    /// Puts a request, whatever it is, into the ring; nobody is told.
    fn raw(&mut self, bytes: [u8; SENT]) {
        self.ram.write(self.place(self.requests), &bytes).unwrap();
        self.requests = self.requests.wrapping_add(1);
    }

    fn piece(&mut self, Piece { grant, offset, flags, id, size }: Piece) {
        let mut bytes = [0; SENT];
        bytes[..4].copy_from_slice(&grant.to_le_bytes());
        for (at, value) in [(4, offset), (6, flags), (8, id), (10, size)] {
            bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        self.raw(bytes);
    }

    /// Shows the requests, and has the device take what it is told of and give it back if it is to.
    fn serve(&mut self, gives_back: bool) -> Outcome {
        // The front end wants to be told of the next response.
        let responses = self.ram.load32(RING + 8).unwrap();
        self.ram.store32(RING + 12, responses.wrapping_add(1)).unwrap();
        self.ram.store32(RING, self.requests).unwrap();
        let Self { ram, transmit, device, frames, held, doorbells, .. } = self;
        transmit.serve(ram, || {
            *doorbells += 1;
            while let Some((head, chain)) = device.take(ram) {
                frames.push(read(ram, &chain));
                if gives_back {
                    device.put(ram, head.into(), 0);
                } else {
                    held.push(head);
                }
            }
        })
    }

    /// Responses shown so far, and the one in the place of request `number`: id and status.
    fn response(&self, number: u32) -> (u32, u16, i16) {
        let mut bytes = [0; 4];
        self.ram.read(self.place(number), &mut bytes).unwrap();
        let [a, b, c, d] = bytes;
        let shown = self.ram.load32(RING + 8).unwrap();
        (shown, u16::from_le_bytes([a, b]), i16::from_le_bytes([c, d]))
    }

    /// Sends one frame: the status of its pieces.
    fn send(&mut self, pieces: &[Piece]) -> i16 {
        let first = self.requests;
        for &piece in pieces {
            self.piece(piece);
        }
        assert!(!self.serve(true).broken);
        assert!(self.nothing_lent_is_in_use());
        let all = (first..self.requests).map(|number| self.response(number));
        let all: Vec<_> = all
            .map(|(shown, id, status)| {
                assert_eq!(shown, self.requests);
                (id, status)
            })
            .collect();
        let status = all[0].1;
        let mut ids: Vec<_> = all.iter().map(|&(id, _)| id).collect();
        let mut sent: Vec<_> = pieces.iter().map(|piece| piece.id).collect();
        ids.sort_unstable();
        sent.sort_unstable();
        assert_eq!(ids, sent);
        assert!(all.iter().all(|&(_, one)| one == status));
        status
    }

    fn nothing_lent_is_in_use(&self) -> bool {
        (0..PAGES).all(|page| self.ram.load16(8 * u64::from(page)).unwrap() & 0x18 == 0)
    }

    fn interrupts(&self) -> bool {
        self.ram.load16(self.transmit.setup().1[1]) == Some(0)
    }
}

/// The frame in a chain, and its header.
fn read(ram: &Ram, chain: &[Seen]) -> (Vec<u8>, Vec<u8>) {
    let bytes = |&(gpa, len, writes): &Seen| {
        assert!(!writes && len > 0);
        let mut bytes = vec![0; len];
        ram.read(gpa, &mut bytes).unwrap();
        bytes
    };
    let header = bytes(&chain[0]);
    assert_eq!(header.len(), HEADER);
    (chain[1..].iter().flat_map(bytes).collect(), header)
}

fn lend(ram: &Ram, reference: u32, flags: u32, frame: u32) {
    ram.store32(8 * u64::from(reference), flags).unwrap();
    ram.store32(8 * u64::from(reference) + 4, frame).unwrap();
}

const fn piece(grant: u32, offset: u16, size: u16, flags: u16, id: u16) -> Piece {
    Piece { grant, offset, flags, id, size }
}

/// A TCP segment over IPv4 of 54 bytes and data, at the start of the page lent as `grant`.
fn tcp(world: &World, grant: u32) {
    let mut frame = vec![0; 54];
    (frame[12], frame[14], frame[23], frame[46]) = (8, 0x45, 6, 0x50);
    world.ram.write(u64::from(grant) << 12, &frame).unwrap();
}

const OK: Outcome = Outcome { notify: true, broken: false };

#[test]
fn a_frame_of_one_piece() {
    let mut world = World::new();
    world.ram.write((10 << 12) + 0x40, b"fourteen bytes and more").unwrap();
    world.piece(piece(10, 0x40, 23, 0, 77));
    assert_eq!(world.serve(true), OK);
    assert_eq!(world.response(0), (1, 77, status::OKAY));
    assert_eq!(world.frames, [(b"fourteen bytes and more".to_vec(), vec![0; HEADER])]);
    assert!(world.nothing_lent_is_in_use() && !world.interrupts());
    assert_eq!(world.ram.load32(RING + 4), Some(2), "it asks to be told of the next");
    assert_eq!(world.serve(true), Outcome::default(), "nothing new");
    assert_eq!(world.doorbells, 1);
}

#[test]
fn pieces_are_put_together() {
    let mut world = World::new();
    world.ram.write((10 << 12) + 4090, b"abcdef").unwrap();
    world.ram.write(12 << 12, b"ghij").unwrap();
    world.ram.write((11 << 12) + 9, b"klmnop").unwrap();
    let pieces =
        [piece(10, 4090, 16, MORE_DATA, 1), piece(12, 0, 4, MORE_DATA, 5), piece(11, 9, 6, 0, 3)];
    assert_eq!(world.send(&pieces), status::OKAY);
    assert_eq!(world.frames[0].0, b"abcdefghijklmnop");
}

#[test]
fn frames_under_way_are_in_use_and_interrupt() {
    let mut world = World::new();
    world.piece(piece(10, 0, 60, 0, 7));
    assert_eq!(world.serve(false), Outcome::default());
    assert_eq!(world.ram.load16(80), Some(1 | 4 | 8), "the page is being read");
    assert!(world.interrupts());
    let head = world.held.remove(0);
    world.device.put(&world.ram, head.into(), 0);
    assert_eq!(world.serve(true), OK);
    assert_eq!(world.response(0), (1, 7, status::OKAY));
    assert!(world.nothing_lent_is_in_use() && !world.interrupts());
}

#[test]
fn the_device_is_told_where_a_checksum_is_missing() {
    let mut world = World::new();
    tcp(&world, 10);
    assert_eq!(world.send(&[piece(10, 0, 60, CSUM_BLANK | 2, 1)]), status::OKAY);
    let header = [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0];
    assert_eq!(world.frames[0].1, header);
    // The headers may be in several pieces.
    let pieces = [piece(10, 0, 60, CSUM_BLANK | MORE_DATA, 1), piece(10, 20, 40, 0, 2)];
    assert_eq!(world.send(&pieces), status::OKAY);
    assert_eq!(world.frames[1].1, header);
    assert_eq!(world.send(&[piece(10, 0, 52, CSUM_BLANK, 1)]), status::OKAY);
    for (len, what) in [(51, "the checksum is past the end"), (20, "there is no header")] {
        assert_eq!(world.send(&[piece(10, 0, len, CSUM_BLANK, 1)]), status::ERROR, "{what}");
    }
    assert_eq!(world.send(&[piece(11, 0, 60, CSUM_BLANK, 1)]), status::ERROR, "no IP");
    assert_eq!(world.frames.len(), 3);
}

#[test]
fn long_segments_are_cut_by_the_device() {
    let mut world = World::new();
    tcp(&world, 10);
    let mut send = |extra: [u8; 6], flags: u16| {
        let (first, frames) = (world.requests, world.frames.len());
        world.piece(piece(10, 0, 4000, flags | EXTRA_INFO | MORE_DATA, 1));
        let mut raw = [0; SENT];
        raw[..6].copy_from_slice(&extra);
        world.raw(raw);
        world.piece(piece(11, 0, 2000, 0, 2));
        assert_eq!(world.serve(true), OK);
        let all = [0, 1, 2].map(|n| world.response(first + n).2);
        assert!(all.contains(&status::NULL), "{all:?}");
        assert!(world.nothing_lent_is_in_use());
        (world.frames.get(frames).map(|frame| frame.1.clone()), all.contains(&status::ERROR))
    };
    let cut = vec![1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0];
    assert_eq!(send([1, 0, 0xa8, 5, 1, 0], CSUM_BLANK), (Some(cut), false));
    let hash = vec![1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0];
    assert_eq!(send([4, 0, 1, 2, 3, 4], CSUM_BLANK), (Some(hash), false));
    assert_eq!(send([1, 0, 0xa8, 5, 1, 0], 0), (None, true), "without a checksum to make");
    assert_eq!(send([1, 0, 0xa8, 5, 2, 0], CSUM_BLANK), (None, true), "IPv6 was not offered");
    assert_eq!(send([1, 0, 0, 0, 1, 0], CSUM_BLANK), (None, true), "into nothing");
    assert_eq!(send([9, 0, 0, 0, 0, 0], CSUM_BLANK), (None, true), "nobody knows what");
}

#[test]
fn what_cannot_be_is_refused() {
    let mut world = World::new();
    for (pieces, what) in [
        (&[piece(2, 0, 60, 0, 1)][..], "it is not lent"),
        (&[piece(600, 0, 60, 0, 1)], "it is not in the table"),
        (&[piece(10, 0, 13, 0, 1)], "it is too short"),
        (&[piece(10, 4000, 97, 0, 1)], "it is past the page"),
        (&[piece(10, 65_535, 60, 0, 1)], "it is far past the page"),
        (&[piece(10, 0, 60, MORE_DATA, 1), piece(11, 0, 0, 0, 2)], "a piece is empty"),
        (&[piece(10, 0, 60, MORE_DATA, 1), piece(11, 0, 60, 0, 2)], "the first is empty"),
        (&[piece(10, 0, 60, MORE_DATA, 1), piece(11, 0, 61, 0, 2)], "parts are more than all"),
        (&[piece(10, 0, 60, MORE_DATA, 1), piece(2, 0, 10, 0, 2)], "a piece is not lent"),
        (&[piece(10, 0, 60, MORE_DATA, 1), piece(11, 4090, 10, 0, 2)], "a piece is past its page"),
    ] {
        assert_eq!(world.send(pieces), status::ERROR, "{what}");
    }
    lend(&world.ram, 9, 1, PAGES);
    assert_eq!(world.send(&[piece(9, 0, 60, 0, 1)]), status::ERROR, "it is no RAM");
    let many: Vec<_> = (0..19)
        .map(|n| piece(10, 0, if n == 0 { 190 } else { 10 }, if n < 18 { MORE_DATA } else { 0 }, n))
        .collect();
    assert_eq!(world.send(&many), status::ERROR, "it has too many pieces");
    assert_eq!(
        world.send(&[&[piece(10, 0, 180, MORE_DATA, 0)], &many[2..]].concat()),
        status::OKAY
    );
    assert_eq!((world.frames.len(), world.transmit.queue.free()), (1, ENTRIES));
}

#[test]
fn frames_wait_for_room() {
    let mut world = World::new();
    for n in 0..200 {
        world.piece(piece(10, 0, 60, 0, n));
    }
    assert_eq!(world.serve(false), Outcome::default());
    let under_way = world.held.len();
    assert!(under_way > 50 && under_way < 64, "{under_way}");
    while let Some(head) = world.held.pop() {
        world.device.put(&world.ram, head.into(), 0);
    }
    assert_eq!(world.serve(true), OK);
    assert_eq!((world.frames.len(), world.response(199).0), (200, 200));
    assert!(world.nothing_lent_is_in_use());
    assert_eq!(world.ram.load32(RING + 4), Some(201), "it asks to be told of the next");
}

#[test]
fn half_a_frame_ends_the_connection() {
    for flags in [MORE_DATA, EXTRA_INFO] {
        let mut world = World::new();
        world.piece(piece(10, 0, 60, flags, 1));
        assert!(world.serve(true).broken);
        assert!(world.frames.is_empty() && world.nothing_lent_is_in_use());
    }
    let mut world = World::new();
    world.requests = 257;
    assert!(world.serve(true).broken);
}

#[test]
fn the_end_gives_everything_back() {
    let mut world = World::new();
    world.piece(piece(10, 0, 60, 0, 1));
    world.serve(false);
    assert!(!world.nothing_lent_is_in_use());
    assert_eq!(world.ram.load16(8 * u64::from(RING_GRANT)), Some(0x19));
    world.transmit.close(&world.ram);
    assert!(world.nothing_lent_is_in_use());
    assert_eq!(world.ram.load16(8 * u64::from(RING_GRANT)), Some(1));
}

#[test]
fn a_ring_that_is_not_lent_is_refused() {
    let ram = Ram::new(4);
    assert!(Transmit::new(&ram, GRANTS, CUTS, RING_GRANT, QUEUE).is_none());
    lend(&ram, RING_GRANT, 1 | 4, 1);
    assert!(Transmit::new(&ram, GRANTS, CUTS, RING_GRANT, QUEUE).is_none());
}

#[test]
fn what_the_device_cannot_have_used_is_ignored() {
    let mut world = World::new();
    world.piece(piece(10, 0, 60, 0, 1));
    world.serve(false);
    // The second entry of the only chain, one that nobody has, one that there is not.
    for head in [1, 2, u32::MAX] {
        world.device.put(&world.ram, head, 0);
    }
    assert_eq!(world.serve(true), Outcome::default());
    assert_eq!(world.ram.load16(80), Some(1 | 4 | 8), "still being read");
}

/// A request that may make sense.
fn request() -> impl Strategy<Value = [u8; SENT]> {
    let grant = prop_oneof![4 => FIRST_LENT..PAGES, 1 => 0..520_u32];
    let size = prop_oneof![4 => 14..200_u16, 1 => any::<u16>()];
    let offset = prop_oneof![4 => 0..3900_u16, 1 => any::<u16>()];
    let flags = prop_oneof![4 => Just(0), 1 => Just(4), 1 => Just(5), 1 => 0..16_u16];
    (grant, offset, flags, any::<u16>(), size).prop_map(|(grant, offset, flags, id, size)| {
        let mut bytes = [0; SENT];
        bytes[..4].copy_from_slice(&grant.to_le_bytes());
        for (at, value) in [(4, offset), (6, flags), (8, id), (10, size)] {
            bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever is in the ring: each request taken is answered once, and nothing stays in use. With
    /// all cases these are more than 10^5 requests.
    #[test]
    fn any_requests(
        raw in prop::collection::vec(request(), 100..500),
        chunk in 1..250_usize,
        gives_back in any::<bool>(),
    ) {
        let mut world = World::new();
        for page in FIRST_LENT..PAGES {
            tcp(&world, page);
        }
        for chunk in raw.chunks(chunk) {
            for &bytes in chunk {
                world.raw(bytes);
            }
            let mut broken = world.serve(gives_back).broken;
            while let Some(head) = world.held.pop() {
                world.device.put(&world.ram, head.into(), 0);
                broken |= world.serve(gives_back).broken;
            }
            prop_assert!(world.nothing_lent_is_in_use());
            prop_assert_eq!((world.transmit.queue.free(), world.transmit.free), (ENTRIES, u64::MAX));
            if broken {
                // A frame that goes on past the chunk.
                return Ok(());
            }
            prop_assert_eq!(world.ram.load32(RING + 8), Some(world.requests));
        }
        let most = |(frame, _): &(Vec<u8>, Vec<u8>)| frame.len() <= 65_535;
        prop_assert!(world.frames.iter().all(most));
    }

    /// Whatever the ring's indices and the device's are.
    #[test]
    fn any_indices(steps in prop::collection::vec((0..5u8, any::<u32>(), request()), 1..300)) {
        let mut world = World::new();
        for (what, value, bytes) in steps {
            match what {
                0 => world.device.put(&world.ram, value % 200, value),
                1 => world.requests = value % 600,
                2 => {
                    let used = world.transmit.setup().1[2];
                    world.ram.store16(used + 2, value as u16).unwrap();
                }
                _ => world.raw(bytes),
            }
            world.serve(value % 2 == 0);
        }
        world.transmit.close(&world.ram);
        prop_assert!(world.nothing_lent_is_in_use());
    }
}
