//! The store: a tree of names and values by which a kernel finds its devices and comes to terms with
//! them. All of it without the ring that the kernel reaches it by.
//! May: nothing. Context: shim. Input: guest-controlled.
//!
//! Its memory is fixed: what does not fit is refused with ENOSPC. The kernel reads everything and
//! changes what is below its home; the rest is for the devices ([`Store::publish`]).

mod connection;
#[cfg(target_os = "none")]
pub mod page;
pub mod path;
mod transaction;
mod tree;
mod watch;
mod wire;

pub use self::{
    connection::{Connection, Pipe},
    path::Path,
    watch::Change,
    wire::{Error, Header, Message, number, short},
};
use self::{
    path::{DOMAIN, HOME},
    transaction::Transactions,
    tree::{Full, Tree, VALUE},
    watch::Watches,
    wire::{kind, only_text, text},
};

impl From<Full> for Error {
    fn from(_: Full) -> Self {
        Self::NoSpace
    }
}

/// The store.
#[derive(Debug)]
pub struct Store {
    tree: Tree,
    transactions: Transactions,
    watches: Watches,
}

impl Store {
    /// An empty one.
    #[must_use]
    pub const fn new() -> Self {
        Self { tree: Tree::new(), transactions: Transactions::new(), watches: Watches::new() }
    }

    /// The value of a node.
    #[must_use]
    pub fn value<'a>(&'a self, path: &'a [u8]) -> Option<&'a [u8]> {
        self.tree.get(path).map(|node| node.value)
    }

    /// Gives `path` a value before the kernel runs.
    ///
    /// # Errors
    /// [`Error::NoSpace`].
    pub fn place(&mut self, path: &[u8], value: &[u8]) -> Result<(), Error> {
        Ok(self.tree.set(path, value)?)
    }

    /// A device gives `path` a value, and the kernel is told.
    ///
    /// # Errors
    /// [`Error::NoSpace`], which a value of unchanged length cannot meet with unless a device changes a
    /// great many at once.
    pub fn publish(&mut self, path: &[u8], value: &[u8]) -> Result<(), Error> {
        self.tree.set(path, value)?;
        self.transactions.disturb();
        self.watches.note(Change::Written, path)
    }

    /// The nodes that the last request changed, for the devices. They may be above those concerned, if
    /// they were removed.
    pub fn changes(&self) -> impl Iterator<Item = (Change, &[u8])> {
        self.watches.changes()
    }

    /// Puts the next event that is due together; false if there is none.
    pub fn next_event(&mut self, out: &mut Message) -> bool {
        self.watches.next_event(out)
    }

    /// Carries out a request of the kernel's and puts the answer together.
    pub fn answer(&mut self, header: Header, payload: &[u8], out: &mut Message) {
        out.start();
        let kind = match self.carry_out(header, payload, out) {
            Ok(()) => header.kind,
            Err(error) => {
                refuse(error, out);
                kind::ERROR
            }
        };
        out.finish(kind, header.request, header.transaction);
    }

    fn carry_out(
        &mut self,
        header: Header,
        payload: &[u8],
        out: &mut Message,
    ) -> Result<(), Error> {
        let transaction = header.transaction;
        match header.kind {
            kind::DIRECTORY | kind::READ | kind::GET_PERMS => {
                self.look(header.kind, transaction, &Path::new(only_text(payload)?)?, out)
            }
            kind::WRITE | kind::MKDIR | kind::RM | kind::SET_PERMS => {
                self.change(header.kind, transaction, payload)?;
                done(out)
            }
            kind::WATCH | kind::UNWATCH => {
                let (path, rest) = text(payload)?;
                let token = only_text(rest)?;
                match header.kind {
                    kind::WATCH => self.watches.add(path, token)?,
                    _ => self.watches.remove(path, token)?,
                }
                done(out)
            }
            kind::TRANSACTION_START => {
                let number = self.transactions.start(&self.tree)?;
                out.push(&short(format_args!("{number}\0")))
            }
            kind::TRANSACTION_END => {
                let commit = match only_text(payload)? {
                    b"T" => true,
                    b"F" => false,
                    _ => return Err(Error::Invalid),
                };
                if commit {
                    self.transactions.commit(transaction, &mut self.tree, &mut self.watches)?;
                } else {
                    self.transactions.drop(transaction)?;
                }
                done(out)
            }
            kind::GET_DOMAIN_PATH => {
                let domain = number(only_text(payload)?).ok_or(Error::Invalid)?;
                out.push(&short(format_args!("/local/domain/{domain}\0")))
            }
            kind::IS_DOMAIN_INTRODUCED => {
                let domain = number(only_text(payload)?).ok_or(Error::Invalid)?;
                out.push(if domain == DOMAIN { b"T\0" } else { b"F\0" })
            }
            kind::RESET_WATCHES => {
                self.watches.clear();
                self.transactions.clear();
                done(out)
            }
            _ => Err(Error::Unknown),
        }
    }

    fn look(
        &self,
        what: u32,
        transaction: u32,
        path: &Path,
        out: &mut Message,
    ) -> Result<(), Error> {
        let tree = match transaction {
            0 => &self.tree,
            number => self.transactions.tree(number)?,
        };
        let node = tree.get(path.bytes()).ok_or(Error::NotFound)?;
        match what {
            kind::READ => out.push(node.value),
            kind::DIRECTORY => tree.children(path.bytes()).try_for_each(|name| {
                out.push(name)?;
                out.push(b"\0")
            }),
            _ if !node.permissions.is_empty() => out.push(node.permissions),
            // Owner and what others may: nothing, or read for the kernel what is the devices'.
            _ if path::is_within(path.bytes(), HOME) => {
                out.push(&short(format_args!("n{DOMAIN}\0")))
            }
            _ => out.push(&short(format_args!("n0\0r{DOMAIN}\0"))),
        }
    }

    fn change(&mut self, what: u32, transaction: u32, payload: &[u8]) -> Result<(), Error> {
        let (name, rest) = text(payload)?;
        let path = Path::new(name)?;
        let path = path.bytes();
        if path == HOME || !path::is_within(path, HOME) {
            return Err(Error::Access);
        }
        if rest.len() > VALUE {
            return Err(Error::NoSpace);
        }
        let tree = match transaction {
            0 => &mut self.tree,
            number => self.transactions.tree_mut(number)?,
        };
        let change = match what {
            kind::WRITE => {
                tree.set(path, rest)?;
                Change::Written
            }
            kind::MKDIR if !rest.is_empty() => return Err(Error::Invalid),
            kind::MKDIR if tree.get(path).is_some() => return Ok(()),
            kind::MKDIR => {
                tree.make(path)?;
                Change::Written
            }
            kind::RM if !rest.is_empty() => return Err(Error::Invalid),
            kind::RM if tree.remove(path) => Change::Removed,
            kind::RM => {
                // Nothing to do is no error if it could be there.
                let parent = path::parent(path).and_then(|parent| tree.get(parent));
                return parent.map(|_| ()).ok_or(Error::NotFound);
            }
            _ => {
                tree.get(path).ok_or(Error::NotFound)?;
                check_permissions(rest)?;
                tree.set_permissions(path, rest)?;
                Change::Written
            }
        };
        match transaction {
            0 => {
                self.transactions.disturb();
                self.watches.note(change, path)
            }
            number => self.transactions.note(number, change, path),
        }
    }
}

impl Default for Store {
    fn default() -> Self {
        Self::new()
    }
}

/// A list of letters with domain numbers behind them, a zero byte behind each.
fn check_permissions(list: &[u8]) -> Result<(), Error> {
    let list = list.strip_suffix(b"\0").ok_or(Error::Invalid)?;
    let valid = list.split(|&byte| byte == 0).all(|entry| {
        entry
            .split_first()
            .is_some_and(|(letter, domain)| b"nrwb".contains(letter) && number(domain).is_some())
    });
    if valid { Ok(()) } else { Err(Error::Invalid) }
}

fn done(out: &mut Message) -> Result<(), Error> {
    out.push(b"OK\0")
}

/// Makes the answer the name of an error, whatever it was before.
fn refuse(error: Error, out: &mut Message) {
    out.start();
    // A name always fits.
    let _ = out.push(error.name().as_bytes()).and_then(|()| out.push(b"\0"));
}

#[cfg(test)]
impl Store {
    /// Asserts that beside what 32 vCPUs need there is room for `bytes` of the front ends', and a
    /// quarter for the kernel and its programs.
    pub fn assert_has_room(&mut self, bytes: usize) {
        for vcpu in 0..32 {
            let name = format!("/local/domain/1/cpu/{vcpu}/availability");
            self.place(name.as_bytes(), b"online").unwrap();
        }
        let used = self.tree.used() + bytes;
        assert!(used <= tree::ROOM / 4 * 3, "{used}");
    }
}

#[cfg(test)]
mod tests;
