//! Watches over the victim's disk and network card while others attack theirs.
//! May: nothing. Context: any. Input: frames of others, the hypervisor's answers.

use crate::{
    println,
    runtime::{
        memory,
        virtio::{self, Descriptor, Device, RUNNING, describe_chain, half},
    },
};
use core::sync::atomic::Ordering::Relaxed;
use pv_abi::virtio::{
    block::{HEADER, SECTOR, answer, request},
    net,
};
use suite::{holds, random::Random, same, verdict::Verdict};

/// Bytes of the disk that are looked at together.
const PAGE: u64 = 4096;
/// Buffers for frames to come, half a page each.
const ROOM: u16 = 16;
/// Bytes of a frame at most: a packet, Ethernet's header and a tag.
const LONGEST: u64 = 1500 + 18;
/// First frame of memory behind the drivers': for the disk's data, then for frames to come.
const DATA: u64 = virtio::DATA;

/// Frames of memory that are the devices'.
pub const FRAMES: u64 = DATA + 1 + ROOM as u64 / 2;

/// The victim's devices, as far as it has any.
#[derive(Debug)]
pub struct Devices {
    disk: Option<Device>,
    card: Option<Device>,
    pages: u64,
    came: u64,
    taken: u16,
    seen: u64,
}

/// What a word of the disk holds.
const fn value(page: u64, at: u64) -> u64 {
    (page << 16 ^ at ^ 0xd15c).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl Devices {
    /// Takes them over: fills the disk, and has the card receive.
    pub fn start() -> Verdict<Self> {
        virtio::enable()?;
        let first = |device| virtio::slots(device).next().map(Device::new);
        let (disk, card) = (first(pv_abi::virtio::block::DEVICE), first(net::DEVICE));
        let mut devices = Self { disk, card, pages: 0, came: 0, taken: 0, seen: 0 };
        if let Some(disk) = disk {
            disk.start(0)?;
            devices.pages = disk.config(0) / (PAGE / SECTOR);
            for page in 0..devices.pages {
                memory::fill_frame(memory::frame(DATA), |word| value(page, word));
                ask(&disk, request::OUT, page)?;
            }
        }
        if let Some(card) = card {
            card.start(0)?;
            let ring = card.ring(net::RECEIVE as u64);
            for index in 0..ROOM {
                ring.offer_room(index, buffer(index), 2048);
            }
        }
        Ok(devices)
    }

    /// A page of the disk is what it was, and what has come are frames.
    pub fn look(&mut self, random: &mut Random) -> Verdict {
        if let Some(disk) = &self.disk {
            let page = random.below(self.pages);
            memory::fill_frame(memory::frame(DATA), |_| 0);
            ask(disk, request::IN, page)?;
            for word in 0..PAGE / 8 {
                let found = memory::word(memory::frame(DATA) + 8 * word).load(Relaxed);
                same!(found, value(page, word), "word {word} of page {page} of the disk");
            }
            self.seen += 1;
        }
        if let Some(card) = self.card {
            self.take_frames(&card)?;
            same!(card.status(), RUNNING, "Status of the card");
        }
        Ok(())
    }

    fn take_frames(&mut self, card: &Device) -> Verdict {
        let ring = card.ring(net::RECEIVE as u64);
        let own = card.config(0) | (card.config(4) & 0xffff) << 32;
        while ring.used() != self.taken {
            let entry = ring.device() + 4 + 8 * u64::from(self.taken % virtio::SIZE);
            self.taken = self.taken.wrapping_add(1);
            let word = |at| u64::from(half(entry + at));
            let (index, len) = (word(0) | word(2) << 16, word(4) | word(6) << 16);
            holds!(index < ROOM.into(), "buffer {index} has come back");
            let header = net::HEADER as u64;
            let fine = (header + 14..=header + LONGEST).contains(&len);
            holds!(fine, "a frame of {len} bytes with its header");
            let at = buffer(index as u16) + header;
            let halves =
                |at: u64| (0..3).fold(0, |sum, n| sum | u64::from(half(at + 2 * n)) << (16 * n));
            let (to, from) = (halves(at), halves(at + 6));
            holds!(to == own || to & 1 != 0, "a frame for {to:#x}, who is another");
            holds!(from != own && from & 1 == 0, "a frame from {from:#x}");
            self.came += 1;
            ring.offer(index as u16);
        }
        Ok(())
    }

    /// Says how much was looked at.
    pub fn tell(&self) {
        println!("# victim: {} looks at its disk, {} frames came", self.seen, self.came);
    }
}

const fn buffer(index: u16) -> u64 {
    memory::frame(DATA + 1 + index as u64 / 2) + index as u64 % 2 * 2048
}

/// A page to or from the disk.
fn ask(disk: &Device, kind: u32, page: u64) -> Verdict {
    let (ring, header) = (disk.ring(0), disk.headers());
    memory::word(header).store(kind.into(), Relaxed);
    memory::word(header + 8).store(page * (PAGE / SECTOR), Relaxed);
    memory::word(header + 16).store(!0, Relaxed);
    let data = Descriptor::new(memory::frame(DATA), PAGE as u32);
    let data = if kind == request::IN { data.to_write() } else { data };
    let end = Descriptor::new(header + 16, 1).to_write();
    describe_chain(ring.table(), 0, &[Descriptor::new(header, HEADER as u32), data, end]);
    ring.offer(0);
    ring.kick()?;
    ring.settle()?;
    same!(disk.status(), RUNNING, "Status of the disk");
    let found = memory::word(header + 16).load(Relaxed) & 0xff;
    same!(found, u64::from(answer::OK), "the disk's answer");
    Ok(())
}
