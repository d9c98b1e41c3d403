//! What a network card of the machine does to frames for L1, and how the header before each says so (virtio
//! 1.2, 5.1.6).
//! May: nothing. Context: any. Input: features and headers of the machine's device.

use crate::dev::{
    switch::{
        frame::{Frame, Offload},
        segment::Version,
    },
    virtio::net::{self as card, Header},
};
use pv_abi::virtio::{
    feature,
    net::{self, header},
};

bitflags::bitflags! {
    /// Features that L1 knows.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Features: u64 {
        /// It has an address.
        const MAC = net::feature::MAC;
        /// It speaks virtio 1.
        const VERSION_1 = feature::VERSION_1;
        /// It completes checksums of what is sent.
        const CSUM = net::feature::CSUM;
        /// It divides what is sent by TCP over IPv4.
        const HOST_TSO4 = net::feature::HOST_TSO4;
        /// The same over IPv6.
        const HOST_TSO6 = net::feature::HOST_TSO6;
        /// Checksums of what comes may be left undone.
        const GUEST_CSUM = net::feature::GUEST_CSUM;
        /// What comes by TCP over IPv4 may be long.
        const GUEST_TSO4 = net::feature::GUEST_TSO4;
        /// The same over IPv6.
        const GUEST_TSO6 = net::feature::GUEST_TSO6;
        /// What comes may be in several buffers.
        const MRG_RXBUF = net::feature::MRG_RXBUF;

        /// What needs [`Self::CSUM`].
        const DIVIDES = Self::HOST_TSO4.bits() | Self::HOST_TSO6.bits();
        /// What lets the device leave something to L1.
        const LEAVES = Self::GUEST_CSUM.bits()
            | Self::GUEST_TSO4.bits()
            | Self::GUEST_TSO6.bits()
            | Self::MRG_RXBUF.bits();
    }
}

impl Features {
    /// Those of `offered` that L1 wants.
    #[must_use]
    pub fn wanted(offered: u64) -> Self {
        let mut wanted = Self::from_bits_truncate(offered);
        if !wanted.contains(Self::CSUM) {
            wanted.remove(Self::DIVIDES);
        }
        // L1 joins segments whose checksums are there: a device that leaves those out has to join too.
        if !wanted.contains(Self::LEAVES) {
            wanted.remove(Self::LEAVES);
        }
        wanted
    }

    /// True if the device does what is left undone of a frame that it is to send.
    #[must_use]
    pub fn completes(self, offload: &Offload) -> bool {
        let sum = offload.checksum.map_or(Self::empty(), |_| Self::CSUM);
        let division = offload.division.map_or(Self::empty(), |division| match division.version {
            Version::V4 => Self::CSUM | Self::HOST_TSO4,
            Version::V6 => Self::CSUM | Self::HOST_TSO6,
        });
        self.contains(sum | division)
    }
}

/// The header of a frame that the device is to send.
#[must_use]
pub fn describe(frame: &Frame<'_>) -> Header {
    let mut bytes = card::describe(&frame.offload);
    let mut put = |at: usize, word: u16| bytes[at..at + 2].copy_from_slice(&word.to_le_bytes());
    put(header::NUM_BUFFERS, 0);
    put(header::HDR_LEN, frame.header() as u16);
    bytes
}

/// What the device says of a frame that has come: in how many buffers it is, and what is left undone; `None` if
/// it must not leave that undone.
#[must_use]
pub fn parse(bytes: &Header, features: Features) -> (u16, Option<Offload>) {
    if !features.contains(Features::LEAVES) {
        return (1, Some(Offload::default()));
    }
    let buffers = [bytes[header::NUM_BUFFERS], bytes[header::NUM_BUFFERS + 1]];
    // What L1 has accepted, in the words of a device whose driver sends.
    let accepted = net::feature::CSUM | net::feature::HOST_TSO4 | net::feature::HOST_TSO6;
    (u16::from_le_bytes(buffers), card::parse(bytes, accepted))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dev::switch::{
        frame::Partial,
        segment::{Division, LONGEST_SEGMENT, fixture},
    };
    use proptest::prelude::*;
    use std::{vec, vec::Vec};

    #[test]
    fn nothing_is_wanted_without_what_it_needs() {
        let basic = Features::MAC | Features::VERSION_1;
        let wanted = |offered: Features| Features::wanted((basic | offered).bits());
        assert_eq!(wanted(Features::all()), Features::all());
        assert_eq!(Features::wanted(u64::MAX), Features::all(), "what L1 does not know");
        assert_eq!(wanted(Features::DIVIDES), basic);
        assert_eq!(wanted(Features::CSUM), basic | Features::CSUM);
        for lacking in Features::LEAVES.iter() {
            assert_eq!(wanted(Features::LEAVES - lacking), basic, "{lacking:?}");
        }
    }

    #[test]
    fn a_device_completes_what_it_has_agreed_to() {
        let checksum = Some(Partial { start: 34, offset: 16 });
        let of = |version: Option<Version>| Offload {
            checksum,
            division: version.map(|version| Division { version, size: 1000 }),
        };
        let (plain, v4, v6) = (of(None), of(Some(Version::V4)), of(Some(Version::V6)));
        let does = |features: Features| {
            [Offload::default(), plain, v4, v6].map(|offload| features.completes(&offload))
        };
        assert_eq!(does(Features::MAC), [true, false, false, false]);
        assert_eq!(does(Features::CSUM), [true, true, false, false]);
        assert_eq!(does(Features::CSUM | Features::HOST_TSO4), [true, true, true, false]);
        assert_eq!(does(Features::CSUM | Features::HOST_TSO6), [true, true, false, true]);
        assert_eq!(does(Features::DIVIDES), [true, false, false, false]);
    }

    #[test]
    fn a_device_that_may_leave_nothing_is_not_asked() {
        let said = parse(&[0xff; net::HEADER], Features::all() - Features::MRG_RXBUF);
        assert_eq!(said, (1, Some(Offload::default())));
    }

    #[test]
    fn nonsense_is_not_taken() {
        let said = |at: usize, byte: u8| {
            let mut bytes = [0; net::HEADER];
            bytes[at] = byte;
            parse(&bytes, Features::all())
        };
        assert_eq!(said(header::NUM_BUFFERS, 3), (3, Some(Offload::default())));
        assert_eq!(said(header::NUM_BUFFERS, 0).0, 0);
        assert_eq!(said(header::GSO_TYPE, 3).1, None, "UDP");
        assert_eq!(said(header::GSO_TYPE, header::GSO_TCPV4 | header::GSO_ECN).1, None);
        assert_eq!(said(header::FLAGS, header::DATA_VALID).1, Some(Offload::default()));
        // A checksum outside the frame, and segments of nothing, are no frame.
        let mut bytes = [0xff; net::HEADER];
        bytes[header::FLAGS] = header::NEEDS_CSUM;
        bytes[header::GSO_TYPE] = header::GSO_NONE;
        let offload = parse(&bytes, Features::all()).1.unwrap();
        assert!(Frame::new(&mut vec![0; 1000], offload, &mut []).is_none());
        let (mut long, sum) = fixture::packet(Version::V4, 0, 4000, 0);
        let division = Division { version: Version::V4, size: 0 };
        let offload = Offload { checksum: Some(sum), division: Some(division) };
        assert!(Frame::new(&mut long, offload, &mut []).is_none());
    }

    proptest! {
        /// Who reads the header, as a device does, makes of the frame what L1 makes of it.
        #[test]
        fn the_header_says_all(
            v4 in any::<bool>(),
            options in 0..10usize,
            data in 1..20_000usize,
            size in prop::option::of(128..8000u16),
        ) {
            let version = if v4 { Version::V4 } else { Version::V6 };
            let (mut bytes, sum) = fixture::packet(version, 4 * options, data, 0x18);
            let division = size.map(|size| Division { version, size });
            let offload = Offload { checksum: Some(sum), division };
            let mut spare = vec![0; LONGEST_SEGMENT];
            let mut copy = bytes.clone();
            let frame = Frame::new(&mut bytes, offload, &mut spare).unwrap();
            let said = describe(&frame);
            let hdr_len = u16::from_le_bytes([said[header::HDR_LEN], said[header::HDR_LEN + 1]]);
            let headers = usize::from(sum.start) + 20 + 4 * options;
            prop_assert_eq!(usize::from(hdr_len), if size.is_some() { headers } else { 0 });
            let (buffers, offload) = parse(&said, Features::all());
            prop_assert_eq!(buffers, 0);
            let mut spare = vec![0; LONGEST_SEGMENT];
            let read = Frame::new(&mut copy, offload.unwrap(), &mut spare).unwrap();
            let all = |frame: &Frame<'_>| -> Vec<Vec<u8>> {
                let frames = frame.completed();
                let mut out = vec![0; frames.longest()];
                (0..frames.count())
                    .map(|number| {
                        let len = frames.write(number, &mut out);
                        out[..len].to_vec()
                    })
                    .collect()
            };
            prop_assert_eq!(all(&frame), all(&read));
        }

        /// Whatever is said of whatever bytes: it is a frame that can be completed, or none.
        #[test]
        fn any_header_is_borne(
            header in any::<[u8; net::HEADER]>(),
            kind in prop::sample::select(vec![0u8, 1, 4, 0x81]),
            data in 0..3000usize,
        ) {
            let mut header = header;
            header[header::GSO_TYPE] = kind;
            let (mut bytes, _) = fixture::packet(Version::V4, 0, data, 0);
            let mut spare = vec![0; LONGEST_SEGMENT];
            if let Some(offload) = parse(&header, Features::all()).1
                && let Some(mut frame) = Frame::new(&mut bytes, offload, &mut spare)
            {
                frame.divide(|frame| frame.complete_checksum());
            }
        }
    }
}
