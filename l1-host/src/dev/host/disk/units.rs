//! Finds the disks that a SCSI controller of the machine's has.
//! May: alloc. Context: boot. Input: the machine's device.

use super::{
    Disk,
    pieces::PIECES,
    protocol::{Protocol, Unit},
    requests::Requests,
    work::Outcome,
};
use crate::{
    dev::{
        host::{
            hal::{self, L1, Plain},
            transport::{Place, Signals},
        },
        scsi::{
            Address, Question, config,
            said::{self, DISK, LEN, LIMITS, PROVISIONING, SERIAL, Said},
        },
        virtio::block::{Access, Erase, LARGEST, SEGMENTS},
    },
    log,
};
use alloc::{
    boxed::Box,
    format,
    string::{String, ToString},
    vec::Vec,
};
use core::mem;
use pv_abi::virtio::block::SECTOR;
use spin::Mutex;
use virtio_drivers::{
    queue::VirtQueue,
    transport::{SomeTransport, Transport},
};

/// Entries of the queues that L1 does not use.
const UNUSED: usize = 4;

/// The disks of the controller at `place`, behind `transport`. Of a unit that cannot be used the log says why.
///
/// # Errors
/// What is wrong with the controller.
pub fn find(
    place: Place,
    mut transport: SomeTransport<'static>,
    signals: Signals,
) -> Result<Vec<Disk>, String> {
    hal::agree(&mut transport, Plain::all())?;
    signals.route(Protocol::Scsi.queue())?;
    // A controller has these two queues, and some want to see them set up.
    for number in 0..Protocol::Scsi.queue() {
        let queue = VirtQueue::<L1, UNUSED>::new(&mut transport, number, false, false);
        mem::forget(queue.map_err(|why| why.to_string())?);
    }
    let word = |offset| transport.read_config_space::<u32>(offset).map_err(|why| why.to_string());
    let pieces = PIECES.min(word(config::SEG_MAX)? as usize);
    let sectors = word(config::MAX_SECTORS)?;
    if pieces < SEGMENTS as usize || u64::from(sectors) < LARGEST / SECTOR {
        return Err("its requests are too small".into());
    }
    let most = word(config::CMD_PER_LUN)? as usize;
    let targets = transport.read_config_space::<u16>(config::MAX_TARGET);
    let targets = targets.map_err(|why| why.to_string())?.min(u8::MAX.into()) as u8;
    let mut requests = Requests::new(Protocol::Scsi, place, transport, signals)?;
    requests.limit(most);
    let mut found = Vec::new();
    for target in 0..=targets {
        let first = Address { target, lun: 0 };
        let Some(list) = ask(&mut requests, first, Question::Units) else { continue };
        for lun in said::units(&list) {
            let address = Address { target, lun };
            match look(&mut requests, address) {
                Ok(unit) => found.push((address, unit)),
                Err(why) => log!("disk at {place}, unit {address}: not used: {why}"),
            }
        }
    }
    if requests.has_failed() {
        return Err("it does not answer".into());
    }
    let requests: &'static _ = Box::leak(Box::new(Mutex::new(requests)));
    let disk = |(address, found)| {
        let Found { serial, sectors, access, flush, erase } = found;
        let unit = Unit::Scsi(address);
        Disk { place, unit, serial, sectors, access, flush, erase, pieces, requests }
    };
    Ok(found.into_iter().map(disk).collect())
}

/// A disk.
struct Found {
    serial: String,
    sectors: u64,
    access: Access,
    flush: bool,
    erase: Erase,
}

/// What the unit at `address` is, or why L1 does not use it.
fn look(requests: &mut Requests, address: Address) -> Result<Found, String> {
    let mut ask = |question| ask(requests, address, question);
    let kind = ask(Question::Kind).ok_or("it does not say what it is")?[0];
    if kind != DISK {
        return Err(format!("it is of another kind ({kind:#x})"));
    }
    ask(Question::Ready).ok_or("it is not ready")?;
    let sectors = said::size(&ask(Question::Capacity).ok_or("it does not tell its size")?)?;
    let serial = ask(Question::Page(SERIAL)).map_or(String::new(), |page| said::serial(&page));
    let (access, flush) = said::mode(ask(Question::Mode));
    let provisioning = ask(Question::Page(PROVISIONING));
    let limits = ask(Question::Page(LIMITS));
    let erase = provisioning.zip(limits).map(|(page, limits)| said::erase(&page, &limits));
    Ok(Found { serial, sectors, access, flush, erase: erase.unwrap_or_default() })
}

/// What the unit at `address` says to `question`, if it does.
fn ask(requests: &mut Requests, address: Address, question: Question) -> Option<Said> {
    let mut answer = [0; LEN];
    let wanted = if question == Question::Ready { 0 } else { LEN };
    let outcome = requests.ask(address.question(question), &mut answer[..wanted]);
    (outcome == Ok(Outcome::Done)).then_some(answer)
}
