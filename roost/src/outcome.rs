//! Tells how a run ended: the tool's exit status and the words for it.

use crate::process::Ended;
use pv_abi::bundle::exit;

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every guest powered off.
    PoweredOff,
    /// A guest asked for a restart.
    Rebooted,
    /// The user quit QEMU at the terminal.
    Quit,
    /// A guest died.
    GuestDied,
    /// A guest could not be started.
    BootFailed,
    /// L1 or QEMU failed.
    Failed(String),
    /// QEMU did not accept its arguments.
    Refused,
    /// The time limit passed.
    TimedOut,
    /// This process was told to end.
    Signalled(i32),
}

/// What else is known about the run.
#[derive(Clone, Copy, Debug)]
pub struct Evidence {
    /// Whether L1 wrote anything to its log.
    pub l1_spoke: bool,
    /// Who may have ended the machine if L1 did not.
    pub silent_end: SilentEnd,
}

/// What it means that QEMU ended with status 0, which L1 never asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SilentEnd {
    /// The machine reset itself: a triple fault.
    Reset,
    /// The user quit.
    Quit,
}

impl Outcome {
    /// Judges how QEMU ended.
    #[must_use]
    pub fn of(ended: Ended, evidence: Evidence) -> Self {
        let status = match ended {
            Ended::TimedOut => return Self::TimedOut,
            Ended::Signalled(signal) => return Self::Signalled(signal),
            Ended::Exited(status) => status,
        };
        let Some(code) = status.code() else {
            return Self::Failed(format!("QEMU died ({status})"));
        };
        match code {
            0 if evidence.silent_end == SilentEnd::Quit => Self::Quit,
            0 => Self::Failed("L1 failed: the machine reset itself".into()),
            1 if !evidence.l1_spoke => Self::Refused,
            _ => Self::of_l1(code),
        }
    }

    /// Judges a QEMU exit status of `value << 1 | 1`, where L1 chose the value.
    fn of_l1(code: i32) -> Self {
        let value = u8::try_from(code >> 1).ok().filter(|_| code & 1 == 1);
        match value {
            Some(exit::POWEROFF) => Self::PoweredOff,
            Some(exit::REBOOT) => Self::Rebooted,
            Some(exit::GUEST_DIED) => Self::GuestDied,
            Some(exit::BOOT_FAILED) => Self::BootFailed,
            Some(exit::L1_FAILED) => Self::Failed("L1 failed".into()),
            _ => Self::Failed(format!("QEMU failed with status {code}")),
        }
    }

    /// The tool's exit status.
    #[must_use]
    pub fn status(&self) -> u8 {
        match self {
            Self::PoweredOff | Self::Rebooted | Self::Quit => 0,
            Self::Refused => 2,
            Self::GuestDied | Self::BootFailed => 3,
            Self::Failed(_) => 4,
            Self::TimedOut => 124,
            Self::Signalled(signal) => 128 | u8::try_from(*signal & 0x7f).unwrap_or(0),
        }
    }

    /// A line for the user; `None` if all is as it should be.
    #[must_use]
    pub fn message(&self) -> Option<String> {
        Some(match self {
            Self::PoweredOff | Self::Quit => return None,
            Self::Rebooted => {
                "the guest asked for a restart; with --restart on-reboot it gets one".into()
            }
            Self::GuestDied => "the guest died".into(),
            Self::BootFailed => "the guest could not be started".into(),
            Self::Failed(what) => what.clone(),
            Self::Refused => {
                "QEMU did not start: see its message (its bridge helper takes bridges that have a line \
                 `allow NAME` in QEMU's bridge.conf), check --machine and --cpu"
                    .into()
            }
            Self::TimedOut => "the time limit passed; QEMU was ended".into(),
            Self::Signalled(signal) => format!("ended by signal {signal}"),
        })
    }

    /// Whether the log is worth keeping.
    #[must_use]
    pub fn is_failure(&self) -> bool {
        self.status() != 0 && *self != Self::Refused
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{os::unix::process::ExitStatusExt, process::ExitStatus};

    const EVIDENCE: Evidence = Evidence { l1_spoke: true, silent_end: SilentEnd::Reset };

    fn exited(code: i32) -> Ended {
        Ended::Exited(ExitStatus::from_raw(code << 8))
    }

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
            let outcome = Outcome::of(exited(i32::from(value) << 1 | 1), EVIDENCE);
            assert_eq!(outcome.status(), status, "{value:#x}");
            assert_eq!(outcome.message().is_none(), value == exit::POWEROFF, "{value:#x}");
        }
    }

    #[test]
    fn an_even_status_is_not_from_l1() {
        let even = i32::from(exit::POWEROFF) << 1;
        assert_eq!(Outcome::of(exited(even), EVIDENCE).status(), 4);
    }

    #[test]
    fn status_0_is_a_reset_or_a_quit() {
        assert_eq!(Outcome::of(exited(0), EVIDENCE).status(), 4);
        let quit = Evidence { silent_end: SilentEnd::Quit, ..EVIDENCE };
        assert_eq!(Outcome::of(exited(0), quit), Outcome::Quit);
    }

    #[test]
    fn qemu_may_refuse_or_die() {
        let silent = Evidence { l1_spoke: false, ..EVIDENCE };
        assert_eq!(Outcome::of(exited(1), silent), Outcome::Refused);
        assert_eq!(Outcome::of(exited(1), EVIDENCE).status(), 4);
        let killed = Outcome::of(Ended::Exited(ExitStatus::from_raw(9)), EVIDENCE);
        assert!(killed.message().unwrap().contains("signal: 9"));
        assert_eq!(killed.status(), 4);
    }

    #[test]
    fn ends_from_outside() {
        assert_eq!(Outcome::of(Ended::TimedOut, EVIDENCE).status(), 124);
        assert_eq!(Outcome::of(Ended::Signalled(15), EVIDENCE).status(), 143);
    }
}
