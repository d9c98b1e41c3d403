//! Writes that the dirty log misses on purpose, to see that its check finds them.
//! May: nothing. Context: boot.

#[cfg(feature = "dirty-check")]
use crate::flaw::Flaws;

/// A source of writes that is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// The guest, by its own page tables.
    Guest,
    /// The shim, through the VM window.
    Window,
    /// Whoever writes to a PVCS.
    Pvcs,
    /// The same before another page became the PVCS.
    OldPvcs,
    /// L1, where it writes for the guest.
    L1,
    /// L1, where it shows the shim which frames are page tables.
    Bitmap,
    /// The flush after a look: no source, but TLBs still let them write.
    Flush,
}

/// The flaws, and the word on a guest's command line that chooses one.
#[cfg(feature = "dirty-check")]
pub static FLAWS: Flaws<Flaw> = Flaws::new(
    "roost.dirty-flaw=",
    &[
        ("guest", Flaw::Guest),
        ("window", Flaw::Window),
        ("pvcs", Flaw::Pvcs),
        ("old-pvcs", Flaw::OldPvcs),
        ("l1", Flaw::L1),
        ("bitmap", Flaw::Bitmap),
        ("flush", Flaw::Flush),
    ],
);

/// True if `flaw` was planted.
#[cfg(feature = "dirty-check")]
pub fn planted(flaw: Flaw) -> bool {
    FLAWS.planted() == Some(flaw)
}

/// Nobody plants one.
#[cfg(not(feature = "dirty-check"))]
#[inline(always)]
pub const fn planted(_: Flaw) -> bool {
    false
}
