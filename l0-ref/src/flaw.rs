//! Bugs that can be planted, one at a time, to see that the conformance suite finds them. Without
//! the feature `flaws` there are none: every question here is answered at compile time.

use clap::ValueEnum;
use std::sync::OnceLock;

/// A bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Flaw {
    /// UNMAP forgets the pages, but the mapping stays.
    MappingSurvivesUnmap,
    /// PROTECT changes only the books.
    ProtectionForgotten,
    /// The index of a list's first failure is one too high.
    WrongIndex,
    /// The page of EXISTS, NO_SUCH and BUSY is not told.
    ValueForgotten,
    /// MAP replaces what was mapped.
    MapReplaces,
    /// Reserved words of an entry are not looked at.
    ReservedIgnored,
    /// A second CPUID table does not take the place of the first.
    StaleCpuid,
    /// The first RUN seals nothing.
    NothingSealed,
    /// The highest dirty page of a bitmap is lost.
    LostDirtyBit,
    /// The deadline is not looked at.
    DeadlineIgnored,
    /// RUN returns half a millisecond before the deadline.
    DeadlineEarly,
    /// A kick of a vCPU that does not run is lost.
    KickLost,
    /// A SHADOW MSR takes any bits.
    MaskIgnored,
    /// Every MSR that no rule names reads as 0.
    DenyReadsZero,
    /// RUN does not mind L1's #GP for an MSR.
    FaultIgnored,
    /// GPRS are loaded by every RUN.
    GroupsAlwaysLoaded,
    /// An interrupt is taken whether L2 can take it or not.
    NotReadyIgnored,
    /// UNMAP of a private page does not zero it.
    PrivateNotZeroed,
    /// A frame with another mapping may become private.
    BusyIgnored,
    /// RESET keeps the enabled features and the VMs.
    ResetKeepsVms,
    /// RESET keeps the pages of other vCPUs.
    ResetKeepsPages,
    /// SETUP takes any version.
    AnyVersion,
    /// VMs that are destroyed leave their handles behind.
    HandlesLeak,
}

static PLANTED: OnceLock<Flaw> = OnceLock::new();

/// Plants a bug, for good.
pub fn plant(flaw: Flaw) {
    let _ = PLANTED.set(flaw);
}

/// Whether this bug is planted.
#[must_use]
pub fn is(flaw: Flaw) -> bool {
    cfg!(feature = "flaws") && PLANTED.get() == Some(&flaw)
}
