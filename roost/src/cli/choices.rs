//! Values of options that are one of a few words, which mean something to L1 too.

use clap::ValueEnum;
use pv_abi::bundle::{Backend, ConsoleMode, ConsolePort, Pti, Restart, Siblings, Trace};
use serde::Deserialize;
use std::{path::PathBuf, str::FromStr};

/// How guests share the console.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConsoleChoice {
    /// One guest at a time has it; Ctrl-] and a key switch
    Focus,
    /// Whole lines of all guests, each after its guest's name
    Prefix,
}

impl From<ConsoleChoice> for ConsoleMode {
    fn from(choice: ConsoleChoice) -> Self {
        match choice {
            ConsoleChoice::Focus => Self::Focus,
            ConsoleChoice::Prefix => Self::Prefix,
        }
    }
}

/// What the hardware threads of a core run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SiblingsChoice {
    /// Any guests
    Any,
    /// One guest at a time: guests cannot watch each other through what threads share
    OneGuest,
    /// The same, and none while a thread of the core is in L1: nor can they watch L1
    Kick,
}

impl From<SiblingsChoice> for Siblings {
    fn from(choice: SiblingsChoice) -> Self {
        match choice {
            SiblingsChoice::Any => Self::AnyGuests,
            SiblingsChoice::OneGuest => Self::OneGuest,
            SiblingsChoice::Kick => Self::Kick,
        }
    }
}

/// Page-table isolation, between guests and L1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PtiChoice {
    /// L1's memory is in no page table of a guest's
    On,
    /// The same on CPUs with Meltdown, and on those that nothing is known of
    Auto,
    /// It is there, for L1 alone, on any CPU: on one with Meltdown guests can read everything
    Off,
}

impl From<PtiChoice> for Pti {
    fn from(choice: PtiChoice) -> Self {
        match choice {
            PtiChoice::On => Self::On,
            PtiChoice::Auto => Self::Auto,
            PtiChoice::Off => Self::Off,
        }
    }
}

/// The port that guests' consoles share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PortChoice {
    /// The first serial port, which each machine has
    Serial,
    /// The machine's virtio console, which takes many bytes at once
    Virtio,
}

impl From<PortChoice> for ConsolePort {
    fn from(choice: PortChoice) -> Self {
        match choice {
            PortChoice::Serial => Self::Serial,
            PortChoice::Virtio => Self::Virtio,
        }
    }
}

/// When a guest's last exits go to L1's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TraceChoice {
    /// When it dies
    Death,
    /// When it ends, however it does
    Always,
}

impl From<TraceChoice> for Trace {
    fn from(choice: TraceChoice) -> Self {
        match choice {
            TraceChoice::Death => Self::Death,
            TraceChoice::Always => Self::Always,
        }
    }
}

/// After which ends a guest starts again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartChoice {
    /// After none
    Never,
    /// If it asked for it
    OnReboot,
    /// If it asked for it or died
    OnFailure,
    /// Even if it powered off
    Always,
}

impl From<RestartChoice> for Restart {
    fn from(choice: RestartChoice) -> Self {
        match choice {
            RestartChoice::Never => Self::Never,
            RestartChoice::OnReboot => Self::OnReboot,
            RestartChoice::OnFailure => Self::OnFailure,
            RestartChoice::Always => Self::Always,
        }
    }
}

/// Who runs the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendChoice {
    /// The provider's hypervisor (L0) where it offers that, else L1
    Auto,
    /// L1, with shadow page tables
    Shadow,
    /// L0, or nobody
    Assisted,
}

impl From<BackendChoice> for Backend {
    fn from(choice: BackendChoice) -> Self {
        match choice {
            BackendChoice::Auto => Self::Auto,
            BackendChoice::Shadow => Self::Shadow,
            BackendChoice::Assisted => Self::Assisted,
        }
    }
}

/// Where statistics go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StatsTo {
    /// A table on standard error.
    Table,
    /// The same, and how often guests are left while they run.
    Live,
    /// JSON in a file.
    Json(PathBuf),
}

impl FromStr for StatsTo {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "table" => Ok(Self::Table),
            None if text == "live" => Ok(Self::Live),
            Some(("json", file)) if !file.is_empty() => Ok(Self::Json(file.into())),
            _ => Err("write --stats for a table, --stats=live or --stats=json:FILE".into()),
        }
    }
}
