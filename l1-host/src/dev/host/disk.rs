//! Drives one disk of the machine: what it has and can do, and who has it do what.
//! May: alloc. Context: boot; run-loop, irq-off. Input: the machine's device.
//!
//! `work` says what a request is and how it ends, `requests` has those that are under way; `protocol` says how they are
//! put to a disk (`block`) or to a unit of a controller ([`crate::dev::scsi`]), and `units` finds the latter.

mod block;
mod pieces;
mod protocol;
mod requests;
mod units;
mod work;

pub use units::find as find_units;
pub use work::{Answers, Outcome, Refused, Run, Ticket, Work};

use super::{
    hal,
    transport::{Place, Signals},
};
use crate::dev::{
    gpt::Sectors,
    virtio::block::{Access, Erase},
};
use alloc::{
    boxed::Box,
    format,
    string::{String, ToString},
};
use core::fmt::Display;
use pieces::PIECES;
use protocol::{Protocol, Unit};
use pv_abi::{
    bundle::PciPlace,
    virtio::{
        block::{self as virtio, NAME, SECTOR, config},
        feature,
    },
};
use requests::Requests;
use spin::Mutex;
use virtio_drivers::transport::{SomeTransport, Transport};

bitflags::bitflags! {
    /// Features that L1 knows.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Features: u64 {
        const RO = virtio::feature::RO;
        const FLUSH = virtio::feature::FLUSH;
        const DISCARD = virtio::feature::DISCARD;
        const WRITE_ZEROES = virtio::feature::WRITE_ZEROES;
        const VERSION_1 = feature::VERSION_1;
    }
}

/// One disk.
#[derive(Debug)]
pub struct Disk {
    place: Place,
    unit: Unit,
    serial: String,
    sectors: u64,
    access: Access,
    flush: bool,
    erase: Erase,
    /// Pieces of memory in a request at most, no more than [`PIECES`].
    pieces: usize,
    /// Those of its device.
    requests: &'static Mutex<Requests>,
}

impl Disk {
    /// The disk at `place`, behind `transport`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(
        place: Place,
        mut transport: SomeTransport<'static>,
        signals: Signals,
    ) -> Result<Self, String> {
        let features = hal::agree(&mut transport, Features::all())?;
        signals.route(Protocol::Block.queue())?;
        let low: u32 = transport.read_config_space(0).map_err(|why| why.to_string())?;
        let high: u32 = transport.read_config_space(4).map_err(|why| why.to_string())?;
        let erase = what_can_be_erased(&transport, features);
        let mut requests = Requests::new(Protocol::Block, place, transport, signals)?;
        let serial = ask_serial(&mut requests)?;
        if !serial.is_empty() {
            requests.set_name(&serial);
        }
        Ok(Self {
            place,
            unit: Unit::Device,
            serial,
            sectors: u64::from(high) << 32 | u64::from(low),
            access: if features.contains(Features::RO) { Access::Read } else { Access::Write },
            flush: features.contains(Features::FLUSH),
            erase,
            pieces: PIECES,
            requests: Box::leak(Box::new(Mutex::new(requests))),
        })
    }

    /// Where it is, for the log.
    pub fn place(&self) -> impl Display {
        format!("{}{}", self.place, self.unit)
    }

    /// Its name in the machine.
    #[must_use]
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// Whether it is at this place on PCI.
    #[must_use]
    pub const fn is_at(&self, wanted: PciPlace) -> bool {
        let PciPlace { bus, device, function } = wanted;
        matches!(
            self.place,
            Place::Pci(place) if place.bus == bus && place.device == device && place.function == function
        )
    }

    /// Its sectors of 512 bytes.
    #[must_use]
    pub const fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Whether it may be written.
    #[must_use]
    pub const fn access(&self) -> Access {
        self.access
    }

    /// What it can be asked to erase.
    #[must_use]
    pub const fn erase(&self) -> Erase {
        self.erase
    }

    /// Pieces of memory in a request at most.
    #[must_use]
    pub const fn pieces(&self) -> usize {
        self.pieces
    }

    /// Whether it has to be told to write its cache out.
    #[must_use]
    pub const fn has_cache(&self) -> bool {
        self.flush
    }

    /// Sends `work` off. The answer comes by [`Self::take_answers`], with the ticket. The device need not
    /// begin before [`Self::tell`].
    ///
    /// # Errors
    /// [`Refused`], with the ticket.
    pub fn send(&self, work: Work, ticket: Ticket) -> Result<(), (Refused, Ticket)> {
        self.requests.lock().send(self.unit, work, ticket)?;
        super::watch();
        Ok(())
    }

    /// Has the device do what it was given, if it has not been told.
    pub fn tell(&self) {
        self.requests.lock().tell();
    }

    /// Requests are under way.
    pub fn is_busy(&self) -> bool {
        self.requests.lock().is_busy()
    }

    /// Takes the answers that its device has given. Requests that took too long end that.
    pub fn take_answers(&self, answers: &mut Answers) {
        self.requests.lock().take_answers(answers);
    }
}

/// For the start, while no guest runs.
impl Sectors for Disk {
    fn count(&self) -> u64 {
        self.sectors
    }

    fn read(&self, first: u64, out: &mut [u8]) -> bool {
        let mut requests = self.requests.lock();
        out.chunks_mut(4096)
            .zip((first..).step_by(4096 / SECTOR as usize))
            .all(|(page, sector)| requests.read(self.unit, sector, page) == Ok(Outcome::Done))
    }
}

/// The serial of a virtio disk; empty if it does not tell.
fn ask_serial(requests: &mut Requests) -> Result<String, String> {
    let mut bytes = [0; NAME];
    let outcome = requests.ask(block::ask_serial(), &mut bytes)?;
    if requests.has_failed() {
        return Err("it does not answer".into());
    }
    if outcome == Outcome::Failed {
        return Ok(String::new());
    }
    let len = bytes.iter().position(|&byte| byte == 0).unwrap_or(NAME);
    Ok(String::from_utf8_lossy(&bytes[..len]).into_owned())
}

/// What the configuration of a disk with these features says of erasing.
fn what_can_be_erased(transport: &SomeTransport<'static>, features: Features) -> Erase {
    let word = |offset: u64| transport.read_config_space(offset as usize).unwrap_or(0_u32);
    // Ranges are sent one by one.
    let most = |feature, sectors, ranges| {
        if features.contains(feature) && word(ranges) > 0 { word(sectors) } else { 0 }
    };
    Erase {
        discard: most(Features::DISCARD, config::MAX_DISCARD_SECTORS, config::MAX_DISCARD_SEG),
        alignment: word(config::DISCARD_SECTOR_ALIGNMENT),
        zero: most(
            Features::WRITE_ZEROES,
            config::MAX_WRITE_ZEROES_SECTORS,
            config::MAX_WRITE_ZEROES_SEG,
        ),
        may_unmap: word(config::WRITE_ZEROES_MAY_UNMAP) & 0xff != 0,
    }
}

const _: () = assert!(SECTOR == 512);
