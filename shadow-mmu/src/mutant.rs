//! Bugs that can be planted, one at a time, to prove that the tests find them.
//!
//! Without the feature `mutants` there are none: [`planted`] is false at compile time. With it, one
//! is chosen at run time, by [`plant`] or, in this crate's own tests, by the variable `MUTANT`.
//! `docs/shadow-mutants.md` tells who finds which, and how fast.

/// Declares the mutants: variant, name, the rule it breaks, who finds it.
macro_rules! mutants {
    ($($(#[$doc:meta])* $variant:ident, $name:literal, $rule:literal, $finder:expr;)*) => {
        /// A bug.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Mutant {
            $($(#[$doc])* $variant,)*
        }

        #[cfg(feature = "mutants")]
        impl Mutant {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// What it is called.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The rule that it breaks (`docs/shadow-mmu.md`), or what it is about.
            #[must_use]
            pub const fn rule(self) -> &'static str {
                match self { $(Self::$variant => $rule,)* }
            }

            /// Who is sure to find it.
            #[must_use]
            pub const fn finder(self) -> Finder {
                use Finder::{Loom, Model, OneThread, Threads};
                match self { $(Self::$variant => $finder,)* }
            }
        }
    };
}

/// Who finds a mutant. Others may find it as well.
#[cfg(feature = "mutants")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finder {
    /// The stress tool, in one thread: the same every time.
    OneThread,
    /// The stress tool, in several threads.
    Threads,
    /// A model or another test of this crate, by its path.
    Model(&'static str),
    /// A model for the loom model checker, by its path below `model::loom`.
    Loom(&'static str),
}

mutants! {
    /// A linked table is used though its role is another.
    ChildRole, "child-role", "I3", OneThread;
    /// A table found in the map is linked without being compared.
    FoundNotCompared, "found-not-compared", "I3", OneThread;
    /// It is compared, but what the tables below it miss is not looked at before.
    FoundNotDrained, "found-not-drained", "I3", OneThread;
    /// The entry goes in first, and is checked afterwards.
    CheckLate, "check-late", "I1", Threads;
    /// The guest's entry is not read again before a leaf goes in.
    LeafNotRechecked, "leaf-not-rechecked", "I1", Threads;
    /// The guest's entry is not read again before a link goes in.
    LinkNotRechecked, "link-not-rechecked", "I1", Threads;
    /// A permission is changed in place, without a token.
    ChangeInPlace, "change-in-place", "I1", Threads;
    /// The second reading passes over an A or D bit that was cleared.
    LostBitPasses, "lost-bit-passes", "I1", Threads;
    /// A sync and a zap leave a token alone.
    TokenLeft, "token-left", "I2", Threads;
    /// They take a token away, but not what it has become a moment before.
    SuccessorLeft, "successor-left", "I2", Threads;
    /// An entry is not removed if the hardware sets A or D in it at that moment.
    TakeGivesUp, "take-gives-up", "I4", Threads;
    /// An entry is exchanged for one that maps another frame.
    Redirect, "redirect", "I4", OneThread;
    /// Links go, and tables die, without a flush.
    LinkUnflushed, "link-unflushed", "I4", OneThread;
    /// The mappings of a frame go without a flush.
    FrameUnflushed, "frame-unflushed", "I4", OneThread;
    /// A mapping that goes stays in the list of those that map its frame.
    StaleReference, "stale-reference", "reverse map", OneThread;
    /// A reference for which there is no memory is forgotten.
    ReferenceDropped, "reference-dropped", "reverse map", OneThread;
    /// A table that is found linked nowhere is freed before the vCPUs have passed by.
    FreedWhileWalked, "freed-while-walked", "quiescent points", Threads;
    /// It is free at once.
    FreedAtOnce, "freed-at-once", "quiescent points", Threads;
    /// A leaf goes into a table that has died.
    DeadTableFilled, "dead-table-filled", "freeing", Threads;
    /// A link goes into a table that has died.
    DeadTableLinks, "dead-table-links", "freeing", Threads;
    /// A table that has died is linked.
    DeadTableLinked, "dead-table-linked", "freeing", Threads;
    /// A root that is loaded is evicted.
    LoadedEvicted, "loaded-evicted", "eviction", OneThread;
    /// Asking for a table's age clears A in whatever the link has become.
    AgeDamages, "age-damages", "eviction", Threads;
    /// A remembered root is used though its page stands for another by now.
    RecallUnchecked, "recall-unchecked", "I3", OneThread;
    /// A page is alive before L1's own entries are in it.
    FilledLate, "filled-late", "roots", Threads;
    /// A new root takes over upper-half links that its guest root does not have.
    CopyUnchecked, "copy-unchecked", "I3", OneThread;
    /// A is not set in the guest's leaf entry.
    LostA, "lost-a", "I5", OneThread;
    /// A is not set in the guest's entries above the leaf.
    LostUpperA, "lost-upper-a", "I5", OneThread;
    /// D is not set in the guest's entry.
    LostD, "lost-d", "I5", OneThread;
    /// An entry is writable though the guest's is clean.
    CleanWritable, "clean-writable", "I5", OneThread;
    /// A and D are set in whatever the guest's entry is by then.
    BlindMark, "blind-mark", "I5", Threads;
    /// A CR3 load with flush does not look at the hot tables.
    LoadSkipsHot, "load-skips-hot", "F1", OneThread;
    /// A flush that finds nothing to compare does not flush the hardware.
    QuietFlush, "quiet-flush", "F3", OneThread;
    /// A request to flush reaches nobody.
    LostShootdown, "lost-shootdown", "F3", OneThread;
    /// An entry whose guest A bit is clear survives a sync.
    ClearAPasses, "clear-a-passes", "F5", OneThread;
    /// A flush of one address looks at the supervisor root only.
    OneRoot, "one-root", "F6", OneThread;
    /// A flush of one address looks at the leaf only.
    LeafOnly, "leaf-only", "F6", OneThread;
    /// A sync gives permissions as well.
    SyncGives, "sync-gives", "F6", Threads;
    /// A sync keeps a link that leads elsewhere.
    LinkTarget, "link-target", "F2", OneThread;
    /// A sync keeps a link that permits more.
    LinkPermissions, "link-permissions", "F2", OneThread;
    /// Hot tables are compared before the TLBs have forgotten that they were dirty.
    SyncUnflushed, "sync-unflushed", "F2", OneThread;
    /// A flush does not wait for what another one has found and not compared yet.
    PendingIgnored, "pending-ignored", "F2", Threads;
    /// A table leaves the hot list before it was compared.
    UnlistedEarly, "unlisted-early", "F2", Threads;
    /// The D bit of a mapping that goes is forgotten.
    DirtForgotten, "dirt-forgotten", "hot tables", OneThread;
    /// Where a table is mapped already, it stays writable.
    ProtectNothing, "protect-nothing", "protected tables", OneThread;
    /// A new mapping of a protected table is writable.
    ProtectedWritable, "protected-writable", "protected tables", OneThread;
    /// TLBs keep writing to a frame that has become a table.
    TableUnflushed, "table-unflushed", "hot tables", OneThread;
    /// A refusal is believed though stores may have changed what is linked.
    RefusalBelieved, "refusal-believed", "F4", OneThread;
    /// A chain in the map is looked at without an exchange.
    PlainLook, "plain-look", "map", Threads;
    /// A note reaches one of a frame's shadow tables only.
    NoteReachesOne, "note-reaches-one", "N1", OneThread;
    /// A root that is unpinned while it is loaded keeps its lower half.
    UnpinKeeps, "unpin-keeps", "N2", OneThread;
    /// Lost notes are ignored.
    RingDropped, "ring-dropped", "N3", OneThread;
    /// When notes are lost, only roots are emptied.
    RootsOnly, "roots-only", "N3", OneThread;
    /// A root that is not pinned keeps its lower half.
    UnpinnedKept, "unpinned-kept", "N4", OneThread;
    /// A root that is pinned keeps what was linked before.
    PinKeeps, "pin-keeps", "N4", OneThread;
    /// Supervisor pages among the neighbours of a fault enter a table that user mode sees.
    AroundUser, "around-user", "two roots", OneThread;
    /// A fault puts a supervisor page into a table that user mode sees.
    KernelInUser, "kernel-in-user", "two roots", OneThread;
    /// User pages may be executed in supervisor mode, SMEP or not.
    SmepLost, "smep-lost", "two roots", OneThread;
    /// Large entries around a new table stay.
    SplitKeepsLarge, "split-keeps-large", "large pages", OneThread;
    /// They go before the table is counted, so that new ones can appear.
    SplitGap, "split-gap", "large pages", Threads;
    /// The host frame is not asked for again under the lock.
    FrameNotAsked, "frame-not-asked", "frames that go", Threads;
    /// The log does not keep frames read-only.
    LogUnwatched, "log-unwatched", "dirty log", OneThread;
    /// The log is read without a flush.
    LogUnflushed, "log-unflushed", "dirty log", OneThread;
    /// The A and D bits that the MMU sets are not logged.
    LogUntold, "log-untold", "dirty log", OneThread;
    /// A tag that another address space takes over is not flushed.
    TagKept, "tag-kept", "tags", Model("tlb::tests::a_tag_never_serves_another");
    /// An address that kernels share is flushed in the current address space only.
    TagShared, "tag-shared", "tags", Model("tlb::tests::a_tag_never_serves_another");
}

/// True if `mutant` is the bug that is planted.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
#[must_use]
pub const fn planted(_: Mutant) -> bool {
    false
}

#[cfg(feature = "mutants")]
pub use chosen::{plant, planted};

#[cfg(feature = "mutants")]
mod chosen {
    use super::Mutant;
    // Not a model checker's: whether a bug is planted is no step of a model.
    use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    /// Its number plus one, or zero.
    static PLANTED: AtomicUsize = AtomicUsize::new(0);

    /// Plants `mutant`, and pulls up the one that was planted before.
    pub fn plant(mutant: Option<Mutant>) {
        PLANTED.store(mutant.map_or(0, |mutant| mutant as usize + 1), Relaxed);
    }

    /// True if `mutant` is the bug that is planted.
    #[inline]
    #[must_use]
    pub fn planted(mutant: Mutant) -> bool {
        #[cfg(test)]
        from_environment();
        PLANTED.load(Relaxed) == mutant as usize + 1
    }

    /// Plants what the variable `MUTANT` names, once.
    #[cfg(test)]
    fn from_environment() {
        static ONCE: std::sync::Once = std::sync::Once::new();
        ONCE.call_once(|| {
            let named = std::env::var("MUTANT").ok();
            plant(named.map(|name| name.parse().unwrap()));
        });
    }

    impl core::str::FromStr for Mutant {
        type Err = &'static str;

        fn from_str(name: &str) -> Result<Self, Self::Err> {
            let found = Self::ALL.iter().find(|mutant| mutant.name() == name);
            found.copied().ok_or("no mutant has this name")
        }
    }
}
