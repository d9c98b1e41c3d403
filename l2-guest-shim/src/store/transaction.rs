//! Transactions: requests whose changes happen all at once or not at all.
//! May: nothing. Context: shim. Input: guest-controlled.
//!
//! Each works on a copy of the tree. It is taken over at the end if nothing else has changed the tree
//! meanwhile; if something has, the kernel does it all once more (EAGAIN), as the protocol provides.

use super::{
    tree::Tree,
    watch::{Change, Changes, Watches},
    wire::Error,
};

/// Transactions that may be open at once.
const MOST: usize = 2;
/// Bytes for what one changes: half of what there is for a request, the rest is for the devices.
const CHANGES: usize = super::watch::CHANGES / 2;

/// One of them.
#[derive(Debug)]
struct Slot {
    /// Its number; 0: the slot is free.
    number: u32,
    /// The tree has changed since it began.
    disturbed: bool,
    tree: Tree,
    changes: Changes<CHANGES>,
}

/// All open transactions.
#[derive(Debug)]
pub struct Transactions {
    slots: [Slot; MOST],
    last: u32,
}

impl Transactions {
    /// None.
    #[must_use]
    pub const fn new() -> Self {
        const FREE: Slot =
            Slot { number: 0, disturbed: false, tree: Tree::new(), changes: Changes::new() };
        Self { slots: [FREE; MOST], last: 0 }
    }

    /// Begins one on `tree`: its number.
    ///
    /// # Errors
    /// [`Error::NoSpace`].
    pub fn start(&mut self, tree: &Tree) -> Result<u32, Error> {
        let number = self.last.checked_add(1).unwrap_or(1);
        let slot = self.slot(0).map_err(|_| Error::NoSpace)?;
        slot.number = number;
        slot.disturbed = false;
        slot.tree.copy_from(tree);
        slot.changes.clear();
        self.last = number;
        Ok(number)
    }

    fn slot(&mut self, number: u32) -> Result<&mut Slot, Error> {
        self.slots.iter_mut().find(|slot| slot.number == number).ok_or(Error::NotFound)
    }

    fn open(&mut self, number: u32) -> Result<&mut Slot, Error> {
        if number == 0 { Err(Error::NotFound) } else { self.slot(number) }
    }

    /// The tree as transaction `number` sees it.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn tree(&self, number: u32) -> Result<&Tree, Error> {
        let found = self.slots.iter().find(|slot| slot.number == number && number != 0);
        found.map(|slot| &slot.tree).ok_or(Error::NotFound)
    }

    /// See [`Transactions::tree`].
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn tree_mut(&mut self, number: u32) -> Result<&mut Tree, Error> {
        self.open(number).map(|slot| &mut slot.tree)
    }

    /// Transaction `number` has changed `path`.
    ///
    /// # Errors
    /// [`Error::NoSpace`]: it is over, nothing has changed.
    pub fn note(&mut self, number: u32, change: Change, path: &[u8]) -> Result<(), Error> {
        let slot = self.open(number)?;
        slot.changes.note(change, path).inspect_err(|_| slot.number = 0)
    }

    /// The tree has changed under those that are open.
    pub fn disturb(&mut self) {
        for slot in &mut self.slots {
            slot.disturbed = true;
        }
    }

    /// Ends transaction `number`: what it changed happens now, all at once.
    ///
    /// # Errors
    /// [`Error::Again`], [`Error::NotFound`]; in both cases nothing has changed and it is over.
    pub fn commit(
        &mut self,
        number: u32,
        tree: &mut Tree,
        watches: &mut Watches,
    ) -> Result<(), Error> {
        let slot = self.open(number)?;
        slot.number = 0;
        if slot.changes.is_empty() {
            return Ok(());
        }
        if slot.disturbed {
            return Err(Error::Again);
        }
        tree.copy_from(&slot.tree);
        for (change, path) in slot.changes.iter() {
            watches.note(change, path)?;
        }
        self.disturb();
        Ok(())
    }

    /// Ends transaction `number` without a trace.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn drop(&mut self, number: u32) -> Result<(), Error> {
        self.open(number).map(|slot| slot.number = 0)
    }

    /// Ends all.
    pub fn clear(&mut self) {
        for slot in &mut self.slots {
            slot.number = 0;
        }
    }
}

impl Default for Transactions {
    fn default() -> Self {
        Self::new()
    }
}
