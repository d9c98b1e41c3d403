//! Why a guest was stopped.
//! May: nothing. Context: any.

use alloc::string::String;
use core::fmt;
use pv_abi::bundle::exit;

/// Why a vCPU leaves the CPU it was on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leave {
    /// Its slice is over, and another waits.
    Preempted,
    /// It waits for an interrupt, and another is ready.
    Waits,
    /// It has stopped itself.
    Off,
    /// It ends its VM.
    Stopped(Stop),
    /// Its VM has ended.
    Ended,
}

impl From<Stop> for Leave {
    fn from(stop: Stop) -> Self {
        Self::Stopped(stop)
    }
}

/// The end of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It powered itself off.
    PowerOff,
    /// It asked for a restart.
    Reboot,
    /// Its kernel gave up.
    Crash(String),
    /// Its kernel could not be started.
    BootFailed(String),
    /// It broke the ABI, or needed what cannot be delivered; the text says how.
    TripleFault(&'static str),
    /// It executed something L1 does not emulate.
    Unsupported(&'static str),
    /// The user has stopped it.
    Killed,
    /// L0, which ran it, does so no longer; the text says why.
    Provider(String),
    /// A check of L1 itself found a rule broken; the text says which.
    #[cfg(any(feature = "tlb-model", feature = "dirty-check"))]
    BrokenRule(String),
}

impl Stop {
    /// The value L1 ends the machine with.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::PowerOff => exit::POWEROFF,
            Self::Reboot => exit::REBOOT,
            Self::BootFailed(_) => exit::BOOT_FAILED,
            #[cfg(any(feature = "tlb-model", feature = "dirty-check"))]
            Self::BrokenRule(_) => exit::L1_FAILED,
            Self::Crash(_)
            | Self::TripleFault(_)
            | Self::Unsupported(_)
            | Self::Killed
            | Self::Provider(_) => exit::GUEST_DIED,
        }
    }

    /// True if the registers at the end are of interest.
    #[must_use]
    pub const fn is_death(&self) -> bool {
        #[cfg(any(feature = "tlb-model", feature = "dirty-check"))]
        if matches!(self, Self::BrokenRule(_)) {
            return true;
        }
        matches!(self, Self::Crash(_) | Self::TripleFault(_) | Self::Unsupported(_))
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => write!(f, "powered off"),
            Self::Reboot => write!(f, "asked for a restart"),
            Self::Crash(text) if text.is_empty() => write!(f, "died: its kernel panicked"),
            Self::Crash(text) => write!(f, "died: its kernel panicked: {text}"),
            Self::BootFailed(text) => write!(f, "could not be started: {text}"),
            Self::TripleFault(how) => write!(f, "died: triple fault: {how}"),
            Self::Unsupported(what) => write!(f, "died: {what} is not emulated"),
            Self::Killed => write!(f, "was stopped by its user"),
            Self::Provider(why) => write!(f, "was stopped: {why}"),
            #[cfg(any(feature = "tlb-model", feature = "dirty-check"))]
            Self::BrokenRule(text) => write!(f, "was stopped: L1 broke rule {text}"),
        }
    }
}
