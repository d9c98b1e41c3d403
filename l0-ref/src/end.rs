//! Tells how a run ended: the exit status and the words for it.

use pv_abi::bundle::exit;

/// Exit status for anything wrong before L1 starts.
pub const BAD_INPUT: u8 = 2;

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// L1 ended the machine with this value (`pv_abi::bundle::exit`).
    Said(u8),
    /// The user quit at the terminal.
    Quit,
    /// This process was told to end.
    Signalled(i32),
    /// The machine reset itself: a triple fault.
    Reset,
    /// KVM could not go on.
    Kvm(String),
}

impl End {
    /// The exit status; the same as that of `roost run`.
    #[must_use]
    pub fn status(&self) -> u8 {
        match self {
            Self::Said(exit::POWEROFF | exit::REBOOT) | Self::Quit => 0,
            Self::Said(exit::GUEST_DIED | exit::BOOT_FAILED) => 3,
            Self::Said(_) | Self::Reset | Self::Kvm(_) => 4,
            Self::Signalled(signal) => 128 | u8::try_from(*signal & 0x7f).unwrap_or(0),
        }
    }

    /// A line for the user; `None` if all is as it should be.
    #[must_use]
    pub fn message(&self) -> Option<String> {
        Some(match self {
            Self::Said(exit::POWEROFF) | Self::Quit => return None,
            Self::Said(exit::REBOOT) => {
                "the guest asked for a restart; start it again to go on".into()
            }
            Self::Said(exit::GUEST_DIED) => "the guest died".into(),
            Self::Said(exit::BOOT_FAILED) => "the guest could not be started".into(),
            Self::Said(exit::L1_FAILED) => "L1 failed".into(),
            Self::Said(value) => format!("L1 ended with the unknown value {value:#x}"),
            Self::Signalled(signal) => format!("ended by signal {signal}"),
            Self::Reset => "L1 failed: the machine reset itself".into(),
            Self::Kvm(why) => why.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_of_l1_has_its_status() {
        for (value, status) in [
            (exit::POWEROFF, 0),
            (exit::REBOOT, 0),
            (exit::GUEST_DIED, 3),
            (exit::BOOT_FAILED, 3),
            (exit::L1_FAILED, 4),
            (0x20, 4),
        ] {
            let end = End::Said(value);
            assert_eq!(end.status(), status, "{value:#x}");
            assert_eq!(end.message().is_none(), value == exit::POWEROFF, "{value:#x}");
        }
        assert_eq!(End::Signalled(15).status(), 143);
    }
}
