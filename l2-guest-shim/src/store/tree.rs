//! The store's nodes: names with values, in a fixed amount of memory.
//! May: nothing. Context: shim. Input: guest-controlled.
//!
//! All nodes lie one behind the other in one buffer, sorted so that a node is followed by all that is
//! below it. Every look-up reads through the buffer, which is short.

use super::path;
use core::cmp::Ordering;

/// Bytes for all nodes.
pub const ROOM: usize = 56 << 10;
/// Bytes of a value and of a list of permissions at most.
pub const VALUE: usize = 2048;

/// Bytes before a name: lengths of name, value, permissions, 16 bits each.
const LENGTHS: usize = 6;

/// There is no room left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// A node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node<'a> {
    /// Its whole name.
    pub path: &'a [u8],
    /// Its value, any bytes.
    pub value: &'a [u8],
    /// Its permissions as the kernel set them; empty if it did not.
    pub permissions: &'a [u8],
}

impl Node<'_> {
    const fn size(&self) -> usize {
        LENGTHS + self.path.len() + self.value.len() + self.permissions.len()
    }
}

/// All nodes but the root, which is always there and has no value.
#[derive(Debug)]
pub struct Tree {
    bytes: [u8; ROOM],
    used: usize,
}

impl Tree {
    /// No nodes.
    #[must_use]
    pub const fn new() -> Self {
        Self { bytes: [0; ROOM], used: 0 }
    }

    /// Becomes equal to `other`.
    pub fn copy_from(&mut self, other: &Self) {
        self.bytes[..other.used].copy_from_slice(&other.bytes[..other.used]);
        self.used = other.used;
    }

    /// Bytes in use.
    #[cfg(test)]
    pub const fn used(&self) -> usize {
        self.used
    }

    /// The node at `at`, unless that is the end.
    fn node(&self, at: usize) -> Option<Node<'_>> {
        let bytes = &self.bytes[at..self.used];
        let (&lengths, bytes) = bytes.split_first_chunk::<LENGTHS>()?;
        let [a, b, c, d, e, f] = lengths;
        let length = |low, high| usize::from(u16::from_le_bytes([low, high]));
        let (path, bytes) = bytes.split_at_checked(length(a, b))?;
        let (value, bytes) = bytes.split_at_checked(length(c, d))?;
        let permissions = bytes.get(..length(e, f))?;
        Some(Node { path, value, permissions })
    }

    /// All nodes with their places, from the one at `at` on.
    fn nodes(&self, mut at: usize) -> impl Iterator<Item = (usize, Node<'_>)> {
        core::iter::from_fn(move || {
            let node = self.node(at)?;
            let found = at;
            at += node.size();
            Some((found, node))
        })
    }

    /// Where `path` is, or else where it belongs.
    fn find(&self, path: &[u8]) -> Result<usize, usize> {
        for (at, node) in self.nodes(0) {
            match order(node.path, path) {
                Ordering::Less => {}
                Ordering::Equal => return Ok(at),
                Ordering::Greater => return Err(at),
            }
        }
        Err(self.used)
    }

    /// The node named `path`.
    #[must_use]
    pub fn get<'a>(&'a self, path: &'a [u8]) -> Option<Node<'a>> {
        if path.is_empty() {
            return Some(Node { path, value: &[], permissions: &[] });
        }
        self.find(path).ok().and_then(|at| self.node(at))
    }

    /// Gives `path` a value, and makes it and what is above it if they are not there.
    ///
    /// # Errors
    /// [`Full`], and nothing has changed but that nodes above it may be there now.
    pub fn set(&mut self, path: &[u8], value: &[u8]) -> Result<(), Full> {
        self.make_parents(path)?;
        self.put(path, Some(value), None)
    }

    /// Makes `path` if it is not there.
    ///
    /// # Errors
    /// As for [`Tree::set`].
    pub fn make(&mut self, path: &[u8]) -> Result<(), Full> {
        self.make_parents(path)?;
        self.put(path, None, None)
    }

    /// Gives the node named `path` permissions.
    ///
    /// # Errors
    /// [`Full`], and nothing has changed.
    pub fn set_permissions(&mut self, path: &[u8], permissions: &[u8]) -> Result<(), Full> {
        self.put(path, None, Some(permissions))
    }

    fn make_parents(&mut self, path: &[u8]) -> Result<(), Full> {
        let ends = (1..path.len()).filter(|&end| path[end] == b'/');
        for end in ends {
            self.put(&path[..end], None, None)?;
        }
        Ok(())
    }

    /// Makes or changes a node; what is `None` stays, or is empty.
    fn put(
        &mut self,
        path: &[u8],
        value: Option<&[u8]>,
        permissions: Option<&[u8]>,
    ) -> Result<(), Full> {
        let (at, old) = match self.find(path) {
            Ok(at) => (at, self.node(at)),
            Err(at) => (at, None),
        };
        // What stays is moved within the buffer: its lengths are all there is to know.
        let (old_size, old_value, old_permissions) =
            old.map_or((0, 0, 0), |node| (node.size(), node.value.len(), node.permissions.len()));
        let value_len = value.map_or(old_value, <[u8]>::len);
        let permissions_len = permissions.map_or(old_permissions, <[u8]>::len);
        let size = LENGTHS + path.len() + value_len + permissions_len;
        let end = self.used - old_size + size;
        if end > ROOM || value_len > VALUE || permissions_len > VALUE || path.len() > path::MOST {
            return Err(Full);
        }
        let values = at + LENGTHS + path.len();
        let mut kept = [0; VALUE];
        if permissions.is_none() {
            let from = values + old_value;
            kept[..old_permissions].copy_from_slice(&self.bytes[from..from + old_permissions]);
        }
        self.bytes.copy_within(at + old_size..self.used, at + size);
        self.used = end;
        let lengths = [path.len(), value_len, permissions_len];
        for (place, length) in self.bytes[at..at + LENGTHS].chunks_exact_mut(2).zip(lengths) {
            place.copy_from_slice(&(length as u16).to_le_bytes());
        }
        self.bytes[at + LENGTHS..values].copy_from_slice(path);
        if let Some(value) = value {
            self.bytes[values..values + value_len].copy_from_slice(value);
        }
        let permissions = permissions.unwrap_or(&kept[..old_permissions]);
        self.bytes[values + value_len..at + size].copy_from_slice(permissions);
        Ok(())
    }

    /// Removes `path` and all below it; false if it is not there.
    pub fn remove(&mut self, path: &[u8]) -> bool {
        let Ok(start) = self.find(path) else { return false };
        let end = self
            .nodes(start)
            .find(|(_, node)| !path::is_within(node.path, path))
            .map_or(self.used, |(at, _)| at);
        self.bytes.copy_within(end..self.used, start);
        self.used -= end - start;
        true
    }

    /// The names of the children of `path`, without what is before their last slash.
    pub fn children<'a>(&'a self, path: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        self.nodes(0).filter_map(move |(_, node)| {
            let name = node.path.strip_prefix(path)?.strip_prefix(b"/")?;
            (!name.contains(&b'/')).then_some(name)
        })
    }
}

impl Default for Tree {
    fn default() -> Self {
        Self::new()
    }
}

/// The order of nodes: bytewise, the slash before all others, so that what is below a node follows it.
fn order(a: &[u8], b: &[u8]) -> Ordering {
    let key = |&byte: &u8| if byte == b'/' { 0 } else { byte };
    a.iter().map(key).cmp(b.iter().map(key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn paths(tree: &Tree) -> Vec<&[u8]> {
        tree.nodes(0).map(|(_, node)| node.path).collect()
    }

    #[test]
    fn what_is_above_is_made() {
        let mut tree = Tree::new();
        tree.set(b"/a/b/c", b"x").unwrap();
        tree.set(b"/a-b", b"y").unwrap();
        assert_eq!(paths(&tree), [&b"/a"[..], b"/a/b", b"/a/b/c", b"/a-b"]);
        assert_eq!(tree.get(b"/a/b").unwrap().value, b"");
        assert_eq!(tree.children(b"/a").collect::<Vec<_>>(), [b"b"]);
        assert_eq!(tree.children(b"").collect::<Vec<_>>(), [&b"a"[..], b"a-b"]);
        assert!(tree.remove(b"/a") && !tree.remove(b"/a"));
        assert_eq!(paths(&tree), [b"/a-b"]);
    }

    #[test]
    fn permissions_and_values_live_side_by_side() {
        let mut tree = Tree::new();
        tree.set(b"/a", b"one").unwrap();
        tree.set(b"/b", b"two").unwrap();
        tree.set_permissions(b"/a", b"n1\0").unwrap();
        tree.set(b"/a", b"much longer").unwrap();
        let node = tree.get(b"/a").unwrap();
        assert_eq!((node.value, node.permissions), (&b"much longer"[..], &b"n1\0"[..]));
        tree.make(b"/a").unwrap();
        tree.set_permissions(b"/a", b"").unwrap();
        let node = tree.get(b"/a").unwrap();
        assert_eq!((node.value, node.permissions), (&b"much longer"[..], &b""[..]));
        assert_eq!(tree.get(b"/b").unwrap().value, b"two");
    }

    #[test]
    fn it_is_full_one_day() {
        let mut tree = Tree::new();
        let full = (0..).find(|n| tree.set(format!("/{n}").as_bytes(), &[7; VALUE]).is_err());
        assert!(full.is_some_and(|n| n >= ROOM / VALUE - 1));
        assert_eq!(tree.set(b"/0", &[0; VALUE + 1]), Err(Full));
        assert_eq!(tree.get(b"/0").unwrap().value, [7; VALUE]);
        tree.set(b"/0", b"").unwrap();
        tree.set(b"/new", b"fits").unwrap();
    }

    proptest! {
        /// Against a map in which what is below a node is found by its name.
        #[test]
        fn like_a_map(steps in prop::collection::vec(
            (0..3u8, "(/[ab-]{1,2}){1,3}", prop::collection::vec(any::<u8>(), 0..40)), 1..60))
        {
            let mut tree = Box::new(Tree::new());
            let mut map = BTreeMap::<Vec<u8>, Vec<u8>>::new();
            for (step, path, value) in steps {
                let path = path.as_bytes();
                if step == 0 {
                    prop_assert_eq!(tree.remove(path), map.contains_key(path));
                    map.retain(|name, _| !path::is_within(name, path));
                } else {
                    tree.set(path, &value).unwrap();
                    for end in (1..path.len()).filter(|&end| path[end] == b'/') {
                        map.entry(path[..end].to_vec()).or_default();
                    }
                    map.insert(path.to_vec(), value);
                }
                prop_assert_eq!(paths(&tree).len(), map.len());
                for (name, value) in &map {
                    prop_assert_eq!(tree.get(name).map(|node| node.value), Some(&value[..]));
                }
            }
        }
    }
}
