//! Segments that are joined and divided again, and those that must stay apart.

use super::{
    super::segment::fixture::{mend, packet},
    *,
};
use proptest::prelude::*;
use std::{vec, vec::Vec};

/// The segments of a packet, with their checksums.
fn segments(version: Version, options: usize, data: usize, size: u16, flags: u8) -> Vec<Vec<u8>> {
    let (mut bytes, partial) = packet(version, options, data, flags);
    let division = Some(Division { version, size });
    let offload = Offload { checksum: Some(partial), division };
    let frame = Frame::new(&mut bytes, offload, &mut []).unwrap();
    completed(&frame)
}

fn completed(frame: &Frame<'_>) -> Vec<Vec<u8>> {
    let frames = frame.completed();
    let write = |number| {
        let mut out = vec![0; LONGEST_SEGMENT];
        let len = frames.write(number, &mut out);
        out[..len].to_vec()
    };
    (0..frames.count()).map(write).collect()
}

/// Two segments that follow one another.
fn pair() -> [Vec<u8>; 2] {
    segments(Version::V4, 12, 2000, 1000, ACK).try_into().unwrap()
}

/// Whether the second is joined to the first.
fn joins(first: &[u8], second: &[u8]) -> bool {
    let mut merger = Merger::default();
    let joined = merger.begin(first, |_| true) && merger.extend(second);
    if let Some(frame) = merger.take() {
        let whole = if joined { vec![first, second] } else { vec![first] };
        assert_eq!(completed(&frame), whole, "it is divided into what it was joined of");
    }
    joined
}

#[test]
fn what_differs_stays_apart() {
    let [first, second] = pair();
    assert!(joins(&first, &second));
    for (at, value, why) in [
        (0, 4, "another receiver"),
        (6, 4, "another sender"),
        (15, 3, "congestion was met"),
        (22, 63, "another way"),
        (29, 9, "another address"),
        (35, 81, "another port"),
        (41, 1, "another place in the stream"),
        (45, 9, "something else is acknowledged"),
        (47, ACK | 1, "it is the last"),
        (47, ACK | 0x20, "it is urgent"),
        (48, 2, "another window"),
        (55, 2, "other options"),
    ] {
        let mut changed = second.clone();
        assert_ne!(changed[at], value, "{why}");
        changed[at] = value;
        mend(&mut changed, Version::V4, 34);
        assert!(!joins(&first, &changed), "{why}");
    }
    let mut wrong = second.clone();
    wrong[1000] ^= 1;
    assert!(!joins(&first, &wrong), "its checksum is wrong");
    wrong = second.clone();
    wrong[24] ^= 1;
    assert!(!joins(&first, &wrong), "the checksum of its header is wrong");
    wrong = first.clone();
    wrong[1000] ^= 1;
    assert!(!joins(&wrong, &second), "the checksum of the first is wrong");
    assert!(!joins(&first, &[&second[..], &[0]].concat()), "it is longer than it says");
    assert!(!joins(&first, &second[..60]), "it is shorter");
    assert!(!Merger::default().extend(&second), "there is nothing to follow");
    assert!(!Merger::default().begin(&first, |_| false), "nobody wants it");
    assert!(Merger::default().take().is_none());
}

#[test]
fn nothing_follows_a_push_or_a_short_one() {
    let all = segments(Version::V4, 0, 2500, 1000, ACK | PSH);
    let mut merger = Merger::default();
    assert!(merger.begin(&all[0], |version| version == Version::V4));
    assert!(merger.extend(&all[1]) && merger.extend(&all[2]));
    let mut next = segments(Version::V4, 0, 3500, 1000, ACK).pop().unwrap();
    next[38..42].copy_from_slice(&(0xffff_ff00u32.wrapping_add(2500)).to_be_bytes());
    mend(&mut next, Version::V4, 34);
    assert!(!merger.extend(&next));
    assert_eq!(completed(&merger.take().unwrap()), all);
    assert!(!merger.begin(&all[2], |_| true), "nothing could follow");
}

proptest! {
    /// Whatever was divided is joined again, as far as a packet goes, and loses nothing.
    #[test]
    fn joined_and_divided_again(
        v6 in any::<bool>(),
        options in (0..11usize).prop_map(|words| 4 * words),
        data in 1..65_000usize,
        size in 128..8900u16,
        push in any::<bool>(),
    ) {
        let version = if v6 { Version::V6 } else { Version::V4 };
        let flags = ACK | if push { PSH } else { 0 };
        let sent = segments(version, options, data, size, flags);
        let mut merger = Merger::default();
        let (mut got, mut packets) = (Vec::new(), 0);
        let mut pass_on = |merger: &mut Merger| {
            if let Some(frame) = merger.take() {
                packets += 1;
                got.extend(completed(&frame));
            }
        };
        let mut apart = Vec::new();
        for segment in &sent {
            if !merger.extend(segment) {
                pass_on(&mut merger);
                if !merger.begin(segment, |_| true) {
                    apart.push(segment.clone());
                }
            }
        }
        pass_on(&mut merger);
        got.extend(apart);
        prop_assert!(packets == 1 || sent.len() == 1, "all are joined");
        prop_assert_eq!(got, sent);
    }

    /// No frame is too odd.
    #[test]
    fn odd_frames_stay_apart(
        noise in prop::collection::vec(any::<u8>(), 14..200),
        patches in prop::collection::vec((0..70usize, any::<u8>()), 0..6),
    ) {
        let [first, second] = pair();
        let mut odd = second.clone();
        patches.iter().for_each(|&(at, value)| odd[at] = value);
        joins(&first, &odd);
        joins(&odd, &second);
        joins(&noise, &first);
        joins(&first, &noise);
    }
}
