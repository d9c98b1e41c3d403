//! Bugs that can be planted, one at a time, to prove that the tests find them.
//!
//! Without the feature `mutants` there are none: [`planted`] is false at compile time. With it, one
//! is chosen at run time, by `plant` or, in this crate's own tests, by the variable `MUTANT`.
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
    FoundNotCompared, "found-not-compared", "I3", Model("model::random::a_found_table_is_compared_before_it_is_linked");
    /// It is compared, but hot tables that it leads to are not looked at before.
    FoundNotDrained, "found-not-drained", "I3", OneThread;
    /// The entry goes in first, and is checked afterwards.
    CheckLate, "check-late", "I1", Loom("install::a_flushed_mapping_stays_away");
    /// The guest's entry is not read again before a leaf goes in.
    LeafNotRechecked, "leaf-not-rechecked", "I1", Threads;
    /// The guest's entry is not read again before a link goes in.
    LinkNotRechecked, "link-not-rechecked", "I1", Threads;
    /// A permission is changed in place, without a token.
    ChangeInPlace, "change-in-place", "I1", Loom("install::a_flushed_permission_stays_away");
    /// The second reading passes over an A or D bit that was cleared.
    LostBitPasses, "lost-bit-passes", "I1", Loom("marks::what_was_aged_is_marked_again");
    /// A sync and a zap leave a token alone.
    TokenLeft, "token-left", "I2", Loom("install::a_flushed_mapping_stays_away");
    /// A sync and a zap take a token away, but not what it has become a moment before.
    SuccessorLeft, "successor-left", "I2", Loom("install::a_flushed_mapping_stays_away");
    /// With notes, a flush of one address passes over a link that is being made.
    MakerTrusted, "maker-trusted", "I2", Loom("link::a_flushed_leaf_is_not_linked_with_its_table");
    /// An entry is not removed if the hardware sets A or D in it at that moment.
    TakeGivesUp, "take-gives-up", "I4", Loom("install::a_mapping_goes_though_it_becomes_dirty");
    /// An entry is exchanged for one that maps another frame.
    Redirect, "redirect", "I4", Model("model::rules::an_entry_for_another_frame_goes_first");
    /// Links go, and tables die, without a flush.
    LinkUnflushed, "link-unflushed", "I4", OneThread;
    /// The mappings of a frame go without a flush.
    FrameUnflushed, "frame-unflushed", "I4", OneThread;
    /// A mapping that goes stays in the list of those that map its frame.
    StaleReference, "stale-reference", "reverse map", Model("model::hot_tables::a_table_that_cools_down_misses_no_store");
    /// A reference for which there is no memory is forgotten.
    ReferenceDropped, "reference-dropped", "reverse map", Model("refs::tests::running_out_of_chunks_is_an_error");
    /// The frame of a dead table is used again before every vCPU has passed by.
    FreedWhileWalked, "freed-while-walked", "quiescent points",
    Loom("reclaim::a_frame_is_not_reused_under_a_walk");
    /// The frame of a dead table is free at once.
    FreedAtOnce, "freed-at-once", "quiescent points", Model("model::evicting::a_table_in_use_gets_a_second_chance");
    /// A leaf goes into a table that has died.
    DeadTableFilled, "dead-table-filled", "freeing", Loom("reclaim::a_dead_table_gets_no_mapping");
    /// A link goes into a table that has died.
    DeadTableLinks, "dead-table-links", "freeing", Loom("reclaim::a_dead_table_gets_no_link");
    /// A table that has died is linked.
    DeadTableLinked, "dead-table-linked", "freeing", Loom("faults::two_link_one_table");
    /// A root that is loaded is evicted.
    LoadedEvicted, "loaded-evicted", "eviction", OneThread;
    /// The end of a table waits for another to leave the list of links until the list looks otherwise.
    ListBelieved, "list-believed", "eviction", Loom("reclaim::the_end_of_a_table_waits_for_no_other_link");
    /// Asking for a table's age clears A in whatever the link has become.
    AgeDamages, "age-damages", "eviction", Loom("reclaim::a_look_at_the_age_of_a_table_damages_no_token");
    /// A remembered root is used though its page stands for another by now.
    RecallUnchecked, "recall-unchecked", "I3", OneThread;
    /// A page is alive before L1's own entries are in it.
    FilledLate, "filled-late", "roots", Loom("faults::a_remembered_root_is_whole");
    /// A new root takes over upper-half links that its guest root does not have.
    CopyUnchecked, "copy-unchecked", "I3", OneThread;
    /// It takes over links to tables that are older than the guest's.
    CopiedNotCompared, "copied-not-compared", "I3", Loom("link::a_copied_table_is_compared");
    /// A is not set in the guest's leaf entry.
    LostA, "lost-a", "I5", OneThread;
    /// A is not set in the guest's entries above the leaf.
    LostUpperA, "lost-upper-a", "I5", OneThread;
    /// D is not set in the guest's entry.
    LostD, "lost-d", "I5", OneThread;
    /// An entry is writable though the guest's is clean.
    CleanWritable, "clean-writable", "I5", OneThread;
    /// A and D are set in whatever the guest's entry is by then.
    BlindMark, "blind-mark", "I5", Loom("marks::an_entry_that_is_gone_stays_zero");
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
    SyncGives, "sync-gives", "F6", OneThread;
    /// A sync keeps a link that leads elsewhere.
    LinkTarget, "link-target", "F2", OneThread;
    /// A sync keeps a link that permits more.
    LinkPermissions, "link-permissions", "F2", OneThread;
    /// Hot tables are compared before the TLBs have forgotten that they were dirty.
    SyncUnflushed, "sync-unflushed", "F2", OneThread;
    /// A flush does not wait for what another one has found and not compared yet.
    PendingIgnored, "pending-ignored", "F2", Loom("hot::a_flush_waits_for_nobody_elses_compare");
    /// A table leaves the hot list before it was compared.
    UnlistedEarly, "unlisted-early", "F2", Loom("hot::a_mapped_table_is_protected");
    /// The D bit of a mapping that goes is forgotten.
    DirtForgotten, "dirt-forgotten", "hot tables", OneThread;
    /// Where a table is mapped already, it stays writable.
    ProtectNothing, "protect-nothing", "protected tables", OneThread;
    /// A new mapping of a protected table is writable.
    ProtectedWritable, "protected-writable", "protected tables", OneThread;
    /// TLBs keep writing to a frame that has become a table.
    TableUnflushed, "table-unflushed", "hot tables", Loom("hot::a_new_table_is_watched_from_the_start");
    /// A refusal is believed though stores may have changed what is linked.
    RefusalBelieved, "refusal-believed", "F4", OneThread;
    /// A refusal is believed of links that were read before the root was pinned.
    RefusalOutdated, "refusal-outdated", "F4", Loom("faults::a_refusal_is_of_links_that_are_kept_true");
    /// A chain in the map is looked at without an exchange.
    PlainLook, "plain-look", "map", Loom("lost::a_note_finds_the_table_or_is_seen");
    /// A note reaches one of a frame's shadow tables only.
    NoteReachesOne, "note-reaches-one", "N1", OneThread;
    /// A root that is unpinned while it is loaded keeps its lower half.
    UnpinKeeps, "unpin-keeps", "N2", Model("model::rules::an_unpinned_root_gives_its_tables_back");
    /// Lost notes are ignored.
    RingDropped, "ring-dropped", "N3", OneThread;
    /// When notes are lost, only roots are emptied.
    RootsOnly, "roots-only", "N3", Loom("lost::lost_notes_reach_the_tables_below");
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
    SplitKeepsLarge, "split-keeps-large", "large pages", Model("model::large_pages::a_table_inside_takes_it_apart_until_it_is_gone");
    /// Large entries around a new table go before it is counted, so that new ones can appear.
    SplitGap, "split-gap", "large pages", Loom("split::a_block_with_a_table_is_not_mapped_large");
    /// The host frame is not asked for again under the lock.
    FrameNotAsked, "frame-not-asked", "frames that go", Loom("frame::a_frame_that_is_gone_stays_away");
    /// The log does not keep frames read-only.
    LogUnwatched, "log-unwatched", "dirty log", OneThread;
    /// The log is read without a flush.
    LogUnflushed, "log-unflushed", "dirty log", OneThread;
    /// The A and D bits that the MMU sets are not logged.
    LogUntold, "log-untold", "dirty log", Model("model::random::unsync_mode_never_maps_what_the_guest_does_not");
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
