//! Writes cpio archives of the newc kind, the same bytes for the same content.
//! Format: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.

use anyhow::{Context, Result, bail, ensure};
use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::{Component, Path, PathBuf},
};

const FILE_TYPE: u32 = 0o170_000;
const DIRECTORY: u32 = 0o040_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
const REGULAR_FILE: u32 = 0o100_000;
const SYMBOLIC_LINK: u32 = 0o120_000;
/// The archive's length is a multiple of this.
const BLOCK: u64 = 512;

/// Something in the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// A folder with these permissions.
    Directory(u32),
    /// A file with these permissions and bytes.
    File(u32, Vec<u8>),
    /// A copy of a file on this machine, with these permissions.
    Copy(u32, PathBuf),
    /// A link to this path.
    Link(PathBuf),
    /// A character device: permissions, major and minor number.
    Device(u32, u32, u32),
}

/// An archive being put together; owner and group of everything are root, times are 0.
#[derive(Clone, Debug, Default)]
pub struct Archive {
    nodes: BTreeMap<PathBuf, Node>,
}

impl Archive {
    /// Puts a node at `path`, from the root, with or without a leading slash. Folders above it
    /// appear by themselves; a file takes the place of an earlier one.
    ///
    /// # Errors
    /// The path leads outside, or a file and a folder would share a name.
    pub fn put(&mut self, path: &Path, node: Node) -> Result<()> {
        let path = inside(path)?;
        for folder in path.ancestors().skip(1).filter(|folder| *folder != Path::new("")) {
            let above = self.nodes.entry(folder.into()).or_insert(Node::Directory(0o755));
            ensure!(
                matches!(above, Node::Directory(_)),
                "cannot put {} under {}, which is no folder",
                path.display(),
                folder.display()
            );
        }
        let is_folder = matches!(node, Node::Directory(_));
        if let Some(old) = self.nodes.insert(path.clone(), node) {
            ensure!(
                matches!(old, Node::Directory(_)) == is_folder,
                "{} is added both as a file and as a folder",
                path.display()
            );
        }
        Ok(())
    }

    /// True if there is something at `path`.
    #[must_use]
    pub fn has(&self, path: &str) -> bool {
        self.nodes.contains_key(Path::new(path))
    }

    /// Writes the archive; `each` is called after every node.
    ///
    /// # Errors
    /// A file cannot be read, is too large for the format, or `out` does not take the bytes.
    pub fn write(&self, out: &mut impl Write, mut each: impl FnMut()) -> Result<()> {
        let mut writer = Writer { out, at: 0, inode: 0 };
        for (path, node) in &self.nodes {
            writer.node(path, node)?;
            each();
        }
        writer.entry(b"TRAILER!!!", 0, (0, 0), b"")?;
        writer.pad(BLOCK)
    }
}

fn inside(path: &Path) -> Result<PathBuf> {
    let mut out = PathBuf::new();
    for component in path.components() {
        match component {
            Component::RootDir | Component::CurDir => (),
            Component::Normal(name) => out.push(name),
            _ => bail!("{} leads out of the ramdisk: give a path from its root", path.display()),
        }
    }
    ensure!(out != Path::new(""), "{} names no file in the ramdisk", path.display());
    Ok(out)
}

#[derive(Debug)]
struct Writer<'a, W> {
    out: &'a mut W,
    at: u64,
    inode: u32,
}

impl<W: Write> Writer<'_, W> {
    fn node(&mut self, path: &Path, node: &Node) -> Result<()> {
        let name = path.as_os_str().as_encoded_bytes();
        match node {
            Node::Directory(mode) => self.entry(name, DIRECTORY | mode, (0, 0), b""),
            Node::File(mode, bytes) => self.entry(name, REGULAR_FILE | mode, (0, 0), bytes),
            Node::Copy(mode, source) => {
                let bytes = fs::read(source)
                    .with_context(|| format!("cannot read {}", source.display()))?;
                self.entry(name, REGULAR_FILE | mode, (0, 0), &bytes)
            }
            Node::Link(target) => {
                let target = target.as_os_str().as_encoded_bytes();
                self.entry(name, SYMBOLIC_LINK | 0o777, (0, 0), target)
            }
            Node::Device(mode, major, minor) => {
                self.entry(name, CHARACTER_DEVICE | mode, (*major, *minor), b"")
            }
        }
    }

    /// Header, name and content; header plus name, and content, are padded to 4 bytes.
    fn entry(&mut self, name: &[u8], mode: u32, device: (u32, u32), content: &[u8]) -> Result<()> {
        let len = u32::try_from(content.len()).with_context(|| {
            format!("{} is larger than 4 GiB: leave it out", String::from_utf8_lossy(name))
        })?;
        let name_len = u32::try_from(name.len() + 1).context("a file name is too long")?;
        self.inode += 1;
        let links = if mode & FILE_TYPE == DIRECTORY { 2 } else { 1 };
        // ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
        let fields = [self.inode, mode, 0, 0, links, 0, len, 0, 0, device.0, device.1, name_len, 0];
        self.bytes(b"070701")?;
        for field in fields {
            self.bytes(format!("{field:08x}").as_bytes())?;
        }
        self.bytes(name)?;
        self.bytes(b"\0")?;
        self.pad(4)?;
        self.bytes(content)?;
        self.pad(4)
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.at += bytes.len() as u64;
        self.out.write_all(bytes).context("cannot write the ramdisk")
    }

    fn pad(&mut self, to: u64) -> Result<()> {
        const ZEROS: [u8; BLOCK as usize] = [0; BLOCK as usize];
        let missing = self.at.next_multiple_of(to) - self.at;
        self.bytes(&ZEROS[..usize::try_from(missing)?])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(archive: &Archive) -> Vec<u8> {
        let mut out = Vec::new();
        archive.write(&mut out, || ()).unwrap();
        out
    }

    #[test]
    fn the_bytes_are_those_of_the_format() {
        let mut archive = Archive::default();
        archive.put(Path::new("/a/b"), Node::File(0o644, b"hello".into())).unwrap();
        archive.put(Path::new("null"), Node::Device(0o666, 1, 3)).unwrap();
        let mut expected = String::new();
        let mut entry = |numbers: &str, name: &str, content: &str| {
            expected.push_str("070701");
            expected.push_str(&numbers.replace(' ', ""));
            expected.push_str(name);
            expected.push('\0');
            expected.push_str(&"\0".repeat(expected.len().next_multiple_of(4) - expected.len()));
            expected.push_str(content);
            expected.push_str(&"\0".repeat(expected.len().next_multiple_of(4) - expected.len()));
        };
        let zero = "00000000";
        entry(
            &format!(
                "00000001 000041ed {zero} {zero} 00000002 {zero} {zero} {zero} {zero} {zero} {zero} 00000002 {zero}"
            ),
            "a",
            "",
        );
        entry(
            &format!(
                "00000002 000081a4 {zero} {zero} 00000001 {zero} 00000005 {zero} {zero} {zero} {zero} 00000004 {zero}"
            ),
            "a/b",
            "hello",
        );
        entry(
            &format!(
                "00000003 000021b6 {zero} {zero} 00000001 {zero} {zero} {zero} {zero} 00000001 00000003 00000005 {zero}"
            ),
            "null",
            "",
        );
        entry(
            &format!(
                "00000004 {zero} {zero} {zero} 00000001 {zero} {zero} {zero} {zero} {zero} {zero} 0000000b {zero}"
            ),
            "TRAILER!!!",
            "",
        );
        let len = expected.len().next_multiple_of(512);
        let mut expected = expected.into_bytes();
        expected.resize(len, 0);
        assert_eq!(bytes(&archive), expected);
    }

    #[test]
    fn order_of_putting_does_not_show() {
        let (mut one, mut two) = (Archive::default(), Archive::default());
        let link = Node::Link("busybox".into());
        for (archive, names) in [(&mut one, ["bin/a", "bin/b"]), (&mut two, ["bin/b", "bin/a"])] {
            for name in names {
                archive.put(Path::new(name), link.clone()).unwrap();
            }
        }
        assert_eq!(bytes(&one), bytes(&two));
    }

    #[test]
    fn folders_come_before_what_is_in_them() {
        let mut archive = Archive::default();
        archive.put(Path::new("b-c"), Node::File(0o644, vec![])).unwrap();
        archive.put(Path::new("b/c"), Node::File(0o644, vec![])).unwrap();
        let order: Vec<_> = archive.nodes.keys().map(|path| path.to_str().unwrap()).collect();
        assert!(order.iter().position(|p| *p == "b") < order.iter().position(|p| *p == "b/c"));
        assert!(archive.has("b") && !archive.has("c"));
    }

    #[test]
    fn a_later_file_wins_but_a_folder_stays_one() {
        let mut archive = Archive::default();
        archive.put(Path::new("x"), Node::File(0o644, b"1".into())).unwrap();
        archive.put(Path::new("x"), Node::File(0o644, b"2".into())).unwrap();
        assert_eq!(archive.nodes[Path::new("x")], Node::File(0o644, b"2".into()));
        let under = archive.put(Path::new("x/y"), Node::Directory(0o755)).unwrap_err();
        assert!(under.to_string().contains("no folder"));
        let both = archive.put(Path::new("x"), Node::Directory(0o755)).unwrap_err();
        assert!(both.to_string().contains("both"));
    }

    #[test]
    fn paths_stay_inside() {
        assert_eq!(inside(Path::new("/./a//b/")).unwrap(), Path::new("a/b"));
        assert!(inside(Path::new("/a/../b")).unwrap_err().to_string().contains("out of"));
        assert!(inside(Path::new("/")).unwrap_err().to_string().contains("no file"));
    }
}
