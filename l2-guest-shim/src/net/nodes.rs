//! What the store says of a network card, and what its front end says there.
//! May: nothing. Context: shim. Input: guest-controlled nodes.

use super::{
    device::{PAIRS_MOST, Properties},
    transmit::Cuts,
};
use crate::{
    store::{Error, Store},
    xenbus::{Backend, Front},
};
use arrayvec::{ArrayString, ArrayVec};
use core::fmt::{self, Write};

/// Card number `index`.
#[must_use]
pub const fn backend(index: u32) -> Backend {
    Backend::new("vif", index)
}

/// Writes what the kernel finds at its start of a card of which it may use `pairs` of queues.
///
/// # Errors
/// [`Error::NoSpace`].
pub fn place(
    backend: &Backend,
    store: &mut Store,
    properties: &Properties,
    pairs: usize,
) -> Result<(), Error> {
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
    back("/multi-queue-max-queues", format_args!("{pairs}"))
}

/// A ring that a front end wants to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring {
    /// Its grant.
    pub ring: u32,
    /// The port by which the front end is told, and tells.
    pub port: u32,
}

/// Both rings of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// For frames that it sends.
    pub transmit: Ring,
    /// For frames for it; the port may be the same.
    pub receive: Ring,
}

impl Pair {
    /// One of them is the other's too.
    fn shares_with(&self, other: &Self) -> bool {
        let of_both = |pair: &Self| [pair.transmit, pair.receive];
        of_both(self).iter().any(|ring| {
            of_both(other).iter().any(|other| ring.ring == other.ring || ring.port == other.port)
        })
    }
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Its rings: a pair or more.
    pub pairs: ArrayVec<Pair, PAIRS_MOST>,
    /// See [`Blank`].
    pub blank: Blank,
    /// Long segments of IPv4 that it takes whole, and of IPv6.
    pub long: Cuts,
}

/// What `front` wants to use of a card of which it may use `most` pairs of queues. `None` if it does not say so, names a
/// ring or a port for two pairs, has no pair or too many, or cannot have frames put into its pages.
///
/// Names are those of Xen's public `io/netif.h`: one pair is named beside the state, several in a folder each.
#[must_use]
pub fn asked(front: &Front<'_>, most: usize) -> Option<Asked> {
    let copies = front.number("/request-rx-copy") == Some(1);
    let chosen = "/multi-queue-num-queues";
    let count = if front.has(chosen) { front.number(chosen)? as usize } else { 1 };
    if !(1..=most.min(PAIRS_MOST)).contains(&count) {
        return None;
    }
    let mut pairs = ArrayVec::<Pair, PAIRS_MOST>::new();
    for number in 0..count {
        let pair = pair(front, count, number)?;
        if pairs.iter().any(|other| pair.shares_with(other)) {
            return None;
        }
        pairs.push(pair);
    }
    let refused = front.number("/feature-no-csum-offload") == Some(1);
    let blank = if refused { Blank::Refused } else { Blank::Taken };
    let says = |name| front.number(name) == Some(1);
    // They need more than a page, and have no checksums.
    let may = !refused && says("/feature-sg");
    let v4 = may && says("/feature-gso-tcpv4");
    let v6 = may && says("/feature-gso-tcpv6") && says("/feature-ipv6-csum-offload");
    copies.then_some(Asked { pairs, blank, long: Cuts { v4, v6 } })
}

/// Pair `number` of `count`.
fn pair(front: &Front<'_>, count: usize, number: usize) -> Option<Pair> {
    let node = |name: &str| {
        let mut node = ArrayString::<32>::new();
        // All are shorter than that.
        let _ = match count {
            1 => write!(node, "/{name}"),
            _ => write!(node, "/queue-{number}/{name}"),
        };
        front.number(&node)
    };
    let port = |name| node(name).or_else(|| node("event-channel"));
    let transmit = Ring { ring: node("tx-ring-ref")?, port: port("event-channel-tx")? };
    let receive = Ring { ring: node("rx-ring-ref")?, port: port("event-channel-rx")? };
    Some(Pair { transmit, receive })
}

#[cfg(test)]
mod tests;
