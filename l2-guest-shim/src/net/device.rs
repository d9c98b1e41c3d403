//! What there is to know of a virtio network card (virtio 1.2, 5.1).
//! May: nothing. Context: shim. Input: from L1.

use crate::virtio::device::{Registers, config as word, kind, negotiate};
use pv_abi::virtio::{
    feature::VERSION_1,
    net::{
        DEVICE, config,
        feature::{
            CSUM, GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, HOST_TSO4, HOST_TSO6, MAC, MRG_RXBUF, MTU,
            SPACER,
        },
    },
};

/// Features that are of use here.
pub const WANTED: u64 = NEEDED | GUEST_CSUM | LONG | HOST_TSO4 | HOST_TSO6 | MTU;
/// Long segments of IPv4 and IPv6 come whole, with a place for what is to be said of them.
const LONG: u64 = GUEST_TSO4 | GUEST_TSO6 | SPACER;
/// Features without which a front end cannot be served: it leaves checksums to the card whatever is
/// said, and has more buffers than a queue has entries for pairs.
const NEEDED: u64 = VERSION_1 | CSUM | MAC | MRG_RXBUF;

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
    // The configuration is read by words; this is the upper half of one.
    let mtu = (word(registers, config::MTU & !3) >> 16) as u16;
    let mtu = has(MTU).then_some(mtu);
    Some(Properties {
        mac: [a, b, c, d, e, f],
        mtu,
        tso4: has(HOST_TSO4),
        tso6: has(HOST_TSO6),
        spacer: has(SPACER),
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
            Properties { mac, mtu: Some(1500), tso4: true, tso6: false, spacer: false };
        assert_eq!(find(&card), Some(properties));
        let plain = Device::new(DEVICE, CSUM | MAC | MRG_RXBUF, &WORDS);
        assert_eq!(find(&plain), Some(Properties { mtu: None, tso4: false, ..properties }));
        let spaced = Device::new(DEVICE, CSUM | MAC | MRG_RXBUF | MTU | HOST_TSO4 | SPACER, &WORDS);
        assert_eq!(find(&spaced), Some(Properties { spacer: true, ..properties }));
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
