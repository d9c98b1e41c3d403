//! Watches, and the changes that they are told of.
//! May: nothing. Context: shim. Input: guest-controlled.
//!
//! Changes are noted as they happen. Then each is compared with each watch, and for those that match an
//! event is sent, one at a time, as the kernel takes them. No further request is served before all are
//! sent: so there is never more to remember than what one request can change.

use super::{
    path::{self, HOME, Path},
    wire::{Error, Message, kind},
};
use arrayvec::ArrayVec;

/// Watches at most: a few of the kernel's own, one for each device, and some for its programs.
const WATCHES: usize = 48;
/// Bytes of a watch's token at most.
const TOKEN: usize = 64;

/// Somebody wants to know of changes at a node and below.
#[derive(Clone, Debug)]
struct Watch {
    /// The name as it was given: a relative one makes events relative.
    given: ArrayVec<u8, { path::MOST }>,
    path: Path,
    token: ArrayVec<u8, TOKEN>,
}

/// What happened to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It was made or written.
    Written,
    /// It was removed, and all below it.
    Removed,
}

/// Changes, in their order, in a fixed amount of memory.
#[derive(Debug)]
pub struct Changes<const ROOM: usize> {
    bytes: [u8; ROOM],
    used: usize,
}

impl<const ROOM: usize> Changes<ROOM> {
    /// None.
    #[must_use]
    pub const fn new() -> Self {
        Self { bytes: [0; ROOM], used: 0 }
    }

    /// Forgets all.
    pub const fn clear(&mut self) {
        self.used = 0;
    }

    /// Nothing has changed.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Notes one more.
    ///
    /// # Errors
    /// [`Error::NoSpace`].
    pub fn note(&mut self, change: Change, path: &[u8]) -> Result<(), Error> {
        let len = u16::try_from(path.len()).map_err(|_| Error::NoSpace)?;
        let end = self.used + 3 + path.len();
        let room = self.bytes.get_mut(self.used..end).ok_or(Error::NoSpace)?;
        room[0] = change as u8;
        room[1..3].copy_from_slice(&len.to_le_bytes());
        room[3..].copy_from_slice(path);
        self.used = end;
        Ok(())
    }

    /// The change at `at`, and where the next one is.
    fn get(&self, at: usize) -> Option<(Change, &[u8], usize)> {
        let &[change, low, high] = self.bytes[..self.used].get(at..)?.first_chunk()?;
        let end = at + 3 + usize::from(u16::from_le_bytes([low, high]));
        let change =
            if change == Change::Written as u8 { Change::Written } else { Change::Removed };
        Some((change, self.bytes.get(at + 3..end)?, end))
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (Change, &[u8])> {
        let mut at = 0;
        core::iter::from_fn(move || {
            let (change, path, next) = self.get(at)?;
            at = next;
            Some((change, path))
        })
    }
}

impl<const ROOM: usize> Default for Changes<ROOM> {
    fn default() -> Self {
        Self::new()
    }
}

/// Bytes for the changes that one request makes and what the devices make of it.
pub const CHANGES: usize = 8 << 10;

/// All watches, and the changes that some of them are still to be told of.
#[derive(Debug)]
pub struct Watches {
    watches: ArrayVec<Watch, WATCHES>,
    changes: Changes<CHANGES>,
    /// The change and the watch to be compared next.
    change: usize,
    watch: usize,
    /// The watch that was registered last is yet to fire for the first time.
    fresh: bool,
}

impl Watches {
    /// None.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            watches: ArrayVec::new_const(),
            changes: Changes::new(),
            change: 0,
            watch: 0,
            fresh: false,
        }
    }

    /// Registers a watch of what a request names `given`, which fires once right away.
    ///
    /// # Errors
    /// [`Error::Exists`], [`Error::NoSpace`], and [`Error::Invalid`] for what is no name.
    pub fn add(&mut self, given: &[u8], token: &[u8]) -> Result<(), Error> {
        // Names with this sign stand for happenings among domains, of which there are none.
        let path = if given.starts_with(b"@") { Path::root() } else { Path::new(given)? };
        let given = ArrayVec::try_from(given).map_err(|_| Error::Invalid)?;
        let token = ArrayVec::try_from(token).map_err(|_| Error::NoSpace)?;
        if self.find(&given, &token).is_some() {
            return Err(Error::Exists);
        }
        let watch = Watch { given, path, token };
        self.watches.try_push(watch).map_err(|_| Error::NoSpace)?;
        self.fresh = true;
        Ok(())
    }

    /// Removes a watch.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn remove(&mut self, given: &[u8], token: &[u8]) -> Result<(), Error> {
        let found = self.find(given, token).ok_or(Error::NotFound)?;
        self.watches.remove(found);
        Ok(())
    }

    /// Removes all.
    pub fn clear(&mut self) {
        self.watches.clear();
    }

    fn find(&self, given: &[u8], token: &[u8]) -> Option<usize> {
        self.watches.iter().position(|watch| watch.given[..] == *given && watch.token[..] == *token)
    }

    /// Notes a change.
    ///
    /// # Errors
    /// [`Error::NoSpace`].
    pub fn note(&mut self, change: Change, path: &[u8]) -> Result<(), Error> {
        self.changes.note(change, path)
    }

    /// The changes that were noted last.
    pub fn changes(&self) -> impl Iterator<Item = (Change, &[u8])> {
        self.changes.iter()
    }

    /// Puts the next event together; false if there is none, and what changed is forgotten.
    pub fn next_event(&mut self, out: &mut Message) -> bool {
        if core::mem::take(&mut self.fresh)
            && let Some(watch) = self.watches.last()
        {
            return event(watch, &watch.given, out);
        }
        while let Some((change, path, next)) = self.changes.get(self.change) {
            let Some(watch) = self.watches.get(self.watch) else {
                (self.change, self.watch) = (next, 0);
                continue;
            };
            self.watch += 1;
            let about = match change {
                _ if watch.given.starts_with(b"@") => None,
                _ if path::is_within(path, watch.path.bytes()) => Some(path),
                // The node that is watched is gone with one above it.
                Change::Removed if path::is_within(watch.path.bytes(), path) => {
                    Some(watch.path.bytes())
                }
                _ => None,
            };
            if about.is_some_and(|about| event(watch, shown(watch, about), out)) {
                return true;
            }
        }
        self.changes.clear();
        (self.change, self.watch) = (0, 0);
        false
    }
}

impl Default for Watches {
    fn default() -> Self {
        Self::new()
    }
}

/// `path` as the watch's owner names it.
fn shown<'a>(watch: &Watch, path: &'a [u8]) -> &'a [u8] {
    if path::is_absolute(&watch.given) {
        return path;
    }
    path.strip_prefix(HOME).and_then(|rest| rest.strip_prefix(b"/")).unwrap_or(path)
}

/// Always fits: name and token are short. True for the caller's convenience.
fn event(watch: &Watch, path: &[u8], out: &mut Message) -> bool {
    out.start();
    let fits =
        [path, b"\0", &watch.token[..], b"\0"].into_iter().all(|part| out.push(part).is_ok());
    out.finish(kind::WATCH_EVENT, 0, 0);
    fits
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::wire::HEADER;

    fn events(watches: &mut Watches) -> Vec<String> {
        let mut out = Message::new();
        core::iter::from_fn(|| {
            watches.next_event(&mut out).then(|| {
                String::from_utf8(out.rest()[HEADER..].to_vec()).unwrap().replace('\0', " ")
            })
        })
        .collect()
    }

    #[test]
    fn a_watch_fires_once_when_it_is_registered() {
        let mut watches = Watches::new();
        watches.add(b"device", b"t").unwrap();
        assert_eq!(events(&mut watches), ["device t "]);
        assert_eq!(events(&mut watches), [""; 0]);
        assert_eq!(watches.add(b"device", b"t"), Err(Error::Exists));
        assert_eq!(events(&mut watches), [""; 0]);
    }

    #[test]
    fn what_is_below_and_what_is_gone_from_above() {
        let mut watches = Watches::new();
        for (path, token) in [(&b"a/b"[..], b"1"), (b"/local/domain/1/a", b"2"), (b"/x", b"3")] {
            watches.add(path, token).unwrap();
            events(&mut watches);
        }
        watches.note(Change::Written, b"/local/domain/1/a/b/c").unwrap();
        assert_eq!(events(&mut watches), ["a/b/c 1 ", "/local/domain/1/a/b/c 2 "]);
        watches.note(Change::Written, b"/local/domain/1/a").unwrap();
        assert_eq!(events(&mut watches), ["/local/domain/1/a 2 "]);
        watches.note(Change::Removed, b"/local/domain/1").unwrap();
        watches.note(Change::Removed, b"/x/y").unwrap();
        assert_eq!(events(&mut watches), ["a/b 1 ", "/local/domain/1/a 2 ", "/x/y 3 "]);
        watches.remove(b"a/b", b"1").unwrap();
        assert_eq!(watches.remove(b"a/b", b"1"), Err(Error::NotFound));
    }

    #[test]
    fn happenings_among_domains_fire_once_only() {
        let mut watches = Watches::new();
        watches.add(b"@releaseDomain", b"t").unwrap();
        assert_eq!(events(&mut watches), ["@releaseDomain t "]);
        watches.note(Change::Written, b"/a").unwrap();
        assert_eq!(events(&mut watches), [""; 0]);
    }

    #[test]
    fn there_is_an_end_to_watches_and_changes() {
        let mut watches = Watches::new();
        let many = (0..).find(|n| watches.add(b"a", format!("{n}").as_bytes()).is_err());
        assert_eq!(many, Some(WATCHES));
        assert_eq!(watches.add(b"b", &[b'x'; TOKEN + 1]), Err(Error::NoSpace));
        let many = (0..).find(|_| watches.note(Change::Written, &[b'/'; 100]).is_err());
        assert_eq!(many, Some(CHANGES / 103));
    }
}
