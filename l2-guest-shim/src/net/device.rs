//! What there is to know of a virtio network card (virtio 1.2, 5.1).
//! May: nothing. Context: shim. Input: from L1.

use crate::virtio::device::{Registers, config as word, kind, negotiate};
use pv_abi::{
    ext::devices::CARD_PAIRS_MOST,
    virtio::{
        feature::VERSION_1,
        net::{
            DEVICE, config,
            feature::{
                CSUM, CTRL_VQ, GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, HOST_TSO4, HOST_TSO6, MAC, MQ,
                MRG_RXBUF, MTU, SPACER,
            },
        },
    },
};

/// Pairs of queues that are used at most.
pub const PAIRS_MOST: usize = CARD_PAIRS_MOST;
/// Features that are of use here.
const WANTED: u64 = NEEDED | GUEST_CSUM | LONG | HOST_TSO4 | HOST_TSO6 | MTU | SEVERAL;
/// Several pairs of queues.
const SEVERAL: u64 = CTRL_VQ | MQ;
/// Long segments of IPv4 and IPv6 come whole, with a place for what is to be said of them.
const LONG: u64 = GUEST_TSO4 | GUEST_TSO6 | SPACER;
/// Features without which a front end cannot be served: it leaves checksums to the card whatever is
/// said, and has more buffers than a queue has entries for pairs.
const NEEDED: u64 = VERSION_1 | CSUM | MAC | MRG_RXBUF;

/// Features that are of use where `pairs` of queues are used.
#[must_use]
pub const fn wanted(pairs: usize) -> u64 {
    if pairs > 1 { WANTED } else { WANTED & !SEVERAL }
}

/// What there is to know of a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Properties {
    /// Its address.
    pub mac: [u8; 6],
    /// Bytes of a packet at most, if it says so.
    pub mtu: Option<u16>,
    /// It cuts long TCP segments of IPv4 into frames.
    pub tso4: bool,
    /// Likewise of IPv6.
    pub tso6: bool,
    /// It leaves a place for what is to be said of long segments to come: without, they cannot be passed on.
    pub spacer: bool,
    /// Pairs of queues that it has.
    pub pairs: u16,
}

impl Properties {
    /// Pairs that are used at most.
    #[must_use]
    pub fn most_pairs(&self) -> usize {
        usize::from(self.pairs).clamp(1, PAIRS_MOST)
    }

    /// The number of its control queue, if several pairs are used.
    #[must_use]
    pub fn control_queue(&self) -> u32 {
        2 * u32::from(self.pairs)
    }
}

/// The card behind `registers`, if one is there that can be used.
pub fn find(registers: &impl Registers) -> Option<Properties> {
    kind(registers).filter(|&kind| kind == DEVICE)?;
    let features = negotiate(registers, WANTED)?;
    let has = |feature| features & feature != 0;
    if features & NEEDED != NEEDED {
        return None;
    }
    let [a, b, c, d] = word(registers, config::MAC).to_le_bytes();
    let [e, f, ..] = word(registers, config::MAC + 4).to_le_bytes();
    // The configuration is read by words; these are the halves of one.
    let both = word(registers, config::MAX_VIRTQUEUE_PAIRS);
    let mtu = has(MTU).then_some((both >> 16) as u16);
    let pairs = if features & SEVERAL == SEVERAL { both as u16 } else { 1 };
    Some(Properties {
        mac: [a, b, c, d, e, f],
        mtu,
        tso4: has(HOST_TSO4),
        tso6: has(HOST_TSO6),
        spacer: has(SPACER),
        pairs,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::device::fake::Device;

    const WORDS: [(u64, u32); 3] = [(0, 0x3302_1152), (4, 0x0001_7744), (8, 1500 << 16 | 1)];

    #[test]
    fn a_card_is_found() {
        let card = Device::new(DEVICE, CSUM | MAC | MRG_RXBUF | MTU | HOST_TSO4, &WORDS);
        let mac = [0x52, 0x11, 2, 0x33, 0x44, 0x77];
        let properties =
            Properties { mac, mtu: Some(1500), tso4: true, tso6: false, spacer: false, pairs: 1 };
        assert_eq!(find(&card), Some(properties));
        let plain = Device::new(DEVICE, CSUM | MAC | MRG_RXBUF, &WORDS);
        assert_eq!(find(&plain), Some(Properties { mtu: None, tso4: false, ..properties }));
        let spaced = Device::new(DEVICE, CSUM | MAC | MRG_RXBUF | MTU | HOST_TSO4 | SPACER, &WORDS);
        assert_eq!(find(&spaced), Some(Properties { spacer: true, ..properties }));
    }

    #[test]
    fn several_pairs_are_used_as_far_as_there_is_room() {
        const ALL: u64 = CSUM | MAC | MRG_RXBUF | CTRL_VQ | MQ;
        // Beside their number in its word is the MTU.
        for (said, used, control) in [(0, 1, 0), (1, 1, 2), (3, 3, 6), (0x8000, 4, 0x1_0000)] {
            let card = find(&Device::new(DEVICE, ALL, &[(8, 1500 << 16 | said)])).unwrap();
            assert_eq!((card.most_pairs(), card.control_queue()), (used, control));
        }
        for lacking in [CTRL_VQ, MQ] {
            let card = find(&Device::new(DEVICE, ALL & !lacking, &[(8, 3)])).unwrap();
            assert_eq!(card.most_pairs(), 1, "not offered");
        }
        assert_eq!((wanted(1) & SEVERAL, wanted(2) & SEVERAL), (0, SEVERAL));
    }

    #[test]
    fn a_card_that_lacks_something_is_none() {
        for lacking in [CSUM, MAC, MRG_RXBUF] {
            let features = (CSUM | MAC | MRG_RXBUF) & !lacking;
            assert_eq!(find(&Device::new(DEVICE, features, &WORDS)), None);
        }
        assert_eq!(find(&Device::new(2, WANTED, &WORDS)), None, "it is a disk");
    }
}
