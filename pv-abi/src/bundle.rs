//! The one module L1 is booted with: every guest's configuration and files.
//! May: nothing. Input: trusted (the host tool), checked all the same.
//!
//! PVH passes a single module, so the tool packs everything into one file: a header ([`HEADER`]), the
//! [`Bundle`] in postcard encoding, then the blobs, each page-aligned.

extern crate alloc;

mod devices;

pub use devices::{
    CIDS, Card, DEFAULT_MTU, Device, DeviceKind, Disk, MTUS, MachineDisk, Network, Partition,
    PciPlace, Uplink,
};

use alloc::{string::String, vec::Vec};
use serde::{Deserialize, Serialize};

/// First bytes of a bundle.
pub const MAGIC: [u8; 8] = *b"RoostBdl";
/// Version of header and encoding.
pub const VERSION: u32 = 11;
/// Bytes before the encoded [`Bundle`]: magic, version (u32), encoded length (u32).
pub const HEADER: usize = 16;

/// A run of bytes in the bundle file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    /// From the start of the file.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// One loadable piece of an image. The tool parses ELF files; L1 only copies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Page-aligned: window address (shim) or guest-physical address (native guest).
    pub addr: u64,
    /// Bytes in memory; what the file does not give is zero.
    pub memory: u64,
    /// Bytes in the file.
    pub data: Blob,
    /// May be written.
    pub write: bool,
    /// May be executed.
    pub execute: bool,
}

/// A program of ours, ready to copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// First instruction.
    pub entry: u64,
    /// Pieces in ascending order.
    pub segments: Vec<Segment>,
}

/// How a guest is started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A stock kernel under the shim.
    Stock {
        /// The shim.
        shim: Image,
        /// The kernel file, untouched.
        kernel: Blob,
        /// The initial ramdisk, untouched.
        initrd: Option<Blob>,
    },
    /// A kernel that speaks the native ABI.
    Native {
        /// The kernel.
        image: Image,
        /// A module for it.
        module: Option<Blob>,
    },
}

/// One guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guest {
    /// For messages.
    pub name: String,
    /// What to run.
    pub kind: Kind,
    /// Kernel command line.
    pub cmdline: String,
    /// RAM, bytes.
    pub memory: u64,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Who runs it.
    pub backend: Backend,
    /// Its share of the processors against the other guests', within [`WEIGHTS`].
    pub weight: u32,
    /// What follows its end.
    pub restart: Restart,
    /// Somebody takes its memory if it dies: L1 says where it is ([`CORE_PREFIX`]) and waits a while.
    pub core: bool,
    /// Its disks.
    pub disks: Vec<Disk>,
    /// Its network cards.
    pub cards: Vec<Card>,
    /// Its other virtio devices.
    pub devices: Vec<Device>,
}

/// Weights that a guest may have.
pub const WEIGHTS: core::ops::RangeInclusive<u32> = 1..=1000;
/// The weight of a guest for which none is named.
pub const DEFAULT_WEIGHT: u32 = 100;

/// What follows a guest's end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Restart {
    /// Nothing.
    #[default]
    Never,
    /// It is started again if it asked for it.
    OnReboot,
    /// It is started again if it died or asked for it.
    OnFailure,
    /// It is started again, even if it powered itself off.
    Always,
}

/// Who runs a guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Backend {
    /// L0 where it offers that and the guest can live there, else L1.
    #[default]
    Auto,
    /// L1, with shadow tables.
    Shadow,
    /// L0 (`docs/spec/l0-l1.md`).
    Assisted,
}

/// How guests share the console, COM1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConsoleMode {
    /// One guest at a time has it; keys switch.
    #[default]
    Focus,
    /// Whole lines of all guests, each after its guest's name.
    Prefix,
}

/// What the hardware threads of one core may run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Siblings {
    /// vCPUs of any guests.
    #[default]
    AnyGuests,
    /// vCPUs of one guest at a time.
    OneGuest,
    /// The same, and nothing of it while one of them is in L1.
    Kick,
}

/// The port that guests' consoles share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConsolePort {
    /// The first serial port.
    #[default]
    Serial,
    /// The first port of the machine's virtio console; the serial one if it has none.
    Virtio,
}

/// Whether L1's memory is out of guests' page tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pti {
    /// It is.
    #[default]
    On,
    /// It is on CPUs that are known to read through a page's privilege, or not known not to.
    Auto,
    /// It is not, on any CPU.
    Off,
}

/// When the last exits of a guest's vCPUs go to the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Trace {
    /// Never: they are not remembered.
    #[default]
    Off,
    /// When the guest dies.
    Death,
    /// When it ends, however it does.
    Always,
}

/// Everything L1 is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bundle {
    /// Guests, started in this order.
    pub guests: Vec<Guest>,
    /// Networks.
    pub networks: Vec<Network>,
    /// Time each exit, and print counters and histograms to the log when a guest ends.
    pub stats: bool,
    /// Seconds from one line of counters to the next while guests run ([`LIVE_PREFIX`]), 0 for none.
    pub stats_every: u32,
    /// Remember each vCPU's last exits.
    pub trace: Trace,
    /// How they share the console.
    pub console: ConsoleMode,
    /// How they share cores.
    pub siblings: Siblings,
    /// Page-table isolation.
    pub pti: Pti,
    /// Which port the consoles share.
    pub port: ConsolePort,
    /// Seconds since 1970 at start, from the tool's clock; 0 if L1 is to ask its machine.
    pub wall_seconds: u64,
}

/// Why a bundle cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// Too short, or not starting with [`MAGIC`].
    NotABundle,
    /// Written by another version of the tool.
    Version(u32),
    /// The encoded part does not decode.
    Encoding,
    /// A blob lies outside the file.
    Blob,
}

impl Bundle {
    /// Decodes the bundle at the start of `file` and checks that every blob lies inside it.
    ///
    /// # Errors
    /// [`Error`] says what is wrong.
    pub fn decode(file: &[u8]) -> Result<Self, Error> {
        let header = file.get(..HEADER).ok_or(Error::NotABundle)?;
        if header[..8] != MAGIC {
            return Err(Error::NotABundle);
        }
        let word = |at: usize| {
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        if word(8) != VERSION {
            return Err(Error::Version(word(8)));
        }
        let encoded = file[HEADER..].get(..word(12) as usize).ok_or(Error::Encoding)?;
        let bundle: Self = postcard::from_bytes(encoded).map_err(|_| Error::Encoding)?;
        let inside = |blob: &Blob| {
            blob.offset.checked_add(blob.len).is_some_and(|end| end <= file.len() as u64)
        };
        if bundle.guests.iter().flat_map(Guest::blobs).all(|blob| inside(&blob)) {
            Ok(bundle)
        } else {
            Err(Error::Blob)
        }
    }

    /// Header and encoded part, to be followed by the blobs.
    ///
    /// # Errors
    /// [`Error::Encoding`] if the description is larger than 4 GiB.
    pub fn encode(&self) -> Result<Vec<u8>, Error> {
        let body = postcard::to_allocvec(self).map_err(|_| Error::Encoding)?;
        let len = u32::try_from(body.len()).map_err(|_| Error::Encoding)?;
        let mut out = Vec::with_capacity(HEADER + body.len());
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(&body);
        Ok(out)
    }
}

impl Image {
    /// Pages that its segments take up.
    #[must_use]
    pub fn segment_pages(&self) -> u64 {
        self.segments.iter().map(|segment| segment.memory.div_ceil(4096)).sum()
    }
}

impl Guest {
    fn blobs(&self) -> Vec<Blob> {
        let (image, files) = match &self.kind {
            Kind::Stock { shim, kernel, initrd } => (shim, [Some(*kernel), *initrd]),
            Kind::Native { image, module } => (image, [*module, None]),
        };
        image
            .segments
            .iter()
            .map(|segment| segment.data)
            .chain(files.into_iter().flatten())
            .collect()
    }
}

/// `isa-debug-exit` values with which L1 tells the tool how it ended; QEMU exits with
/// `value << 1 | 1`.
pub mod exit {
    /// Every guest powered off.
    pub const POWEROFF: u8 = 0x10;
    /// A guest asked for a restart.
    pub const REBOOT: u8 = 0x11;
    /// A guest died; the log says why.
    pub const GUEST_DIED: u8 = 0x12;
    /// The shim or L1 refused to start a guest; the log says why.
    pub const BOOT_FAILED: u8 = 0x13;
    /// L1 itself failed.
    pub const L1_FAILED: u8 = 0x14;
}

/// Word of L1's own command line: the machine is reset, not switched off, if it ends otherwise than with
/// [`exit::POWEROFF`].
pub const RESET_AT_END: &str = "end=reset";

/// Prefix of the log lines that the tool shows to its user.
pub const REPORT_PREFIX: &str = "@report ";
/// Prefix of the log line that holds the statistics, as JSON.
pub const STATS_PREFIX: &str = "@stats ";
/// Prefix of the lines that hold counters while guests run, as JSON.
pub const LIVE_PREFIX: &str = "@stats-live ";
/// Prefix of the lines about a guest's last exits.
pub const TRACE_PREFIX: &str = "@trace ";
/// Prefix of the line that says, as JSON, where the memory of a guest is that has died.
pub const CORE_PREFIX: &str = "@core ";
/// Prefix of the line after it: `taken`, or `late` if nobody came for it. Either way the memory is
/// given away from then on.
pub const CORE_END_PREFIX: &str = "@core-end ";
/// How long L1 waits for it to be taken, seconds in which the machine runs. A break on L1's log port
/// ends the wait.
pub const CORE_SECONDS: u64 = 10;

#[cfg(test)]
mod tests;
