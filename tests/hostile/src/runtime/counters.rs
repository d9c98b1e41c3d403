//! The hypervisor's counters: what happened between two moments.
//! May: nothing. Context: any. Input: the hypervisor's answers, trusted.

use super::abi;
pub use pv_abi::ext::counter::Reason;
use pv_abi::ext::{call, counter};

const REASONS: usize = Reason::ALL.len();

/// Everything counted since the start.
#[derive(Clone, Copy, Debug)]
pub struct Counters {
    reasons: [u64; REASONS],
    events: u64,
    direct_switches: u64,
}

fn read(index: u64) -> u64 {
    abi::call1(call::READ_COUNTER, index)
}

impl Counters {
    /// As they are now.
    pub fn now() -> Self {
        Self {
            reasons: core::array::from_fn(|reason| read(reason as u64)),
            events: read(counter::EVENTS),
            direct_switches: read(counter::DIRECT_SWITCHES),
        }
    }

    /// What was counted since `before`.
    pub fn since(&self, before: &Self) -> Self {
        Self {
            reasons: core::array::from_fn(|reason| self.reasons[reason] - before.reasons[reason]),
            events: self.events - before.events,
            direct_switches: self.direct_switches - before.direct_switches,
        }
    }

    /// Entries to the hypervisor for one reason.
    pub const fn of(&self, reason: Reason) -> u64 {
        self.reasons[reason as usize]
    }

    /// Entries for any reason.
    pub fn exits(&self) -> u64 {
        self.reasons.iter().sum()
    }

    /// Events delivered.
    pub const fn events(&self) -> u64 {
        self.events
    }

    /// Switches between the guest's modes that never entered L1.
    pub const fn direct_switches(&self) -> u64 {
        self.direct_switches
    }
}
