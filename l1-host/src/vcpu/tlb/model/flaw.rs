//! Flushes that are missing on purpose, to see that the model finds them.
//! May: nothing. Context: boot.

use crate::flaw::Flaws;

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

/// The flaws, and the word on a guest's command line that chooses one.
pub static FLAWS: Flaws<Flaw> = Flaws::new(
    "roost.tlb-flaw=",
    &[
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
    ],
);
