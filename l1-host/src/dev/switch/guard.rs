//! Judges whether a card may send a frame: nobody sends in another's name.
//! May: nothing. Context: any. Input: guest-controlled frames.

use super::{ETHERNET, Mac, source};

/// Types of frames.
const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
/// The protocol's number in an IPv4 header, and the port of those who ask for an address.
const UDP: u8 = 17;
const BOOTP_SERVER: u16 = 67;

/// The addresses by which a card may send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    /// Its own.
    pub mac: Mac,
    /// The only IPv4 address, if it is settled. Such a card sends IPv4 and ARP, nothing else: by other
    /// protocols, or within a tag, it could send as whom it likes.
    pub ip: Option<[u8; 4]>,
}

impl Guard {
    /// True if the card may send `frame`, of [`ETHERNET`] bytes or more.
    #[must_use]
    pub fn allows(&self, frame: &[u8]) -> bool {
        if source(frame) != self.mac {
            return false;
        }
        let Some(ip) = self.ip else { return true };
        let packet = &frame[ETHERNET..];
        match word(frame, 12) {
            Some(IPV4) => Self::allows_packet(packet, ip),
            Some(ARP) => self.allows_arp(packet, ip),
            _ => false,
        }
    }

    /// From its own address, or from none if it asks for one.
    fn allows_packet(packet: &[u8], ip: [u8; 4]) -> bool {
        let Some(from) = packet.get(12..16) else { return false };
        if from == ip {
            return true;
        }
        let header = usize::from(packet[0] & 0xf) * 4;
        from == [0; 4] && packet[9] == UDP && word(packet, header + 2) == Some(BOOTP_SERVER)
    }

    /// It tells of its own addresses, or asks whether an address is taken.
    fn allows_arp(&self, packet: &[u8], ip: [u8; 4]) -> bool {
        let Some((mac, from)) = packet.get(8..14).zip(packet.get(14..18)) else { return false };
        mac == self.mac && (from == ip || from == [0; 4])
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    let two = bytes.get(at..at + 2)?;
    Some(u16::from_be_bytes([two[0], two[1]]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    const MAC: Mac = [2, 0, 0, 0, 0, 1];
    const IP: [u8; 4] = [10, 0, 2, 15];

    fn frame(from: Mac, kind: u16, packet: &[u8]) -> Vec<u8> {
        [&[0xff; 6][..], &from, &kind.to_be_bytes(), packet].concat()
    }

    fn ipv4(from: [u8; 4], protocol: u8, port: u16) -> Vec<u8> {
        let mut packet = std::vec![0; 28];
        packet[0] = 0x45;
        packet[9] = protocol;
        packet[12..16].copy_from_slice(&from);
        packet[22..24].copy_from_slice(&port.to_be_bytes());
        frame(MAC, IPV4, &packet)
    }

    fn arp(mac: Mac, from: [u8; 4]) -> Vec<u8> {
        let mut packet = std::vec![0; 28];
        packet[8..14].copy_from_slice(&mac);
        packet[14..18].copy_from_slice(&from);
        frame(MAC, ARP, &packet)
    }

    #[test]
    fn by_its_own_address_alone() {
        let guard = Guard { mac: MAC, ip: None };
        assert!(guard.allows(&frame(MAC, 0x86dd, &[])));
        assert!(!guard.allows(&frame([2, 0, 0, 0, 0, 2], 0x86dd, &[])));
        let settled = Guard { ip: Some(IP), ..guard };
        for (allowed, frame) in [
            (true, ipv4(IP, 6, 80)),
            (false, ipv4([10, 0, 2, 16], 6, 80)),
            (true, ipv4([0; 4], UDP, 67)),
            (false, ipv4([0; 4], UDP, 53)),
            (false, ipv4([0; 4], 6, 67)),
            (true, arp(MAC, IP)),
            (true, arp(MAC, [0; 4])),
            (false, arp(MAC, [10, 0, 2, 2])),
            (false, arp([2, 0, 0, 0, 0, 9], IP)),
            (false, frame(MAC, 0x86dd, &[0; 40])),
            (false, frame(MAC, 0x8100, &[0; 40])),
            (false, frame(MAC, IPV4, &[0x45; 15])),
            (false, frame(MAC, ARP, &[0; 17])),
        ] {
            assert_eq!(settled.allows(&frame), allowed, "{frame:x?}");
        }
    }

    proptest! {
        /// No frame is too odd to be judged, and none passes by another's address.
        #[test]
        fn any_frame_is_judged(bytes in prop::collection::vec(any::<u8>(), ETHERNET..80), own in any::<bool>()) {
            let mut bytes = bytes;
            if own {
                bytes[6..12].copy_from_slice(&MAC);
            }
            for ip in [None, Some(IP)] {
                let allowed = Guard { mac: MAC, ip }.allows(&bytes);
                prop_assert!(!allowed || bytes[6..12] == MAC);
            }
        }
    }
}
