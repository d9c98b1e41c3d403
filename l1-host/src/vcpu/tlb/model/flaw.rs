//! Flushes that are missing on purpose, to see that the model finds them.
//! May: nothing. Context: boot.

use alloc::string::String;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// A flush that L1 leaves out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// Flushes of everything that the guest asks for do not reach the tags.
    All,
    /// Those of the current address space.
    Current,
    /// Loads of an address space with flush.
    Load,
    /// Those of single addresses.
    Address,
    /// The user tag is left out where a single address is flushed.
    UserAddress,
    /// Other address spaces are left out where an address of the upper half is.
    UpperAddress,
    /// Other address spaces are left out where one of the lower half is, and so is the flush that
    /// syncing them would ask for.
    LowerAddress,
    /// Flushes that the shadow MMU asks for (`TlbOps::flush_all`) do not reach the tags.
    Requested,
    /// A tag that another address space takes over is not emptied.
    TakenTag,
    /// Some D bits are lost, so that a table that was written is not compared.
    DirtyBits,
    /// The shadow entry for a single address stays as it was when that is flushed.
    Entry,
}

const ALL: [(&str, Flaw); 11] = [
    ("all", Flaw::All),
    ("current", Flaw::Current),
    ("load", Flaw::Load),
    ("address", Flaw::Address),
    ("user-address", Flaw::UserAddress),
    ("upper-address", Flaw::UpperAddress),
    ("lower-address", Flaw::LowerAddress),
    ("requested", Flaw::Requested),
    ("taken-tag", Flaw::TakenTag),
    ("dirty-bits", Flaw::DirtyBits),
    ("entry", Flaw::Entry),
];

/// The word on a guest's command line that chooses one.
const WORD: &str = "roost.tlb-flaw=";

/// Number of the flaw in `ALL`, or none.
static CHOSEN: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Plants the flaw that a guest's command line names, if it does.
///
/// # Errors
/// The names that there are, if it names none of them.
pub fn plant(cmdline: &str) -> Result<(), String> {
    let Some(name) = cmdline.split(' ').find_map(|word| word.strip_prefix(WORD)) else {
        return Ok(());
    };
    let known = ALL.iter().position(|(known, _)| *known == name);
    CHOSEN.store(known.ok_or_else(|| ALL.map(|(name, _)| name).join(", "))?, Relaxed);
    Ok(())
}

/// The flaw that was planted.
pub(super) fn planted() -> Option<Flaw> {
    ALL.get(CHOSEN.load(Relaxed)).map(|&(_, flaw)| flaw)
}
