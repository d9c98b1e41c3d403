//! Frames on their way into buffers and out of them.

use super::{super::fake::Ram, *};
use proptest::prelude::*;
use pv_abi::virtio::queue::{NEXT, WRITE};
use std::{vec, vec::Vec};

const SIZE: u16 = 64;
const TABLE: u64 = 0;
const DRIVER: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const DATA: u64 = 0x4000;
const RAM: usize = 0x40000;

fn queue() -> Queue {
    Queue::new(SIZE.into(), TABLE, DRIVER, DEVICE).unwrap()
}

/// Lays out a chain for each list of lengths, all buffers one behind the other from [`DATA`] on; how
/// many descriptors that took.
fn lay_out(ram: &Ram, chains: &[Vec<u32>], flags: u16) -> u16 {
    let (mut index, mut gpa) = (0u16, DATA);
    for (number, lengths) in chains.iter().enumerate() {
        let slot = DRIVER + 4 + 2 * number as u64;
        assert!(ram.store16(slot, index));
        for (at, &len) in lengths.iter().enumerate() {
            let next = if at + 1 < lengths.len() { NEXT } else { 0 };
            let word = u128::from(index + 1) << 112
                | u128::from(flags | next) << 96
                | u128::from(len) << 64
                | u128::from(gpa);
            assert!(ram.write(TABLE + 16 * u64::from(index), &word.to_le_bytes()));
            gpa += u64::from(len);
            index += 1;
        }
    }
    assert!(ram.store16(DRIVER + 2, chains.len() as u16));
    index
}

fn used(ram: &Ram) -> Vec<(u32, u32)> {
    let count = ram.load16(DEVICE + 2).unwrap();
    let entry = |number| {
        let mut bytes = [0; 8];
        assert!(ram.read(DEVICE + 4 + 8 * u64::from(number), &mut bytes));
        let word = u64::from_le_bytes(bytes);
        (word as u32, (word >> 32) as u32)
    };
    (0..count).map(entry).collect()
}

fn frame(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 256) as u8).collect()
}

fn put_plain(ram: &Ram, spread: Spread, frame: &[u8]) -> Result<Result<(), Lost>, Broken> {
    put(ram, &mut queue(), spread, &describe(&Offload::default()), frame)
}

#[test]
fn headers_say_what_is_left_undone() {
    let partial = Some(Partial { start: 34, offset: 16 });
    let sum = Offload { checksum: partial, division: None };
    let bytes = describe(&sum);
    assert_eq!(bytes, [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 1, 0]);
    assert_eq!((parse(&bytes, CSUM), parse(&bytes, !CSUM)), (Some(sum), None));
    assert!(takes(&sum, GUEST_CSUM) && !takes(&sum, !GUEST_CSUM));
    let plain = describe(&Offload::default());
    assert_eq!(parse(&plain, 0), Some(Offload::default()));
    assert!(takes(&Offload::default(), 0));
    for (version, kind, host, guest) in
        [(Version::V4, 1, HOST_TSO4, GUEST_TSO4), (Version::V6, 4, HOST_TSO6, GUEST_TSO6)]
    {
        let division = Some(Division { version, size: 1448 });
        let long = Offload { checksum: partial, division };
        let bytes = describe(&long);
        assert_eq!(bytes, [1, kind, 0, 0, 0xa8, 5, 34, 0, 16, 0, 1, 0]);
        assert_eq!((parse(&bytes, CSUM | host), parse(&bytes, !host)), (Some(long), None));
        assert!(takes(&long, GUEST_CSUM | guest) && !takes(&long, !guest));
    }
    for kind in [3, 5, 0x81] {
        assert_eq!(parse(&[0, kind, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], !0), None, "{kind}");
    }
}

#[test]
fn the_configuration_is_that_of_a_card() {
    let card = Address { mac: [2, 3, 4, 5, 6, 7], mtu: 1500, pairs: 1 };
    let identity = card.identity();
    let bytes: Vec<_> = identity.config.iter().flat_map(|word| word.to_le_bytes()).collect();
    assert_eq!(bytes, [2, 3, 4, 5, 6, 7, 1, 0, 1, 0, 0xdc, 5]);
    assert_eq!((identity.device, &*identity.queues), (1, &[(0, 2)][..]));
    assert_eq!(identity.features & (CTRL_VQ | MQ), 0);
    let identity = Address { pairs: 3, ..card }.identity();
    assert_eq!(identity.config[2].to_le_bytes(), [3, 0, 0xdc, 5]);
    assert_eq!(*identity.queues, [(CTRL_VQ | MQ, 7), (CTRL_VQ, 3), (0, 2)]);
    assert_eq!(identity.features & (CTRL_VQ | MQ), CTRL_VQ | MQ);
}

#[test]
fn the_control_queue_is_behind_the_pairs() {
    let card = Address { mac: [2, 3, 4, 5, 6, 7], mtu: 1500, pairs: 3 };
    for (features, control, pairs) in
        [(CTRL_VQ | MQ, Some(6), 3), (CTRL_VQ, Some(2), 1), (MQ, None, 1), (0, None, 1)]
    {
        assert_eq!((card.control_queue(features), card.most_pairs(features)), (control, pairs));
        for number in 0..7 {
            let expected = match number {
                _ if Some(number) == control => Role::Control,
                1 | 3 | 5 => Role::Transmit(number / 2),
                _ => Role::Receive,
            };
            assert_eq!(card.role(number, features), expected, "{number} {features:#x}");
        }
    }
    assert_eq!((receive_queue(2), transmit_queue(2)), (4, 5));
}

#[test]
fn what_does_not_fit_is_lost_and_nothing_is_used() {
    let ram = Ram::new(RAM);
    lay_out(&ram, &[vec![100], vec![100]], WRITE);
    assert_eq!(put_plain(&ram, Spread::OneChain, &frame(89)), Ok(Err(Lost::NoBuffer)));
    assert_eq!(put_plain(&ram, Spread::Chains, &frame(189)), Ok(Err(Lost::NoBuffer)));
    assert_eq!(used(&ram), []);
    // Too scattered: a byte a piece.
    lay_out(&ram, &[vec![1; 60], vec![1; 4]], WRITE);
    assert_eq!(put_plain(&ram, Spread::Chains, &frame(80)), Ok(Err(Lost::NoBuffer)));
    lay_out(&ram, &[vec![100]], 0);
    assert_eq!(put_plain(&ram, Spread::Chains, &frame(20)), Err(Broken::Direction));
    assert_eq!(used(&ram), []);
}

#[test]
fn the_second_of_a_long_frame_stays_empty() {
    let division = Some(Division { version: Version::V4, size: 1448 });
    let long = Offload { checksum: Some(Partial { start: 34, offset: 16 }), division };
    assert_eq!(Spread::of(&long, SPACER), Spread::OneChain, "nothing without MRG_RXBUF");
    assert_eq!(Spread::of(&long, MRG_RXBUF), Spread::Chains);
    assert_eq!(Spread::of(&Offload::default(), MRG_RXBUF | SPACER), Spread::Chains);
    assert_eq!(Spread::of(&long, MRG_RXBUF | SPACER), Spread::Spaced);
    for (len, expected) in [
        (250, &[(0, 100), (1, 0), (2, 100), (3, 62)][..]),
        (188, &[(0, 100), (1, 0), (2, 100)][..]),
        (60, &[(0, 72), (1, 0)][..]),
    ] {
        let ram = Ram::new(RAM);
        lay_out(&ram, &[vec![100], vec![100], vec![100], vec![100]], WRITE);
        let frame = frame(len);
        let put = put(&ram, &mut queue(), Spread::Spaced, &describe(&long), &frame);
        assert_eq!(put, Ok(Ok(())));
        assert_eq!(used(&ram), expected);
        let bytes = ram.bytes.borrow();
        let first = DATA as usize;
        assert_eq!(bytes[first + header::NUM_BUFFERS], expected.len() as u8);
        let end = 100.min(HEADER + len);
        assert_eq!(bytes[first + HEADER..first + end], frame[..end - HEADER]);
        assert!(bytes[first + 100..first + 200].iter().all(|&byte| byte == 0));
        let rest = &frame[end - HEADER..];
        assert_eq!(bytes[first + 200..][..rest.len()], *rest);
    }
    let ram = Ram::new(RAM);
    lay_out(&ram, &[vec![100]], WRITE);
    let put = put(&ram, &mut queue(), Spread::Spaced, &describe(&long), &frame(60));
    assert_eq!((put, used(&ram)), (Ok(Err(Lost::NoBuffer)), vec![]));
}

#[test]
fn buffers_out_of_reach_come_back_empty() {
    let mut ram = Ram::new(RAM);
    lay_out(&ram, &[vec![100], vec![100]], WRITE);
    assert!(ram.private.insert(DATA / 4096));
    assert_eq!(put_plain(&ram, Spread::Chains, &frame(150)), Ok(Err(Lost::NoBuffer)));
    assert_eq!(used(&ram), [(0, 0), (1, 0)]);
}

fn cuts() -> impl Strategy<Value = Vec<Vec<u32>>> {
    prop::collection::vec(prop::collection::vec(1..900u32, 1..5), 1..12)
}

proptest! {
    /// A frame is taken as it was sent, wherever it is cut.
    #[test]
    fn frames_are_taken_whole(lengths in prop::collection::vec(1..5000u32, 1..20)) {
        let ram = Ram::new(RAM);
        let total: usize = lengths.iter().map(|&len| len as usize).sum();
        lay_out(&ram, &[lengths], 0);
        let sent = frame(total);
        ram.bytes.borrow_mut()[DATA as usize..][..total].copy_from_slice(&sent);
        let chain = queue().pop(&ram).unwrap().unwrap();
        let mut out = vec![0; SCRATCH];
        match take(&ram, &chain, &mut out).unwrap() {
            Some(len) => {
                prop_assert!(len == total && total > HEADER && out[..len] == sent);
            }
            None => prop_assert!(total <= HEADER || total > SCRATCH),
        }
    }

    /// A frame is put where there is room for it, in as few chains as that takes, and its header
    /// says in how many.
    #[test]
    fn frames_are_put_whole(chains in cuts(), len in 14..3000usize, merged in any::<bool>()) {
        let ram = Ram::new(RAM);
        lay_out(&ram, &chains, WRITE);
        let spread = if merged { Spread::Chains } else { Spread::OneChain };
        let frame = frame(len);
        let rooms: Vec<u32> = chains.iter().map(|lengths| lengths.iter().sum()).collect();
        let total = (HEADER + len) as u32;
        let most = if merged { rooms.len() } else { 1 };
        let done = put_plain(&ram, spread, &frame).unwrap();
        if rooms[..most].iter().sum::<u32>() < total {
            prop_assert_eq!(done, Err(Lost::NoBuffer));
            prop_assert_eq!(used(&ram), []);
            return Ok(());
        }
        prop_assert_eq!(done, Ok(()));
        let used = used(&ram);
        let mut left = total;
        for (&(_, written), &room) in used.iter().zip(&rooms) {
            prop_assert_eq!(written, left.min(room));
            left -= written;
        }
        prop_assert_eq!(left, 0);
        // Only the last chain is left partly empty, so it lies without a gap.
        let mut all = describe(&Offload::default()).to_vec();
        all[header::NUM_BUFFERS] = used.len() as u8;
        all.extend(&frame);
        prop_assert_eq!(&ram.bytes.borrow()[DATA as usize..][..all.len()], &all[..]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]
    /// Whatever lies in the rings, what is done is bounded, and pages that are no device's stay as
    /// they are.
    #[test]
    fn hostile_rings_are_bounded(
        seed in any::<u64>(),
        len in 14..9014usize,
        small in any::<bool>(),
        merged in any::<bool>(),
    ) {
        let mut random = seed | 1;
        let mut next = || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random
        };
        let mut ram = Ram::new(0x8000);
        let bytes: Vec<u8> =
            (0..0x8000).map(|_| next() as u8 & if small { 0x17 } else { 0xff }).collect();
        ram.bytes.borrow_mut().copy_from_slice(&bytes);
        assert!(ram.private.insert(5));
        let spread = if merged { Spread::Chains } else { Spread::OneChain };
        let (mut queue, frame) = (queue(), frame(len));
        let mut out = vec![0; SCRATCH];
        for _ in 0..20 {
            let _ = put(&ram, &mut queue, spread, &describe(&Offload::default()), &frame);
            if let Ok(Some(chain)) = queue.pop(&ram)
                && let Ok(Some(len)) = take(&ram, &chain, &mut out)
            {
                prop_assert!(len > HEADER && len <= SCRATCH);
            }
            let _ = ram.store16(DRIVER + 2, next() as u16 & 63);
        }
        prop_assert_eq!(&ram.bytes.borrow()[0x5000..0x6000], &bytes[0x5000..0x6000]);
    }
}
