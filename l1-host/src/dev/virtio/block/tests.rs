//! Requests that a disk serves, and those that it refuses.

use super::{super::fake::Ram, *};
use proptest::prelude::*;
use std::vec::Vec;

const HEADER_AT: u64 = 0x100;

fn disk(access: Access) -> Geometry {
    let mut name = [0; NAME];
    name[..4].copy_from_slice(b"disk");
    let erase = Erase { discard: 50, alignment: 8, zero: 20, may_unmap: true };
    let erase = if access == Access::Write { erase } else { Erase::default() };
    Geometry { first: 0, sectors: 100, access, name, erase, queues: 1 }
}

fn buffers(list: &[(u64, u32)]) -> ArrayVec<Buffer, MOST> {
    list.iter().map(|&(gpa, len)| Buffer { gpa, len }).collect()
}

/// The request of `kind` at `sector` with these buffers after the header, and before the answer.
fn ask(
    disk: &Geometry,
    ram: &Ram,
    (kind, sector): (u32, u64),
    readable: &[(u64, u32)],
    writable: &[(u64, u32)],
) -> Result<(Request, u64), Broken> {
    let header = u128::from(sector) << 64 | u128::from(kind);
    assert!(ram.write(HEADER_AT, &header.to_le_bytes()));
    let readable = buffers(&[&[(HEADER_AT, 16)], readable].concat());
    let writable = buffers(&[writable, &[(0x200, 1)]].concat());
    disk.request(ram, &mut Chain { head: 0, readable, writable })
}

fn done(answer: u8) -> Result<(Request, u64), Broken> {
    Ok((Request::Done(answer, 0), 0x200))
}

#[test]
fn transfers_name_their_data() {
    let (disk, ram) = (disk(Access::Write), Ram::new(0x4000));
    let data = [(0x1000, 512), (0x2000, 1024)];
    for (kind, number) in [(Kind::Read, 0), (Kind::Write, 1)] {
        let (readable, writable): (&[_], &[_]) =
            if kind == Kind::Read { (&[], &data) } else { (&data, &[]) };
        let transfer = Transfer { kind, sector: 97, bytes: 1536, sectors: 0 };
        let request = ask(&disk, &ram, (number, 97), readable, writable);
        assert_eq!(request, Ok((Request::Transfer(transfer), 0x200)));
        let past = ask(&disk, &ram, (number, 98), readable, writable);
        assert_eq!(past, done(answer::IOERR), "past the end");
        let far = ask(&disk, &ram, (number, u64::MAX), readable, writable);
        assert_eq!(far, done(answer::IOERR));
    }
    let odd = ask(&disk, &ram, (0, 0), &[], &[(0x1000, 511)]);
    assert_eq!(odd, done(answer::IOERR));
    assert_eq!(ask(&disk, &ram, (0, 100), &[], &[]), done(answer::OK), "nothing, at the end");
    assert_eq!(ask(&disk, &ram, (12, 0), &[], &[]), done(answer::UNSUPP));
    let flush = ask(&disk, &ram, (4, 9), &[], &[]).unwrap().0;
    assert!(matches!(flush, Request::Transfer(Transfer { kind: Kind::Flush, bytes: 0, .. })));
}

#[test]
fn a_disk_that_may_only_be_read_refuses_writes() {
    let (disk, ram) = (disk(Access::Read), Ram::new(0x4000));
    assert_eq!(ask(&disk, &ram, (1, 0), &[(0x1000, 512)], &[]), done(answer::IOERR));
    assert_eq!(ask(&disk, &ram, (11, 0), &[(0x1000, 16)], &[]), done(answer::UNSUPP));
    assert_ne!(disk.identity().features & RO, 0);
}

#[test]
fn several_queues_are_offered_where_there_are() {
    for (queues, offered) in [(1, false), (2, true), (4, true)] {
        let disk = Geometry { queues, ..disk(Access::Write) };
        let Identity { features, queues: all, config, .. } = disk.identity();
        assert_eq!(features & MQ != 0, offered);
        let expected = [(MQ, usize::from(queues)), (0, 1)];
        assert_eq!(*all, expected[usize::from(!offered)..]);
        // num_queues is at offset 34.
        assert_eq!(config[8], if offered { u32::from(queues) << 16 } else { 0 });
    }
}

/// What is asked of a part of a disk never reaches its neighbours.
#[test]
fn a_part_is_not_left() {
    let (whole, ram) = (disk(Access::Write), Ram::new(0x4000));
    let part = Geometry { first: 1000, sectors: 10, ..whole };
    let range = |sector: u64, sectors: u64| {
        let range = u128::from(sectors) << 64 | u128::from(sector);
        assert!(ram.write(0x3000, &range.to_le_bytes()));
    };
    let places = |request| match request {
        Ok((Request::Transfer(Transfer { sector, bytes, sectors, .. }), _)) => {
            Some(sector..sector + bytes / 512 + u64::from(sectors))
        }
        Ok((Request::Done(answer::IOERR, 0), _)) => None,
        other => panic!("{other:?}"),
    };
    for (sector, sectors, fits) in [
        (0, 1, true),
        (9, 1, true),
        (0, 10, true),
        (10, 1, false),
        (9, 2, false),
        (0, 11, false),
        (u64::MAX, 1, false),
        // Sectors of the whole disk that would be others of the part, if they wrapped.
        (u64::MAX - 999, 1, false),
        (u64::MAX - 990, 1, false),
        (1000, 1, false),
    ] {
        let expected = fits.then(|| 1000 + sector..1000 + sector + sectors);
        let data = [(0x1000, 512 * sectors as u32)];
        range(sector, sectors);
        for (kind, readable, writable) in [
            (0, &[][..], &data[..]),
            (1, &data, &[]),
            (11, &[(0x3000, 16)], &[]),
            (13, &[(0x3000, 16)], &[]),
        ] {
            let asked = ask(&part, &ram, (kind, sector), readable, writable);
            assert_eq!(places(asked), expected, "{kind} {sector} {sectors}");
        }
    }
}

#[test]
fn ranges_are_erased() {
    let (disk, ram) = (disk(Access::Write), Ram::new(0x4000));
    let words = disk.identity().config;
    assert_eq!((&words[9..13], words[13], words[14]), (&[50, 1, 8, 20][..], 1, 1));
    let erase = |kind: u32, sector: u64, sectors: u32, flags: u32| {
        let range = u128::from(flags) << 96 | u128::from(sectors) << 64 | u128::from(sector);
        assert!(ram.write(0x1000, &range.to_le_bytes()));
        ask(&disk, &ram, (kind, 0), &[(0x1000, 7), (0x1007, 9)], &[])
    };
    let transfer = |kind, sector, sectors| {
        Ok((Request::Transfer(Transfer { kind, sector, bytes: 0, sectors }), 0x200))
    };
    assert_eq!(erase(11, 50, 50, 0), transfer(Kind::Discard, 50, 50));
    assert_eq!(erase(13, 80, 20, 0), transfer(Kind::Zero, 80, 20));
    assert_eq!(erase(13, 0, 1, 1), transfer(Kind::ZeroAndUnmap, 0, 1));
    assert_eq!(erase(11, 100, 0, 0), done(answer::OK), "nothing, at the end");
    for (kind, sector, sectors) in
        [(11, 51, 50), (11, 0, 51), (13, 0, 21), (13, 81, 20), (11, u64::MAX, 1)]
    {
        assert_eq!(erase(kind, sector, sectors, 0), done(answer::IOERR), "{kind} {sector}");
    }
    assert_eq!(erase(11, 0, 1, 1), done(answer::UNSUPP));
    assert_eq!(erase(13, 0, 1, 2), done(answer::UNSUPP));
    for buffers in [&[(0x1000, 15)][..], &[(0x1000, 32)], &[(0x10_0000, 16)]] {
        assert_eq!(ask(&disk, &ram, (11, 0), buffers, &[]), done(answer::IOERR));
    }
}

#[test]
fn the_name_is_told() {
    let (disk, ram) = (disk(Access::Write), Ram::new(0x4000));
    let told = ask(&disk, &ram, (8, 0), &[], &[(0x1000, 3), (0x2000, 17)]);
    assert_eq!(told, Ok((Request::Done(answer::OK, 20), 0x200)));
    let bytes = ram.bytes.borrow();
    assert_eq!((&bytes[0x1000..0x1003], &bytes[0x2000..0x2002]), (&b"dis"[..], &b"k\0"[..]));
}

#[test]
fn what_cannot_be_answered_is_refused() {
    let (disk, ram) = (disk(Access::Write), Ram::new(0x4000));
    let chain = |readable, writable| {
        let (readable, writable) = (buffers(readable), buffers(writable));
        disk.request(&ram, &mut Chain { head: 0, readable, writable })
    };
    assert_eq!(chain(&[(0x100, 15)], &[(0x200, 1)]), Err(Broken::Unanswerable));
    assert_eq!(chain(&[(0x100, 16)], &[]), Err(Broken::Unanswerable));
    assert_eq!(chain(&[], &[]), Err(Broken::Unanswerable));
    let away = chain(&[(0x10_0000, 16)], &[(0x200, 1)]);
    assert_eq!(away, done(answer::IOERR), "a header where no memory is");
}

proptest! {
    /// Wherever header and data are split, the same request comes out; and the data is what is
    /// left of the buffers.
    #[test]
    fn splits_do_not_matter(
        cuts in prop::collection::vec(1..40u32, 1..60),
        sector in 0..120u64,
    ) {
        let (disk, ram) = (disk(Access::Write), Ram::new(0x4000));
        let header = u128::from(sector) << 64 | 1;
        assert!(ram.write(0x400, &header.to_le_bytes()));
        let mut at = 0x400;
        let mut readable = ArrayVec::<Buffer, MOST>::new();
        for len in cuts {
            readable.push(Buffer { gpa: at, len });
            at += u64::from(len);
        }
        let total = at - 0x400;
        let mut chain = Chain { head: 0, readable, writable: buffers(&[(0x1000, 5)]) };
        let asked = disk.request(&ram, &mut chain);
        let data = total.checked_sub(16);
        match (asked, data) {
            (Err(Broken::Unanswerable), None) => {}
            (Ok((request, 0x1004)), Some(bytes)) => {
                let fine = bytes % 512 == 0 && sector + bytes / 512 <= 100;
                match request {
                    Request::Transfer(transfer) => {
                        prop_assert!(fine && transfer.bytes == bytes);
                        let places: Vec<_> = transfer.data(&chain).iter().flat_map(|b| b.gpa..b.gpa + u64::from(b.len)).collect();
                        prop_assert!(places.into_iter().eq(0x410..at));
                    }
                    Request::Done(answer::OK, 0) => prop_assert!(fine && bytes == 0),
                    Request::Done(code, _) => prop_assert!(!fine && code == answer::IOERR),
                }
            }
            (other, _) => prop_assert!(false, "{:?}", other),
        }
    }
}
