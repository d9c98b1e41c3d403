//! Keeps the hardware tags (PCIDs) of one CPU honest.
//! May: nothing; the hardware is a trait. Context: irq-off.
//!
//! Each recently used address space owns a slot of two tags, one per root. A slot is *stale* when
//! its translations may be wrong; it is invalidated before it is next used, so flushing address
//! spaces that are not running costs a bit. A slot taken over by another address space is stale
//! too: that is all there is to tag reuse.

use crate::mutant::{Mutant, planted};
use pv_abi::addr::{Gfn, Gva, Hpa};

/// INVPCID, or a model of it.
pub trait TagOps {
    /// Drops every translation of `tag`.
    fn invalidate(&self, tag: u16);
    /// Drops the translation of one address in `tag`.
    fn invalidate_address(&self, tag: u16, gva: Gva);
    /// Drops the translation of one address, on a CPU without tags: INVLPG.
    fn invalidate_untagged(&self, gva: Gva);
}

/// How long a CPU keeps what it has cached of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// Until the guest is left: it is entered by a load of CR3, which drops everything.
    UntilExit,
    /// Until CR3 is loaded, which drops everything, and which an entry does only if it must.
    UntilLoad,
    /// Until it is invalidated: the CPU has PCID and INVPCID.
    ByTag,
}

/// Slots: few enough that the tags of L1 (0) and theirs fit any PCID scheme.
const SLOTS: usize = 30;
/// First tag in use; lower ones are L1's.
const FIRST_TAG: u16 = 2;
/// CR3 bit 63: keep the tag's translations.
const NO_FLUSH: u64 = 1 << 63;

/// The tags of one CPU.
#[derive(Debug)]
pub struct Tags {
    kept: Kept,
    owners: [Option<Gfn>; SLOTS],
    stale: u32,
    current: usize,
    next: usize,
}

/// CR3 values of an address space, ready to load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cr3Pair {
    /// User root.
    pub umod: u64,
    /// Supervisor root.
    pub smod: u64,
    /// What is cached is wrong ([`Kept::UntilLoad`]): CR3 is to be loaded even if it is one of these.
    pub stale: bool,
}

const ALL: u32 = (1 << SLOTS) - 1;

impl Tags {
    /// Tags of a CPU that keeps translations so long.
    #[must_use]
    pub const fn new(kept: Kept) -> Self {
        Self { kept, owners: [None; SLOTS], stale: ALL, current: 0, next: 0 }
    }

    fn tags(slot: usize) -> [u16; 2] {
        let first = FIRST_TAG + 2 * slot as u16;
        [first, first + 1]
    }

    /// Makes the address space of `root` current.
    pub fn select(&mut self, root: Gfn) {
        // Without tags slot 0 stands for whatever is loaded.
        if self.kept != Kept::ByTag || self.owners[self.current] == Some(root) {
            return;
        }
        self.current = match self.owners.iter().position(|&owner| owner == Some(root)) {
            Some(slot) => slot,
            None => {
                let slot = self.next;
                self.next = (slot + 1) % SLOTS;
                self.owners[slot] = Some(root);
                if !planted(Mutant::TagKept) {
                    self.stale |= 1 << slot;
                }
                slot
            }
        };
    }

    /// Every translation of this VM on this CPU is wrong from now on.
    pub fn flush_all(&mut self) {
        self.stale = ALL;
    }

    /// Translations of the current address space are wrong from now on.
    pub fn flush_current(&mut self) {
        self.stale |= 1 << self.current;
    }

    /// The translation of `gva` is wrong from now on: in the current address space, and, for an
    /// address of the half that kernels share, in every other.
    pub fn flush_address(&mut self, ops: &impl TagOps, gva: Gva) {
        match self.kept {
            Kept::UntilExit => return,
            Kept::UntilLoad => return ops.invalidate_untagged(gva),
            Kept::ByTag => {}
        }
        if gva.index(4) >= 256 && !planted(Mutant::TagShared) {
            self.stale |= ALL & !(1 << self.current);
        }
        if self.stale >> self.current & 1 == 0 {
            for tag in Self::tags(self.current) {
                ops.invalidate_address(tag, gva);
            }
        }
    }

    /// CR3 values for the current address space, whose roots are at `smod` and `umod`. What is
    /// stale in it is invalidated first, so both values keep what is left.
    pub fn prepare(&mut self, ops: &impl TagOps, smod: Hpa, umod: Hpa) -> Cr3Pair {
        if self.kept != Kept::ByTag {
            let stale = self.kept == Kept::UntilLoad && self.stale & 1 != 0;
            self.stale &= !1;
            return Cr3Pair { smod: smod.0, umod: umod.0, stale };
        }
        let [smod_tag, umod_tag] = Self::tags(self.current);
        if self.stale >> self.current & 1 != 0 {
            ops.invalidate(smod_tag);
            ops.invalidate(umod_tag);
            self.stale &= !(1 << self.current);
        }
        Cr3Pair {
            smod: smod.0 | u64::from(smod_tag) | NO_FLUSH,
            umod: umod.0 | u64::from(umod_tag) | NO_FLUSH,
            stale: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::{Cell, RefCell};
    use proptest::prelude::*;
    use std::{collections::HashMap, vec::Vec};

    /// A CPU whose TLB never evicts: (tag, address) to whatever was true when it was filled.
    struct Model {
        cached: RefCell<HashMap<(u16, u64), u64>>,
        cr3: Cell<u64>,
        kept: Kept,
    }

    impl TagOps for Model {
        fn invalidate(&self, tag: u16) {
            self.cached.borrow_mut().retain(|&(owner, _), _| owner != tag);
        }
        fn invalidate_address(&self, tag: u16, gva: Gva) {
            self.cached.borrow_mut().remove(&(tag, gva.0));
        }
        fn invalidate_untagged(&self, gva: Gva) {
            assert_eq!(self.kept, Kept::UntilLoad);
            self.cached.borrow_mut().remove(&(0, gva.0));
        }
    }

    impl Model {
        fn new(kept: Kept) -> (Tags, Self) {
            let (cached, cr3) = (RefCell::default(), Cell::new(0));
            (Tags::new(kept), Self { cached, cr3, kept })
        }

        /// The guest is entered in each mode in turn, and accesses an address in it.
        fn enter(&self, pair: Cr3Pair, accesses: [(u64, u64, u64); 2]) -> [u64; 2] {
            let mut stale = pair.stale;
            accesses.map(|(cr3, gva, truth)| {
                let loaded = self.kept == Kept::UntilLoad && self.cr3.replace(cr3) == cr3;
                let tag = (cr3 & 0xfff) as u16;
                if cr3 & NO_FLUSH == 0 && (!loaded || stale) {
                    self.invalidate(tag);
                }
                stale = false;
                *self.cached.borrow_mut().entry((tag, gva)).or_insert(truth)
            })
        }
    }

    const USER: u64 = 0x1000;
    const KERNEL: u64 = 0xffff_8880_0000_0000;

    fn run(tags: &mut Tags, model: &Model, root: u64, truth: u64) -> [u64; 2] {
        tags.select(Gfn(root));
        let pair = tags.prepare(model, Hpa(root << 13), Hpa(root << 13 | 0x1000));
        model.enter(pair, [(pair.umod, USER, truth), (pair.smod, KERNEL, truth)])
    }

    #[test]
    fn reusing_a_tag_flushes_it() {
        let (mut tags, model) = Model::new(Kept::ByTag);
        for root in 0..3 * SLOTS as u64 {
            assert_eq!(run(&mut tags, &model, root, root), [root, root]);
        }
    }

    #[test]
    fn translations_survive_a_switch_and_not_a_flush() {
        let (mut tags, model) = Model::new(Kept::ByTag);
        run(&mut tags, &model, 1, 1);
        run(&mut tags, &model, 2, 2);
        assert_eq!(run(&mut tags, &model, 1, 3), [1, 1], "kept");
        tags.flush_all();
        assert_eq!(run(&mut tags, &model, 1, 4), [4, 4]);
        assert_eq!(run(&mut tags, &model, 2, 5), [5, 5]);
        tags.flush_current();
        assert_eq!(run(&mut tags, &model, 1, 6), [4, 4], "another's flush");
        assert_eq!(run(&mut tags, &model, 2, 6), [6, 6]);
    }

    #[test]
    fn one_address_is_flushed_where_it_counts() {
        let (mut tags, model) = Model::new(Kept::ByTag);
        run(&mut tags, &model, 1, 1);
        run(&mut tags, &model, 2, 2);
        tags.flush_address(&model, Gva(USER));
        assert_eq!(run(&mut tags, &model, 2, 3), [3, 2]);
        assert_eq!(run(&mut tags, &model, 1, 3), [1, 1], "another's user address");
        tags.flush_address(&model, Gva(KERNEL));
        assert_eq!(run(&mut tags, &model, 1, 4)[1], 4);
        assert_eq!(run(&mut tags, &model, 2, 5)[1], 5, "kernels share their half");
    }

    /// What a guest with more address spaces than slots may do.
    #[derive(Clone, Copy, Debug)]
    enum Op {
        /// Run in an address space and access one address in either half.
        Run(u64),
        /// Map both addresses of an address space elsewhere.
        Change(u64),
        FlushAll,
        FlushCurrent,
        FlushAddress(u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        let root = 0..2 * SLOTS as u64 + 7;
        prop_oneof![
            8 => root.clone().prop_map(Op::Run),
            4 => root.prop_map(Op::Change),
            1 => Just(Op::FlushAll),
            2 => Just(Op::FlushCurrent),
            2 => prop_oneof![Just(USER), Just(KERNEL)].prop_map(Op::FlushAddress),
        ]
    }

    /// Every translation of an address in an address space since it was last flushed there.
    #[derive(Default)]
    struct Allowed(HashMap<(u64, u64), Vec<u64>>);

    impl Allowed {
        fn of(&mut self, root: u64, gva: u64) -> &mut Vec<u64> {
            self.0.entry((root, gva)).or_insert_with(|| std::vec![root])
        }

        fn change(&mut self, root: u64, truth: u64) {
            for gva in [USER, KERNEL] {
                self.of(root, gva).push(truth);
            }
        }

        fn flush(&mut self, of: impl Fn(u64, u64) -> bool) {
            for (&(root, gva), truths) in &mut self.0 {
                if of(root, gva) {
                    truths.drain(..truths.len() - 1);
                }
            }
        }
    }

    proptest! {
        /// However slots are taken over, an access finds a translation of its own address space,
        /// and none that was flushed.
        #[test]
        fn a_tag_never_serves_another(
            kept in prop_oneof![Just(Kept::UntilExit), Just(Kept::UntilLoad), Just(Kept::ByTag)],
            ops in prop::collection::vec(op(), 0..400),
        ) {
            let (mut tags, model) = Model::new(kept);
            let (mut allowed, mut current) = (Allowed::default(), 0);
            run(&mut tags, &model, current, current);
            for (number, op) in ops.into_iter().enumerate() {
                match op {
                    Op::Run(root) => {
                        current = root;
                        tags.select(Gfn(root));
                        let (smod, umod) = (Hpa(root << 13), Hpa(root << 13 | 0x1000));
                        let pair = tags.prepare(&model, smod, umod);
                        let mut truth = |gva| *allowed.of(root, gva).last().unwrap();
                        let (user, kernel) =
                            ((pair.umod, USER, truth(USER)), (pair.smod, KERNEL, truth(KERNEL)));
                        // The direct switch goes to and fro.
                        let first = model.enter(pair, [user, kernel]);
                        let pair = Cr3Pair { stale: false, ..pair };
                        let second = model.enter(pair, [kernel, user]);
                        for (gva, found) in [
                            (USER, first[0]),
                            (KERNEL, first[1]),
                            (KERNEL, second[0]),
                            (USER, second[1]),
                        ] {
                            let truths = allowed.of(root, gva);
                            prop_assert!(truths.contains(&found), "{root} finds {found}: {truths:?}");
                        }
                    }
                    Op::Change(root) => allowed.change(root, 1000 + number as u64),
                    Op::FlushAll => {
                        tags.flush_all();
                        allowed.flush(|_, _| true);
                    }
                    Op::FlushCurrent => {
                        tags.flush_current();
                        allowed.flush(|root, _| root == current);
                    }
                    Op::FlushAddress(gva) => {
                        tags.flush_address(&model, Gva(gva));
                        // Kernels share their half.
                        allowed.flush(|root, other| {
                            other == gva && (root == current || gva == KERNEL)
                        });
                    }
                }
            }
        }
    }

    #[test]
    fn without_pcid_every_load_flushes() {
        let (mut tags, model) = Model::new(Kept::UntilExit);
        let mut seen = Vec::new();
        for truth in 1..4 {
            seen.push(run(&mut tags, &model, 1, truth));
        }
        assert_eq!(seen, [[1, 1], [2, 2], [3, 3]]);
    }

    /// CR3 is loaded where something changes, and nowhere else.
    #[test]
    fn an_entry_loads_cr3_only_if_it_must() {
        let (mut tags, model) = Model::new(Kept::UntilLoad);
        let kernel = |tags: &mut Tags, truth| {
            let pair = tags.prepare(&model, Hpa(0x2000), Hpa(0x3000));
            let access = (pair.smod, KERNEL, truth);
            model.enter(pair, [access, access])[1]
        };
        assert_eq!([1, 2].map(|truth| kernel(&mut tags, truth)), [1, 1], "kept");
        tags.flush_all();
        assert_eq!([3, 4].map(|truth| kernel(&mut tags, truth)), [3, 3]);
        tags.flush_current();
        assert_eq!([5, 6].map(|truth| kernel(&mut tags, truth)), [5, 5]);
        tags.flush_address(&model, Gva(KERNEL));
        assert_eq!([7, 8].map(|truth| kernel(&mut tags, truth)), [7, 7]);
        tags.flush_address(&model, Gva(USER));
        assert_eq!(kernel(&mut tags, 9), 7, "another's flush");
    }
}
