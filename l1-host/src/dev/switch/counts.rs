//! Counts what came of a card's frames.
//! May: nothing. Context: any.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Why a frame was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// What its sender says of it does not fit it, or it is too short or too long.
    Malformed,
    /// It bears an address that is not its sender's.
    Spoofed,
    /// Its sender has sent more than it may.
    Rate,
    /// It is for nobody, or for its sender.
    Nobody,
    /// Its receiver has no room for it.
    NoBuffer,
    /// Its receiver is sent more than it may be.
    ReceiveRate,
    /// It is longer than its receiver takes.
    TooLong,
}

impl Lost {
    const ALL: [(Self, &'static str); 7] = [
        (Self::Malformed, "net_tx_malformed"),
        (Self::Spoofed, "net_tx_spoofed"),
        (Self::Rate, "net_tx_rate"),
        (Self::Nobody, "net_tx_nobody"),
        (Self::NoBuffer, "net_rx_no_buffer"),
        (Self::ReceiveRate, "net_rx_rate"),
        (Self::TooLong, "net_rx_too_long"),
    ];
}

/// The counters of a card.
#[derive(Debug, Default)]
pub struct Counts {
    sent: [AtomicU64; 2],
    received: [AtomicU64; 2],
    long: [AtomicU64; 2],
    lost: [AtomicU64; Lost::ALL.len()],
}

impl Counts {
    /// A frame of `bytes` was sent by the card.
    pub fn sent(&self, bytes: usize) {
        add(&self.sent, bytes);
    }

    /// A frame of `bytes` was received by the card.
    pub fn received(&self, bytes: usize) {
        add(&self.received, bytes);
    }

    /// A frame that was sent is still to be divided.
    pub fn sent_long(&self) {
        self.long[0].fetch_add(1, Relaxed);
    }

    /// A frame that was received is still to be divided.
    pub fn received_long(&self) {
        self.long[1].fetch_add(1, Relaxed);
    }

    /// A frame was lost.
    pub fn lost(&self, why: Lost) {
        self.lost[why as usize].fetch_add(1, Relaxed);
    }

    /// All counters, with their names.
    pub fn each(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let [sent, received] = [&self.sent, &self.received].map(|pair| pair.each_ref().map(load));
        let frames = [
            ("net_tx_frames", sent[0]),
            ("net_tx_bytes", sent[1]),
            ("net_tx_long", load(&self.long[0])),
            ("net_rx_frames", received[0]),
            ("net_rx_bytes", received[1]),
            ("net_rx_long", load(&self.long[1])),
        ];
        let lost = Lost::ALL.iter().map(|&(why, name)| (name, load(&self.lost[why as usize])));
        frames.into_iter().chain(lost)
    }
}

fn add([frames, all]: &[AtomicU64; 2], bytes: usize) {
    frames.fetch_add(1, Relaxed);
    all.fetch_add(bytes as u64, Relaxed);
}

fn load(counter: &AtomicU64) -> u64 {
    counter.load(Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn each_reason_has_its_own_counter() {
        let counts = Counts::default();
        counts.sent(60);
        counts.sent(40);
        counts.received(7);
        counts.sent_long();
        for (times, (why, _)) in Lost::ALL.into_iter().enumerate() {
            (0..=times).for_each(|_| counts.lost(why));
        }
        let values: Vec<_> = counts.each().map(|(_, value)| value).collect();
        assert_eq!(values, [2, 100, 1, 1, 7, 0, 1, 2, 3, 4, 5, 6, 7]);
    }
}
