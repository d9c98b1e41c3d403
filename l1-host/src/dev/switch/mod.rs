//! Joins guests' network cards, and the machine's own: where each frame goes, and which goes nowhere.
//! May: guest-memory, alloc. Context: run-loop, irq-off. Input: frames that guests and the network send.
//!
//! | module | holds |
//! |---|---|
//! | [`frame`] | a frame, and what its sender has left to others: its checksum, its division into segments |
//! | [`segment`] | dividing a frame where the receiver does not take it whole |
//! | [`merge`] | joining segments into a frame for a receiver that takes it whole |
//! | [`flow`] | which of a card's queues a frame comes to |
//! | [`guard`] | whether a card may send a frame: whose address it bears |
//! | [`counts`] | what came of frames |
//! | `network` | the cards of a network, and its way out |
//!
//! The switch knows the address of each card, and no guest may send by another, so it learns none: what
//! is for no card is for the outside, and a frame for one card is never shown to another.

pub mod counts;
pub mod flow;
pub mod frame;
pub mod guard;
pub mod merge;
#[cfg(target_os = "none")]
pub mod network;
pub mod segment;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// Bytes of an Ethernet header: the least that a frame has.
pub const ETHERNET: usize = 14;
/// Bytes of the longest frame: of IP's longest packet, with a tag.
pub const LONGEST: usize = 65535 + ETHERNET + 4;

/// Whom a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// All others.
    Everyone,
    /// The card with this address.
    One(Mac),
}

/// Whom `frame`, of [`ETHERNET`] bytes or more, is for.
#[must_use]
pub fn target(frame: &[u8]) -> Target {
    let to = address(frame, 0);
    // The group bit: broadcasts and multicasts.
    if to[0] & 1 == 1 { Target::Everyone } else { Target::One(to) }
}

/// Who `frame`, of [`ETHERNET`] bytes or more, says has sent it.
#[must_use]
pub fn source(frame: &[u8]) -> Mac {
    address(frame, 6)
}

fn address(frame: &[u8], at: usize) -> Mac {
    let mut mac = Mac::default();
    mac.copy_from_slice(&frame[at..at + 6]);
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_everyone() {
        let mut frame = [0; ETHERNET];
        frame[..6].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
        frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 7]);
        assert_eq!(target(&frame), Target::One([2, 0, 0, 0, 0, 9]));
        assert_eq!(source(&frame), [2, 0, 0, 0, 0, 7]);
        frame[0] = 1;
        assert_eq!(target(&frame), Target::Everyone);
        frame[..6].fill(0xff);
        assert_eq!(target(&frame), Target::Everyone);
    }
}
