//! What the store says of a network card, and what its front end says there.
//! May: nothing. Context: shim. Input: guest-controlled nodes.

use super::{device::Properties, transmit::Cuts};
use crate::{
    store::{Error, Store},
    xenbus::{Backend, Front},
};
use core::fmt;

/// Card number `index`.
#[must_use]
pub const fn backend(index: u32) -> Backend {
    Backend::new("vif", index)
}

/// Writes what the kernel finds at its start.
///
/// # Errors
/// [`Error::NoSpace`].
pub fn place(backend: &Backend, store: &mut Store, properties: &Properties) -> Result<(), Error> {
    let Properties { mac, mtu, tso4, tso6, .. } = *properties;
    let [a, b, c, d, e, f] = mac;
    backend.place(store)?;
    let mut front = |name: &str, value: fmt::Arguments<'_>| backend.place_front(store, name, value);
    front("/handle", format_args!("{}", backend.number()))?;
    front("/mac", format_args!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"))?;
    if let Some(mtu) = mtu {
        front("/mtu", format_args!("{mtu}"))?;
    }
    let mut back = |name: &str, value: fmt::Arguments<'_>| backend.place_back(store, name, value);
    back("/handle", format_args!("{}", backend.number()))?;
    back("/feature-rx-copy", format_args!("1"))?;
    back("/feature-sg", format_args!("1"))?;
    back("/feature-ipv6-csum-offload", format_args!("1"))?;
    back("/feature-gso-tcpv4", format_args!("{}", u32::from(tso4)))?;
    back("/feature-gso-tcpv6", format_args!("{}", u32::from(tso6)))?;
    back("/feature-split-event-channels", format_args!("1"))?;
    back("/multi-queue-max-queues", format_args!("1"))
}

/// A ring that a front end wants to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring {
    /// Its grant.
    pub ring: u32,
    /// The port by which the front end is told, and tells.
    pub port: u32,
}

/// What a front end does with checksums that others have left to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blank {
    /// It takes frames without.
    Taken,
    /// It does not.
    Refused,
}

/// What a front end wants to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// For frames that it sends.
    pub transmit: Ring,
    /// For frames for it; the port may be the same.
    pub receive: Ring,
    /// See [`Blank`].
    pub blank: Blank,
    /// Long segments of IPv4 that it takes whole, and of IPv6.
    pub long: Cuts,
}

/// What `front` wants to use; `None` if it does not say so, or cannot have frames put into its pages.
#[must_use]
pub fn asked(front: &Front<'_>) -> Option<Asked> {
    let copies = front.number("/request-rx-copy") == Some(1);
    let port = |name| front.number(name).or_else(|| front.number("/event-channel"));
    let transmit = Ring { ring: front.number("/tx-ring-ref")?, port: port("/event-channel-tx")? };
    let receive = Ring { ring: front.number("/rx-ring-ref")?, port: port("/event-channel-rx")? };
    let refused = front.number("/feature-no-csum-offload") == Some(1);
    let blank = if refused { Blank::Refused } else { Blank::Taken };
    let says = |name| front.number(name) == Some(1);
    // They need more than a page, and have no checksums.
    let may = !refused && says("/feature-sg");
    let v4 = may && says("/feature-gso-tcpv4");
    let v6 = may && says("/feature-gso-tcpv6") && says("/feature-ipv6-csum-offload");
    copies.then_some(Asked { transmit, receive, blank, long: Cuts { v4, v6 } })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xenbus::fake::Talk;
    use pv_abi::ext::devices::SLOTS;

    const PROPERTIES: Properties = Properties {
        mac: [0x52, 0x54, 0, 0xab, 0xcd, 1],
        mtu: Some(1500),
        tso4: true,
        tso6: false,
        spacer: true,
    };

    fn talk() -> Talk<Asked> {
        let mut store = Box::new(Store::new());
        let backend = backend(2);
        place(&backend, &mut store, &PROPERTIES).unwrap();
        Talk::new(store, backend, asked)
    }

    #[test]
    fn the_store_says_what_the_card_is() {
        let talk = talk();
        for (name, value) in [
            ("/state", Some("2")),
            ("/handle", Some("2")),
            ("/feature-rx-copy", Some("1")),
            ("/feature-sg", Some("1")),
            ("/feature-gso-tcpv4", Some("1")),
            ("/feature-gso-tcpv6", Some("0")),
            ("/feature-split-event-channels", Some("1")),
            ("/frontend", Some("/local/domain/1/device/vif/2")),
            ("/feature-no-csum-offload", None),
        ] {
            assert_eq!(talk.back(name).as_deref(), value, "{name}");
        }
        let front = |name: &str| {
            talk.store
                .value(format!("/local/domain/1/device/vif/2/{name}").as_bytes())
                .unwrap()
                .to_vec()
        };
        assert_eq!(front("mac"), b"52:54:00:ab:cd:01");
        assert_eq!(front("mtu"), b"1500");
        assert_eq!(front("backend"), b"/local/domain/0/backend/vif/1/2");
    }

    #[test]
    fn a_front_end_connects_again_and_again() {
        let mut talk = talk();
        for ports in [
            &[("/event-channel", "12")][..],
            &[("/event-channel-tx", "13"), ("/event-channel-rx", "14")],
        ] {
            for &(name, value) in
                [("/tx-ring-ref", "8"), ("/rx-ring-ref", "9"), ("/request-rx-copy", "1")]
                    .iter()
                    .chain(ports)
            {
                talk.write(name, value);
            }
            assert_eq!(talk.is(), "2");
            talk.state(4);
            let asked = talk.asked.wanted.unwrap();
            let (tx, rx) = if ports.len() == 1 { (12, 12) } else { (13, 14) };
            assert_eq!(asked.transmit, Ring { ring: 8, port: tx });
            assert_eq!(asked.receive, Ring { ring: 9, port: rx });
            assert_eq!((talk.is().as_str(), asked.blank), ("4", Blank::Taken));
            talk.state(5);
            talk.state(6);
            assert_eq!((talk.is().as_str(), talk.asked.wanted), ("6", None));
            talk.state(1);
            assert_eq!(talk.is(), "2");
        }
    }

    #[test]
    fn long_segments_are_taken_by_who_says_so() {
        let long = |said: &[&str]| {
            let mut talk = talk();
            let all = ["tx-ring-ref", "rx-ring-ref", "event-channel", "request-rx-copy"];
            for name in all.iter().chain(said) {
                talk.write(&format!("/{name}"), "1");
            }
            talk.state(4);
            talk.asked.wanted.unwrap().long
        };
        let (gso4, gso6, sum6) =
            ("feature-gso-tcpv4", "feature-gso-tcpv6", "feature-ipv6-csum-offload");
        assert_eq!(long(&["feature-sg", gso4]), Cuts { v4: true, v6: false });
        assert_eq!(long(&["feature-sg", gso4, gso6, sum6]), Cuts { v4: true, v6: true });
        assert_eq!(long(&["feature-sg", gso6]), Cuts::default(), "no checksums are left to it");
        assert_eq!(long(&[gso4]), Cuts::default(), "they do not fit a page");
        assert_eq!(long(&["feature-sg", gso4, "feature-no-csum-offload"]), Cuts::default());
    }

    #[test]
    fn what_it_says_must_make_sense() {
        let all = [
            ("/tx-ring-ref", "8"),
            ("/rx-ring-ref", "9"),
            ("/event-channel", "12"),
            ("/request-rx-copy", "1"),
            ("/feature-no-csum-offload", "1"),
        ];
        for bad in 0..=4 {
            for value in ["", "x", "-1", "0"] {
                let mut talk = talk();
                for (number, (name, good)) in all.into_iter().enumerate() {
                    talk.write(name, if number == bad { value } else { good });
                }
                talk.state(4);
                // A grant or port 0 is a number; who looks it up refuses it.
                let taken = bad == 4 || (value == "0" && bad < 3);
                assert_eq!(talk.asked.wanted.is_some(), taken, "{} {value}", all[bad].0);
                let blank = if bad == 4 { Blank::Taken } else { Blank::Refused };
                assert!(talk.asked.wanted.is_none_or(|asked| asked.blank == blank));
                assert_eq!(talk.is(), if taken { "4" } else { "5" });
            }
        }
    }

    #[test]
    fn cards_in_every_slot_fit() {
        let mut store = Box::new(Store::new());
        let most = Properties { mtu: Some(u16::MAX), ..PROPERTIES };
        for index in 0..SLOTS as u32 {
            place(&backend(index), &mut store, &most).unwrap();
        }
        store.assert_has_room(1000 * SLOTS);
    }
}
