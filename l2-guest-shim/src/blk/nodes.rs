//! What the store says of a disk, and what a front end of disks says there.
//! May: nothing. Context: shim. Input: guest-controlled nodes.

use super::{
    device::{Discard, Properties, QUEUES_MOST},
    request::INDIRECT,
};
use crate::{
    store::{Error, Store},
    xenbus::{Backend, Front},
};
use arrayvec::{ArrayString, ArrayVec};
use core::fmt::{self, Write};
use pv_abi::virtio::block::SECTOR;

/// Number of the first disk, xvda, and from one to the next.
const FIRST: u32 = 51712;
const STEP: u32 = 16;
/// Bit of "info": the disk may not be written.
const READ_ONLY: u32 = 4;

/// Disk number `index`.
#[must_use]
pub const fn backend(index: u32) -> Backend {
    Backend::new("vbd", FIRST + index * STEP)
}

/// Writes what the kernel finds at its start.
///
/// # Errors
/// [`Error::NoSpace`].
pub fn place(backend: &Backend, store: &mut Store, properties: &Properties) -> Result<(), Error> {
    let Properties { sectors, block, read_only, flush, discard, queues, .. } = *properties;
    backend.place(store)?;
    backend.place_front(store, "/virtual-device", format_args!("{}", backend.number()))?;
    backend.place_front(store, "/device-type", format_args!("disk"))?;

    let mut back = |name: &str, value: fmt::Arguments<'_>| backend.place_back(store, name, value);
    back("/sectors", format_args!("{sectors}"))?;
    back("/sector-size", format_args!("512"))?;
    back("/physical-sector-size", format_args!("{block}"))?;
    back("/info", format_args!("{}", if read_only { READ_ONLY } else { 0 }))?;
    back("/mode", format_args!("{}", if read_only { "r" } else { "w" }))?;
    back("/feature-flush-cache", format_args!("{}", u32::from(flush)))?;
    back("/feature-barrier", format_args!("0"))?;
    back("/feature-persistent", format_args!("0"))?;
    let segments = (INDIRECT as u32).min(properties.segments);
    back("/feature-max-indirect-segments", format_args!("{segments}"))?;
    if let Some(Discard { alignment, .. }) = discard {
        back("/feature-discard", format_args!("1"))?;
        back("/discard-granularity", format_args!("{}", u64::from(alignment) * SECTOR))?;
        back("/discard-alignment", format_args!("0"))?;
        back("/discard-secure", format_args!("0"))?;
    }
    back("/multi-queue-max-queues", format_args!("{queues}"))?;
    back("/max-ring-page-order", format_args!("0"))
}

/// A ring that a front end wants to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring {
    /// Its grant.
    pub grant: u32,
    /// The port by which it is told.
    pub port: u32,
}

/// What a front end wants to use: a ring for each queue, one or more.
pub type Asked = ArrayVec<Ring, QUEUES_MOST>;

/// What `front` wants to use of a disk that has `most` queues. `None` if it does not say so, names a ring twice, has
/// no queue or too many, or has another layout of the rings.
///
/// Names are those of Xen's public `io/blkif.h`: one ring is named beside the state, several in a folder each.
#[must_use]
pub fn asked(front: &Front<'_>, most: usize) -> Option<Asked> {
    let native = front.is_or_lacks("/protocol", b"x86_64-abi");
    let chosen = "/multi-queue-num-queues";
    let queues = if front.has(chosen) { front.number(chosen)? as usize } else { 1 };
    if !native || !(1..=most.min(QUEUES_MOST)).contains(&queues) {
        return None;
    }
    let mut asked = Asked::new();
    for queue in 0..queues {
        let grant = front.number(&node(queues, queue, "ring-ref"))?;
        let port = front.number(&node(queues, queue, "event-channel"))?;
        if asked.iter().any(|other| other.grant == grant || other.port == port) {
            return None;
        }
        asked.push(Ring { grant, port });
    }
    Some(asked)
}

/// Name of a node about queue number `queue` of `queues`.
fn node(queues: usize, queue: usize, name: &str) -> ArrayString<32> {
    let mut node = ArrayString::new();
    // All are shorter than that.
    let _ = match queues {
        1 => write!(node, "/{name}"),
        _ => write!(node, "/queue-{queue}/{name}"),
    };
    node
}

#[cfg(test)]
mod tests;
