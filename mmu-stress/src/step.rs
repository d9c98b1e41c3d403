//! The steps that programs are made of, and how they read.

use crate::{
    api::{Access, Gfn, Kind, Mode, Scope, Translations},
    bits::{A, D, NX, P, PS, U, W, frame},
    guest::{Addresses, ROOTS},
    history::Change,
};
use std::fmt::{self, Write};

/// An entry of a small frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    /// The frame.
    pub gfn: Gfn,
    /// The entry in it.
    pub slot: usize,
}

/// Who stores to a table, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writer {
    /// The kernel, through its own map of memory.
    Kernel,
    /// Somebody with a way past the guest's mappings, who announces the store if it is owed.
    Shim,
}

/// One step of a vCPU. Everything random in it is decided when it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// An access. If it is a write, and ends in a small frame, it makes `change` to entry `slot`
    /// of it.
    Access {
        /// Number of the address.
        address: usize,
        /// How.
        access: Access,
        /// Which word is written.
        slot: usize,
        /// What is stored.
        change: Change,
    },
    /// A store to a table.
    Store {
        /// Where.
        at: At,
        /// What.
        change: Change,
        /// By whom.
        by: Writer,
    },
    /// Two entries change places, by two stores.
    Swap {
        /// One.
        a: At,
        /// The other.
        b: At,
        /// By whom.
        by: Writer,
    },
    /// CR3 load.
    Load {
        /// Number of the root.
        root: usize,
        /// With or without flush.
        translations: Translations,
    },
    /// Full flush.
    Flush(Scope),
    /// Flush of the address with this number.
    FlushAddress(usize),
    /// The MMU drops all mappings of a frame.
    Zap(Gfn),
    /// The MMU frees tables.
    MakeRoom,
    /// The ring of notes overflows.
    LoseNotes,
    /// The root with this number is pinned, and loaded.
    Pin(usize),
    /// It is unpinned.
    Unpin(usize),
    /// The frame is no table any more.
    Forget(Gfn),
    /// Another host frame is put behind a frame.
    Move(Gfn),
    /// The dirty log is read.
    ReadLog,
    /// The vCPU leaves the guest for a moment.
    Idle,
}

/// Counters per kind of step: their names.
pub const KINDS: [&str; 14] = [
    "access",
    "store",
    "swap",
    "load root",
    "flush",
    "flush address",
    "zap frame",
    "make room",
    "lose notes",
    "pin, unpin",
    "forget table",
    "move frame",
    "read log",
    "idle",
];

impl Step {
    /// Index into [`KINDS`].
    #[must_use]
    pub const fn kind(&self) -> usize {
        match self {
            Self::Access { .. } => 0,
            Self::Store { .. } => 1,
            Self::Swap { .. } => 2,
            Self::Load { .. } => 3,
            Self::Flush(_) => 4,
            Self::FlushAddress(_) => 5,
            Self::Zap(_) => 6,
            Self::MakeRoom => 7,
            Self::LoseNotes => 8,
            Self::Pin(_) | Self::Unpin(_) => 9,
            Self::Forget(_) => 10,
            Self::Move(_) => 11,
            Self::ReadLog => 12,
            Self::Idle => 13,
        }
    }

    /// The step in words.
    #[must_use]
    pub fn describe(&self, addresses: &Addresses) -> String {
        let gva = |number: usize| format!("{:#x}", addresses.gva(number).0);
        let root = |number: usize| format!("root {:#x}", ROOTS[number].0);
        match *self {
            Self::Access { address, access, slot, change } => {
                let text = format!("{} {}", words(access), gva(address));
                if access.kind == Kind::Write {
                    format!("{text} (if a table is there, entry {slot} {})", change.describe())
                } else {
                    text
                }
            }
            Self::Store { at, change, by } => format!("{by} stores: {at} {}", change.describe()),
            Self::Swap { a, b, by } => format!("{by} exchanges {a} and {b}"),
            Self::Load { root: number, translations: Translations::Flush } => {
                format!("load {} with flush", root(number))
            }
            Self::Load { root: number, translations: Translations::Keep } => {
                format!("load {} without flush", root(number))
            }
            Self::Flush(Scope::Current) => "flush the loaded address space".into(),
            Self::Flush(Scope::All) => "flush every address space".into(),
            Self::FlushAddress(address) => format!("flush address {}", gva(address)),
            Self::Zap(gfn) => format!("MMU drops mappings of frame {:#x}", gfn.0),
            Self::MakeRoom => "MMU frees tables".into(),
            Self::LoseNotes => "notes are lost".into(),
            Self::Pin(number) => format!("pin {} and load it with flush", root(number)),
            Self::Unpin(number) => format!("unpin {}", root(number)),
            Self::Forget(gfn) => format!("frame {:#x} is no table any more", gfn.0),
            Self::Move(gfn) => format!("another host frame behind frame {:#x}", gfn.0),
            Self::ReadLog => "read the dirty log".into(),
            Self::Idle => "leave the guest".into(),
        }
    }
}

/// An access in words.
#[must_use]
pub fn words(access: Access) -> &'static str {
    match (access.mode, access.kind) {
        (Mode::User, Kind::Read) => "user read",
        (Mode::User, Kind::Write) => "user write",
        (Mode::User, Kind::Fetch) => "user fetch",
        (Mode::Supervisor, Kind::Read) => "kernel read",
        (Mode::Supervisor, Kind::Write) => "kernel write",
        (Mode::Supervisor, Kind::Fetch) => "kernel fetch",
    }
}

/// A guest entry in words: frame and flags.
#[must_use]
pub fn entry(value: u64) -> String {
    if value == 0 {
        return "0".into();
    }
    let mut text = format!("frame {:#x} ", frame(value).0);
    let _ = write!(text, "{}", Flags(value));
    text
}

struct Flags(u64);

impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [(P, "P"), (W, "W"), (U, "U"), (A, "A"), (D, "D"), (PS, "PS"), (NX, "NX")];
        let mut separator = "";
        for (bit, name) in names {
            if self.0 & bit != 0 {
                write!(f, "{separator}{name}")?;
                separator = "|";
            }
        }
        if separator.is_empty() { f.write_str("no flags") } else { Ok(()) }
    }
}

impl Change {
    fn describe(self) -> String {
        match self {
            Self::Set(value) => format!(":= {}", entry(value)),
            Self::Bits { set, clear } => {
                let mut parts = Vec::new();
                if set != 0 {
                    parts.push(format!("|= {}", Flags(set)));
                }
                if clear != 0 {
                    parts.push(format!("&= !({})", Flags(clear)));
                }
                parts.join(", ")
            }
        }
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "entry {} of frame {:#x}", self.slot, self.gfn.0)
    }
}

impl fmt::Display for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel",
            Self::Shim => "shim",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_read_like_what_they_do() {
        let addresses = Addresses::new();
        let at = At { gfn: Gfn(11), slot: 2 };
        let change = Change::Bits { set: 0, clear: A | D };
        let step = Step::Store { at, change, by: Writer::Kernel };
        assert_eq!(step.describe(&addresses), "kernel stores: entry 2 of frame 0xb &= !(A|D)");
        assert_eq!(entry(0x21 << 12 | P | W | NX), "frame 0x21 P|W|NX");
        assert_eq!(Step::FlushAddress(1).describe(&addresses), "flush address 0x1000");
    }
}
