//! Writes the one module L1 is booted with (format: `pv_abi::bundle`).

use crate::elf::Program;
use anyhow::{Context, Result, ensure};
use pv_abi::{
    PAGE_SIZE,
    bundle::{
        Backend, Blob, Bundle, Card, ConsoleMode, ConsolePort, Device, Disk, Guest, Image, Kind,
        Network, Pti, Restart, Segment, Siblings, Trace,
    },
};
use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    path::PathBuf,
};

/// The largest bundle QEMU can place: with 2.75 GiB of memory or more, q35 keeps only 2 GiB below
/// the 4 GiB line, where the module goes, and L1 needs some of it.
const LARGEST: u64 = (2 << 30) - (128 << 20);
/// An offset whose encoding is as long as that of any real one.
const FAR: u64 = 1 << 62;

/// A file to pack as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packed {
    /// Where it is.
    pub path: PathBuf,
    /// Its length in bytes.
    pub len: u64,
}

/// What the guest runs.
#[derive(Clone, Debug)]
pub enum Payload {
    /// A stock kernel under the shim.
    Stock {
        /// The shim.
        shim: Program,
        /// The kernel.
        kernel: Packed,
    },
    /// A native guest.
    Native(Program),
}

/// Everything that goes into the bundle.
#[derive(Clone, Debug)]
pub struct Contents {
    /// The guests, in the order in which they start.
    pub guests: Vec<GuestContents>,
    /// Networks.
    pub networks: Vec<Network>,
    /// Whether L1 prints statistics.
    pub stats: bool,
    /// Seconds from one line of live counters to the next, 0 for none.
    pub stats_every: u32,
    /// When last exits go to the log.
    pub trace: Trace,
    /// How the guests share the console.
    pub console: ConsoleMode,
    /// How the guests share cores.
    pub siblings: Siblings,
    /// Page-table isolation.
    pub pti: Pti,
    /// Which port the consoles share.
    pub port: ConsolePort,
    /// Seconds since 1970.
    pub wall_seconds: u64,
}

/// What one guest brings.
#[derive(Clone, Debug)]
pub struct GuestContents {
    /// The guest's name, for messages.
    pub name: String,
    /// What it runs.
    pub payload: Payload,
    /// Its initial ramdisk or module.
    pub initrd: Option<Packed>,
    /// Its command line.
    pub cmdline: String,
    /// Its memory in bytes.
    pub memory: u64,
    /// Its virtual CPUs.
    pub vcpus: u32,
    /// Who runs it.
    pub backend: Backend,
    /// Its share of the processors.
    pub weight: u32,
    /// What follows its end.
    pub restart: Restart,
    /// Whether its memory is taken if it dies.
    pub core: bool,
    /// Its disks.
    pub disks: Vec<Disk>,
    /// Its network cards.
    pub cards: Vec<Card>,
    /// Its other virtio devices.
    pub devices: Vec<Device>,
}

impl Contents {
    /// Bytes that [`Self::write`] copies, at most.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        let bytes = |guest: &GuestContents| {
            let kernel = match &guest.payload {
                Payload::Stock { kernel, .. } => kernel.len,
                Payload::Native(_) => 0,
            };
            kernel + guest.initrd.as_ref().map_or(0, |file| file.len)
        };
        self.guests.iter().map(bytes).sum()
    }

    /// Writes the bundle to `out`, calling `progress` with the bytes just written, and returns its
    /// length.
    ///
    /// # Errors
    /// A file that cannot be read or changed meanwhile, a full disk, a bundle that is too large.
    pub fn write(&self, out: &mut (impl Write + Seek), progress: impl Fn(u64)) -> Result<u64> {
        // Offsets are encoded in as few bytes as they need, so where the blobs start depends on
        // the offsets themselves: encode with far ones first to learn a start that always fits.
        let mut layout = Layout::starting(FAR);
        let bound = encode(&self.bundle(&mut layout))?.len() as u64;
        let mut layout = Layout::starting(bound.next_multiple_of(PAGE_SIZE as u64));
        let header = encode(&self.bundle(&mut layout))?;
        ensure!(
            layout.end <= LARGEST,
            "kernels and initrds take {} MiB, more than L1 can be given (1920 MiB): use smaller ones",
            layout.end >> 20
        );
        out.write_all(&header).context(FULL)?;
        for (blob, source) in &layout.blobs {
            out.seek(SeekFrom::Start(blob.offset)).context(FULL)?;
            source.copy_to(blob.len, out, &progress)?;
        }
        out.flush().context(FULL)?;
        Ok(layout.end)
    }

    fn bundle<'a>(&'a self, layout: &mut Layout<'a>) -> Bundle {
        Bundle {
            guests: self.guests.iter().map(|guest| guest.describe(layout)).collect(),
            networks: self.networks.clone(),
            stats: self.stats,
            stats_every: self.stats_every,
            trace: self.trace,
            console: self.console,
            siblings: self.siblings,
            pti: self.pti,
            port: self.port,
            wall_seconds: self.wall_seconds,
        }
    }
}

impl GuestContents {
    fn describe<'a>(&'a self, layout: &mut Layout<'a>) -> Guest {
        let kind = match &self.payload {
            Payload::Stock { shim, kernel } => Kind::Stock {
                shim: layout.image(shim),
                kernel: layout.place(Source::File(kernel)),
                initrd: self.initrd.as_ref().map(|file| layout.place(Source::File(file))),
            },
            Payload::Native(program) => Kind::Native {
                image: layout.image(program),
                module: self.initrd.as_ref().map(|file| layout.place(Source::File(file))),
            },
        };
        Guest {
            name: self.name.clone(),
            kind,
            cmdline: self.cmdline.clone(),
            memory: self.memory,
            vcpus: self.vcpus,
            backend: self.backend,
            weight: self.weight,
            restart: self.restart,
            core: self.core,
            disks: self.disks.clone(),
            cards: self.cards.clone(),
            devices: self.devices.clone(),
        }
    }
}

const FULL: &str = "cannot write the boot module: make room in the temporary folder or set TMPDIR";

fn encode(bundle: &Bundle) -> Result<Vec<u8>> {
    // The only failure is a description of more than 4 GiB; command lines are far shorter.
    bundle.encode().map_err(|error| anyhow::anyhow!("cannot describe the guests: {error:?}"))
}

/// Where a blob's bytes come from.
#[derive(Debug, PartialEq, Eq)]
enum Source<'a> {
    Bytes(&'a [u8]),
    File(&'a Packed),
}

impl Source<'_> {
    fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File(file) => file.len,
        }
    }

    fn copy_to(&self, len: u64, out: &mut impl Write, progress: impl Fn(u64)) -> Result<()> {
        match self {
            Self::Bytes(bytes) => {
                out.write_all(bytes).context(FULL)?;
                progress(len);
            }
            Self::File(file) => {
                let shown = file.path.display();
                let open =
                    File::open(&file.path).with_context(|| format!("cannot read {shown}"))?;
                let mut left = open.take(len);
                while left.limit() > 0 {
                    let copied = io::copy(&mut left.by_ref().take(1 << 20), out)
                        .with_context(|| format!("cannot copy {shown}"))?;
                    ensure!(copied > 0, "{shown} became shorter while it was read: start again");
                    progress(copied);
                }
            }
        }
        Ok(())
    }
}

/// Gives every blob its place, page-aligned, in the order asked for; guests share what is the same.
#[derive(Debug)]
struct Layout<'a> {
    blobs: Vec<(Blob, Source<'a>)>,
    end: u64,
}

impl<'a> Layout<'a> {
    fn starting(at: u64) -> Self {
        Self { blobs: Vec::new(), end: at }
    }

    fn place(&mut self, source: Source<'a>) -> Blob {
        if let Some((blob, _)) = self.blobs.iter().find(|(_, placed)| *placed == source) {
            return *blob;
        }
        let offset = self.end.next_multiple_of(PAGE_SIZE as u64);
        let blob = Blob { offset, len: source.len() };
        self.end = offset + blob.len;
        self.blobs.push((blob, source));
        blob
    }

    fn image(&mut self, program: &'a Program) -> Image {
        let segments = program
            .pieces
            .iter()
            .map(|piece| Segment {
                addr: piece.addr,
                memory: piece.memory,
                data: if piece.bytes.is_empty() {
                    Blob::default()
                } else {
                    self.place(Source::Bytes(&piece.bytes))
                },
                write: piece.write,
                execute: piece.execute,
            })
            .collect();
        Image { entry: program.entry, segments }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elf::Piece;
    use std::{cell::Cell, io::Cursor, path::Path};

    fn piece(addr: u64, bytes: &[u8]) -> Piece {
        Piece { addr, memory: 8192, bytes: bytes.into(), write: true, execute: false }
    }

    fn program() -> Program {
        Program { entry: 0x1000, pieces: vec![piece(0x1000, b"code"), piece(0x3000, b"")] }
    }

    fn packed(path: &Path, bytes: &[u8]) -> Packed {
        std::fs::write(path, bytes).unwrap();
        Packed { path: path.into(), len: bytes.len() as u64 }
    }

    fn contents(payload: Payload, initrd: Option<Packed>) -> Contents {
        let guest = GuestContents {
            name: "guest".into(),
            payload,
            initrd,
            cmdline: "quiet".into(),
            memory: 64 << 20,
            vcpus: 1,
            backend: Backend::Shadow,
            weight: 300,
            restart: Restart::Always,
            core: true,
            disks: vec![],
            cards: vec![],
            devices: vec![],
        };
        Contents {
            guests: vec![guest],
            networks: vec![],
            stats: true,
            stats_every: 7,
            trace: Trace::Death,
            console: ConsoleMode::Prefix,
            siblings: Siblings::OneGuest,
            pti: Pti::Auto,
            port: ConsolePort::Virtio,
            wall_seconds: 1_700_000_000,
        }
    }

    #[test]
    fn l1_reads_back_what_was_packed() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = packed(&dir.path().join("k"), &[7; 5000]);
        let initrd = packed(&dir.path().join("i"), &[9; 3]);
        let contents = contents(Payload::Stock { shim: program(), kernel }, Some(initrd));
        let (mut file, seen) = (Cursor::new(Vec::new()), Cell::new(0));
        let len = contents.write(&mut file, |bytes| seen.set(seen.get() + bytes)).unwrap();
        let file = file.into_inner();
        assert_eq!(len, file.len() as u64);
        assert_eq!(seen.get(), 4 + 5000 + 3);

        let read = Bundle::decode(&file).unwrap();
        assert!(read.stats && read.guests[0].core);
        assert_eq!((read.stats_every, read.trace), (7, Trace::Death));
        assert_eq!((read.console, read.siblings), (ConsoleMode::Prefix, Siblings::OneGuest));
        assert_eq!((read.pti, read.port), (Pti::Auto, ConsolePort::Virtio));
        assert_eq!(read.wall_seconds, 1_700_000_000);
        let [guest] = &read.guests[..] else { panic!("one guest") };
        assert_eq!((guest.name.as_str(), guest.cmdline.as_str()), ("guest", "quiet"));
        assert_eq!((guest.memory, guest.vcpus), (64 << 20, 1));
        assert_eq!((guest.weight, guest.restart), (300, Restart::Always));
        assert_eq!(guest.backend, Backend::Shadow);
        let Kind::Stock { shim, kernel, initrd } = &guest.kind else { panic!("stock") };
        let bytes = |blob: &Blob| {
            assert!(blob.offset.is_multiple_of(4096), "{blob:?}");
            &file[blob.offset as usize..][..blob.len as usize]
        };
        assert_eq!(shim.entry, 0x1000);
        assert_eq!(bytes(&shim.segments[0].data), b"code");
        assert_eq!(shim.segments[1].data, Blob::default());
        assert_eq!(shim.segments[1].memory, 8192);
        assert_eq!(bytes(kernel), [7; 5000]);
        assert_eq!(bytes(&initrd.unwrap()), [9; 3]);
    }

    #[test]
    fn a_native_guest_carries_its_module() {
        let dir = tempfile::tempdir().unwrap();
        let module = packed(&dir.path().join("m"), b"module");
        let mut file = Cursor::new(Vec::new());
        contents(Payload::Native(program()), Some(module)).write(&mut file, |_| ()).unwrap();
        let read = Bundle::decode(file.get_ref()).unwrap();
        let Kind::Native { image, module: Some(module) } = &read.guests[0].kind else {
            panic!("native with a module")
        };
        assert_eq!(image.segments.len(), 2);
        assert_eq!(&file.get_ref()[module.offset as usize..], b"module");
    }

    #[test]
    fn guests_share_what_is_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = packed(&dir.path().join("k"), &[7; 5000]);
        let other = packed(&dir.path().join("i"), &[9; 5000]);
        let mut all = contents(Payload::Stock { shim: program(), kernel }, Some(other));
        let mut one = Cursor::new(Vec::new());
        all.write(&mut one, |_| ()).unwrap();
        all.guests.push(GuestContents { name: "second".into(), ..all.guests[0].clone() });
        let mut two = Cursor::new(Vec::new());
        all.write(&mut two, |_| ()).unwrap();
        assert_eq!(one.get_ref().len(), two.get_ref().len());
        let read = Bundle::decode(two.get_ref()).unwrap();
        assert_eq!(read.guests[0].kind, read.guests[1].kind);
        let Kind::Stock { kernel, initrd: Some(initrd), .. } = &read.guests[1].kind else {
            panic!("stock with a ramdisk")
        };
        assert_ne!(kernel, initrd, "as long as each other, but not the same");
        assert_eq!(read.guests[1].name, "second");
    }

    #[test]
    fn a_file_that_shrank_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = Packed { len: 10, ..packed(&dir.path().join("k"), b"short") };
        let contents = contents(Payload::Stock { shim: program(), kernel }, None);
        let error = contents.write(&mut Cursor::new(Vec::new()), |_| ()).unwrap_err();
        assert!(error.to_string().contains("became shorter"));
    }

    #[test]
    fn a_bundle_beyond_the_limit_is_refused() {
        let kernel = Packed { path: "unread".into(), len: 2 << 30 };
        let contents = contents(Payload::Stock { shim: program(), kernel }, None);
        let error = contents.write(&mut Cursor::new(Vec::new()), |_| ()).unwrap_err();
        assert!(error.to_string().contains("1920 MiB"));
    }
}
