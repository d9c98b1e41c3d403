//! Flushes that are missing on purpose, to see that the model finds them.
//! May: nothing. Context: boot.

crate::flaw::flaws! {
    /// A flush that L1 leaves out.
    "tlb-model", "roost.tlb-flaw=":

    /// Flushes of everything that the guest asks for do not reach the tags.
    All = "all",
    /// Those of the current address space.
    Current = "current",
    /// Loads of an address space with flush.
    Load = "load",
    /// Those of single addresses.
    Address = "address",
    /// The user tag is left out where a single address is flushed.
    UserAddress = "user-address",
    /// Other address spaces are left out where an address of the upper half is.
    UpperAddress = "upper-address",
    /// Other address spaces are left out where one of the lower half is, and so is the flush that
    /// syncing them would ask for.
    LowerAddress = "lower-address",
    /// Flushes that the shadow MMU asks for (`TlbOps::flush_all`) do not reach the tags.
    Requested = "requested",
    /// A tag that another address space takes over is not emptied.
    TakenTag = "taken-tag",
    /// Some D bits are lost, so that a table that was written is not compared.
    DirtyBits = "dirty-bits",
    /// The shadow entry for a single address stays as it was when that is flushed.
    Entry = "entry",
}
