//! Names of nodes: what is one, and what a relative one means.
//! May: nothing. Context: shim. Input: guest-controlled.

use super::wire::Error;
use arrayvec::ArrayVec;

/// Bytes of a node's whole name at most. Xen takes up to 3072; device drivers need about 80.
pub const MOST: usize = 256;
/// The domain's home, to which relative names belong.
pub const HOME: &[u8] = b"/local/domain/1";
/// Its number.
pub const DOMAIN: u32 = 1;

/// A node's whole name; that of the root is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path(ArrayVec<u8, MOST>);

impl Path {
    /// Nothing, as a place for one.
    #[must_use]
    pub const fn root() -> Self {
        Self(ArrayVec::new_const())
    }

    /// The node that a request names `raw`.
    ///
    /// # Errors
    /// [`Error::Invalid`] if that is no name.
    pub fn new(raw: &[u8]) -> Result<Self, Error> {
        if raw == b"/" {
            return Ok(Self::root());
        }
        let known = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_/@".contains(byte);
        let double = raw.windows(2).any(|pair| pair == b"//");
        if raw.is_empty() || raw.ends_with(b"/") || double || !raw.iter().all(known) {
            return Err(Error::Invalid);
        }
        let mut path = ArrayVec::new();
        if !is_absolute(raw) {
            extend(&mut path, HOME)?;
            extend(&mut path, b"/")?;
        }
        extend(&mut path, raw)?;
        Ok(Self(path))
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The name says where it begins.
#[must_use]
pub fn is_absolute(raw: &[u8]) -> bool {
    raw.starts_with(b"/")
}

fn extend(path: &mut ArrayVec<u8, MOST>, bytes: &[u8]) -> Result<(), Error> {
    path.try_extend_from_slice(bytes).map_err(|_| Error::Invalid)
}

/// `path` is `ancestor`, or below it.
#[must_use]
pub fn is_within(path: &[u8], ancestor: &[u8]) -> bool {
    path.strip_prefix(ancestor).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

/// The node that `path` is a child of; `None` for the root.
#[must_use]
pub fn parent(path: &[u8]) -> Option<&[u8]> {
    path.iter().rposition(|&byte| byte == b'/').map(|end| &path[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_names_are_below_the_home() {
        assert_eq!(Path::new(b"device").unwrap().bytes(), b"/local/domain/1/device");
        assert_eq!(Path::new(b"/a/b").unwrap().bytes(), b"/a/b");
        assert_eq!(Path::new(b"/").unwrap().bytes(), b"");
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for bad in [&b""[..], b"a/", b"/a/", b"//", b"a//b", b"a b", b"/\xff", b"a\0"] {
            assert_eq!(Path::new(bad), Err(Error::Invalid), "{bad:?}");
        }
        assert!(Path::new(&[b'a'; MOST - 16]).is_ok());
        assert_eq!(Path::new(&[b'a'; MOST - 15]), Err(Error::Invalid));
    }

    #[test]
    fn below_is_by_whole_names() {
        assert!(is_within(b"/a/b", b"/a") && is_within(b"/a", b"/a") && is_within(b"/a", b""));
        assert!(!is_within(b"/ab", b"/a") && !is_within(b"/a", b"/a/b"));
        assert_eq!(parent(b"/a/b"), Some(&b"/a"[..]));
        assert_eq!(parent(b"/a"), Some(&b""[..]));
        assert_eq!(parent(b""), None);
    }
}
