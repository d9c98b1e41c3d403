//! Drives virtio devices, with no regard for what a driver may do.
//! May: nothing. Context: any. Input: the hypervisor's answers, trusted.

use super::{abi, memory};
use core::sync::atomic::{
    AtomicU64,
    Ordering::{Relaxed, SeqCst},
};
use pv_abi::{
    ext::{Features, call},
    virtio::{
        block, entropy,
        feature::VERSION_1,
        mmio, net,
        queue::{NEXT, WRITE},
        status, vsock,
    },
};
use suite::{holds, same, skip, verdict::Verdict};

/// Entries of the queues that attacks set up.
pub const SIZE: u16 = 256;
/// Status when all is set up.
pub const RUNNING: u64 =
    (status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK) as u64;
/// Looks at a ring until somebody has to have answered.
const PATIENCE: u64 = 100;

/// Frames that each slot's driver uses: three for each of two queues, then headers, an indirect table.
const FRAMES: u64 = 8;
/// First frame behind those of all slots: for data.
pub const DATA: u64 = 5 * FRAMES;
/// Frames of queues behind the first two, whichever card's: three for each.
const MORE: u64 = DATA + 200;
/// What a card's driver accepts to have several pairs of queues.
pub const SEVERAL: u64 = net::feature::CTRL_VQ | net::feature::MQ;

/// What was fuzzed since [`reset_items`]: accesses to registers, descriptors, indices, headers.
static ITEMS: AtomicU64 = AtomicU64::new(0);

/// Counts `count` more.
pub fn fuzzed(count: u64) {
    ITEMS.fetch_add(count, Relaxed);
}

/// How many.
pub fn items() -> u64 {
    ITEMS.load(Relaxed)
}

/// For the next attack.
pub fn reset_items() {
    ITEMS.store(0, Relaxed);
}

/// DEVICE_READ.
pub fn read(slot: u64, offset: u64) -> u64 {
    abi::call(call::DEVICE_READ, [slot, offset, 0, 0])
}

/// DEVICE_WRITE.
pub fn write(slot: u64, offset: u64, value: u64) -> u64 {
    abi::call(call::DEVICE_WRITE, [slot, offset, value, 0])
}

/// The slots with a device of this kind, of those for which there is memory.
pub fn slots(device: u32) -> impl Iterator<Item = u64> {
    (0..DATA / FRAMES).filter(move |&slot| read(slot, mmio::DEVICE_ID) == u64::from(device))
}

/// Has the VM's devices answer calls.
pub fn enable() -> Verdict {
    same!(abi::call1(call::ENABLE, Features::DEVICES.bits().into()), 0, "ENABLE of DEVICES");
    Ok(())
}

/// The first disk.
pub fn disk() -> Verdict<Device> {
    enable()?;
    slots(block::DEVICE).next().map(Device::new).map_or_else(|| skip!("this VM has no disk"), Ok)
}

/// What gives random bytes.
pub fn entropy() -> Verdict<Device> {
    enable()?;
    let found = slots(entropy::DEVICE).next().map(Device::new);
    found.map_or_else(|| skip!("this VM has no entropy device"), Ok)
}

/// What carries packets.
pub fn sockets() -> Verdict<Device> {
    enable()?;
    slots(vsock::DEVICE).next().map(Device::new).map_or_else(|| skip!("this VM has no sockets"), Ok)
}

/// The first two network cards.
pub fn cards() -> Verdict<[Device; 2]> {
    enable()?;
    let mut slots = slots(net::DEVICE).map(Device::new);
    match (slots.next(), slots.next()) {
        (Some(first), Some(second)) => Ok([first, second]),
        _ => skip!("this VM has no two network cards"),
    }
}

/// A device that is driven; its slot is one of the first five.
#[derive(Clone, Copy, Debug)]
pub struct Device {
    pub slot: u64,
    queues: u64,
}

/// A queue of a device.
#[derive(Clone, Copy, Debug)]
pub struct Ring {
    pub slot: u64,
    pub number: u64,
}

impl Device {
    /// The device in `slot`.
    pub fn new(slot: u64) -> Self {
        // That for events is not used.
        let with_two = [net::DEVICE, vsock::DEVICE].map(u64::from);
        let queues = if with_two.contains(&read(slot, mmio::DEVICE_ID)) { 2 } else { 1 };
        Self { slot, queues }
    }

    /// Resets it; nothing of it uses memory then.
    pub fn reset(&self) -> Verdict {
        same!(write(self.slot, mmio::STATUS, 0), 0, "reset");
        same!(read(self.slot, mmio::STATUS), 0, "Status after a reset");
        Ok(())
    }

    /// Resets it and agrees on `features`, as far as there are such.
    pub fn negotiate(&self, features: u64) -> Verdict {
        self.reset()?;
        write(self.slot, mmio::DEVICE_FEATURES_SEL, 0);
        let low = read(self.slot, mmio::DEVICE_FEATURES) & features;
        for (offset, value) in [
            (mmio::STATUS, 3),
            (mmio::DRIVER_FEATURES_SEL, 1),
            (mmio::DRIVER_FEATURES, VERSION_1 >> 32),
            (mmio::DRIVER_FEATURES_SEL, 0),
            (mmio::DRIVER_FEATURES, low),
            (mmio::STATUS, 11),
        ] {
            same!(write(self.slot, offset, value), 0, "register {offset:#x}");
        }
        same!(read(self.slot, mmio::STATUS), 11, "Status with the features {low:#x}");
        Ok(())
    }

    /// Sets it up as a driver should, with empty rings.
    pub fn start(&self, features: u64) -> Verdict {
        self.negotiate(features)?;
        for number in 0..self.queues {
            let ring = self.ring(number);
            ring.clear();
            ring.set_up(SIZE.into(), [ring.table(), ring.driver(), ring.device()])?;
            same!(read(self.slot, mmio::QUEUE_READY), 1, "QueueReady");
        }
        write(self.slot, mmio::STATUS, RUNNING);
        same!(self.status(), RUNNING, "Status");
        Ok(())
    }

    /// The same with so many queues.
    pub fn start_with(&self, features: u64, queues: u64) -> Verdict {
        Self { queues, ..*self }.start(features)
    }

    /// The same with all that a VM with two vCPUs has: two of a disk's, and of a card's two pairs, and one for commands.
    pub fn start_all(&self) -> Verdict {
        let is_disk = read(self.slot, mmio::DEVICE_ID) == u64::from(block::DEVICE);
        if is_disk { self.start_with(block::feature::MQ, 2) } else { self.start_with(SEVERAL, 5) }
    }

    pub fn status(&self) -> u64 {
        read(self.slot, mmio::STATUS)
    }

    /// The device says that it cannot go on.
    pub fn needs_reset(&self) -> bool {
        self.status() & u64::from(status::DEVICE_NEEDS_RESET) != 0
    }

    pub const fn ring(&self, number: u64) -> Ring {
        Ring { slot: self.slot, number }
    }

    /// A word of the configuration space.
    pub fn config(&self, offset: u64) -> u64 {
        read(self.slot, mmio::CONFIG + offset)
    }

    /// Where its driver keeps what is no ring: request headers, and an indirect table behind them.
    pub const fn headers(&self) -> u64 {
        memory::frame(FRAMES * self.slot + 6)
    }

    /// An indirect table.
    pub const fn indirect(&self) -> u64 {
        memory::frame(FRAMES * self.slot + 7)
    }
}

impl Ring {
    const fn frame(&self, part: u64) -> u64 {
        match self.number {
            0 | 1 => memory::frame(FRAMES * self.slot + 3 * self.number + part),
            number => memory::frame(MORE + 3 * (number - 2) + part),
        }
    }

    /// Where its descriptors are, if the driver is sane.
    pub const fn table(&self) -> u64 {
        self.frame(0)
    }

    /// Where the available ring is.
    pub const fn driver(&self) -> u64 {
        self.frame(1)
    }

    /// Where the used ring is.
    pub const fn device(&self) -> u64 {
        self.frame(2)
    }

    pub fn clear(&self) {
        (0..3).for_each(|part| memory::fill_frame(self.frame(part), |_| 0));
    }

    /// Sets it up, of any size and anywhere.
    pub fn set_up(&self, size: u64, [table, driver, device]: [u64; 3]) -> Verdict {
        for (offset, value) in [(mmio::QUEUE_SEL, self.number), (mmio::QUEUE_NUM, size)] {
            same!(write(self.slot, offset, value), 0, "register {offset:#x}");
        }
        for (offset, value) in [
            (mmio::QUEUE_DESC_LOW, table),
            (mmio::QUEUE_DRIVER_LOW, driver),
            (mmio::QUEUE_DEVICE_LOW, device),
        ] {
            for (offset, half) in [(offset, value & 0xffff_ffff), (offset + 4, value >> 32)] {
                same!(write(self.slot, offset, half), 0, "register {offset:#x}");
            }
        }
        same!(write(self.slot, mmio::QUEUE_READY, 1), 0, "QueueReady");
        Ok(())
    }

    /// DOORBELL.
    pub fn kick(&self) -> Verdict {
        same!(abi::call(call::DOORBELL, [self.slot, self.number, 0, 0]), 0, "DOORBELL");
        Ok(())
    }

    /// The index that the driver has set: chains made available, modulo 2^16.
    pub fn offered(&self) -> u16 {
        half(self.driver() + 2)
    }

    /// The index that the device has set: chains used, modulo 2^16.
    pub fn used(&self) -> u16 {
        half(self.device() + 2)
    }

    /// Makes `head` available, and tells nobody.
    pub fn offer(&self, head: u16) {
        let offered = self.offered();
        set_half(self.driver() + 4 + 2 * u64::from(offered % SIZE), head);
        set_half(self.driver() + 2, offered.wrapping_add(1));
    }

    /// Makes a buffer of `len` bytes available for the device to write, as descriptor `index`.
    pub fn offer_room(&self, index: u16, gpa: u64, len: u32) {
        describe(self.table(), index.into(), Descriptor::new(gpa, len).to_write());
        self.offer(index);
    }

    /// Waits until the device has used all that was offered, or will never do so.
    pub fn settle(&self) -> Verdict {
        let device = Device { slot: self.slot, queues: 0 };
        let start = abi::tsc();
        while self.used() != self.offered() && !device.needs_reset() {
            holds!(abi::tsc() - start < PATIENCE << 30, "the device answers nothing");
            abi::call(call::YIELD, [0; 4]);
        }
        Ok(())
    }
}

/// Descriptor `index` of the table at `table`: a buffer, whether the device writes it, and what follows.
pub fn describe(table: u64, index: u64, descriptor: Descriptor) {
    let Descriptor { gpa, len, flags, next } = descriptor;
    let rest = u64::from(next) << 48 | u64::from(flags) << 32 | u64::from(len);
    memory::word(table + 16 * index).store(gpa, Relaxed);
    memory::word(table + 16 * index + 8).store(rest, SeqCst);
}

/// The descriptors from `first` on: a chain of `parts`.
pub fn describe_chain(table: u64, first: u16, parts: &[Descriptor]) {
    let last = parts.len() - 1;
    for (index, (number, part)) in (first..).zip(parts.iter().enumerate()) {
        let goes_on = Descriptor { flags: part.flags | NEXT, next: index + 1, ..*part };
        describe(table, index.into(), if number == last { *part } else { goes_on });
    }
}

/// A descriptor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    pub gpa: u64,
    pub len: u32,
    pub flags: u16,
    pub next: u16,
}

impl Descriptor {
    pub const fn new(gpa: u64, len: u32) -> Self {
        Self { gpa, len, flags: 0, next: 0 }
    }

    /// The device writes it.
    pub const fn to_write(self) -> Self {
        Self { flags: self.flags | WRITE, ..self }
    }
}

/// The 16 bits at `gpa`, a multiple of 2.
pub fn half(gpa: u64) -> u16 {
    (memory::word(gpa & !7).load(SeqCst) >> (gpa % 8 * 8)) as u16
}

/// Stores 16 bits; other vCPUs may store the rest of the word meanwhile.
pub fn set_half(gpa: u64, value: u16) {
    let shift = gpa % 8 * 8;
    let put = |word: u64| Some(word & !(0xffff << shift) | u64::from(value) << shift);
    let _ = memory::word(gpa & !7).fetch_update(SeqCst, SeqCst, put);
}
