//! The register block of a virtio-mmio device, version 2 (virtio 1.2, 4.2.2).
//! May: nothing. Context: run-loop. Input: guest-controlled register accesses.

use super::queue::Queue;
use alloc::boxed::Box;
use pv_abi::{
    ext::devices::QUEUE_MOST,
    virtio::{feature::VERSION_1, interrupt, mmio, status},
};

/// "Roos".
pub const VENDOR: u32 = u32::from_le_bytes(*b"Roos");

/// What does not change: which device it is.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The device's type.
    pub device: u32,
    /// Features it offers.
    pub features: u64,
    /// How many queues there are for a driver that has accepted features: the first entry counts of whose features it
    /// has all. The first of all has the most queues, the last no features.
    pub queues: Box<[(u64, usize)]>,
    /// Its configuration space.
    pub config: Box<[u32]>,
}

impl Identity {
    /// Its queues, if a driver accepts all that there is.
    #[must_use]
    pub fn most_queues(&self) -> usize {
        self.queues.first().map_or(0, |&(_, queues)| queues)
    }

    fn queues_with(&self, accepted: u64) -> usize {
        let fitting = self.queues.iter().find(|&&(needed, _)| accepted & needed == needed);
        fitting.map_or(0, |&(_, queues)| queues)
    }
}

/// The block.
#[derive(Clone, Debug)]
pub struct Registers {
    identity: Identity,
    driven: Driven,
    /// Queues that there are for a driver that has accepted what it has.
    there: usize,
}

/// What the driver has set.
#[derive(Clone, Debug, Default)]
struct Driven {
    device_features_high: u32,
    driver_features_high: u32,
    features: u64,
    selected: u32,
    queues: Box<[Setup]>,
    interrupt: u32,
    status: u32,
}

/// What it has set of a queue.
#[derive(Clone, Copy, Debug, Default)]
struct Setup {
    size: u32,
    descriptors: u64,
    driver: u64,
    device: u64,
    queue: Option<Queue>,
}

impl Driven {
    /// The queue that is selected, if it is one of the first `there`.
    fn chosen(&mut self, there: usize) -> Option<&mut Setup> {
        self.queues[..there].get_mut(self.selected as usize)
    }

    /// Sets a part of the selected queue; false if there is no such register.
    fn set_part(&mut self, there: usize, offset: u64, value: u32) -> bool {
        let low = |word: u64| word & !0 << 32 | u64::from(value);
        let high = |word: u64| word & u64::from(u32::MAX) | u64::from(value) << 32;
        // One that is in use stays as it is, and one that there is not takes nothing.
        let open = self.chosen(there).filter(|setup| setup.queue.is_none());
        let mut nobodys = Setup::default();
        let setup = open.unwrap_or(&mut nobodys);
        match offset {
            mmio::QUEUE_NUM => setup.size = value,
            mmio::QUEUE_DESC_LOW => setup.descriptors = low(setup.descriptors),
            mmio::QUEUE_DESC_HIGH => setup.descriptors = high(setup.descriptors),
            mmio::QUEUE_DRIVER_LOW => setup.driver = low(setup.driver),
            mmio::QUEUE_DRIVER_HIGH => setup.driver = high(setup.driver),
            mmio::QUEUE_DEVICE_LOW => setup.device = low(setup.device),
            mmio::QUEUE_DEVICE_HIGH => setup.device = high(setup.device),
            _ => return false,
        }
        true
    }

    fn set_ready(&mut self, there: usize, value: u32) {
        let Some(setup) = self.chosen(there) else { return };
        match (value, setup.queue) {
            (0, _) => setup.queue = None,
            (_, None) => {
                let Setup { size, descriptors, driver, device, .. } = *setup;
                setup.queue = Queue::new(size, descriptors, driver, device);
            }
            _ => {}
        }
    }
}

/// What a write asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Nothing more.
    Nothing,
    /// There are new buffers in the queue of this number.
    Notify(usize),
    /// InterruptStatus has changed.
    Acknowledge,
    /// The driver has set all up.
    Started,
    /// The device is to forget everything: [`Registers::reset`], when it uses no memory any more.
    Reset,
}

impl Registers {
    /// A device that was just reset.
    #[must_use]
    pub fn new(identity: Identity) -> Self {
        let queues = alloc::vec![Setup::default(); identity.most_queues()].into();
        let driven = Driven { queues, ..Driven::default() };
        let there = identity.queues_with(0);
        Self { identity, driven, there }
    }

    /// The register at `offset`; `None` if there is none that can be read.
    #[must_use]
    pub fn read(&self, offset: u64) -> Option<u32> {
        let driven = &self.driven;
        let chosen = driven.queues[..self.there].get(driven.selected as usize);
        Some(match offset {
            mmio::MAGIC_VALUE => mmio::MAGIC,
            mmio::VERSION => mmio::VERSION_2,
            mmio::DEVICE_ID => self.identity.device,
            mmio::VENDOR_ID => VENDOR,
            mmio::DEVICE_FEATURES => match driven.device_features_high {
                0 => self.identity.features as u32,
                1 => (self.identity.features >> 32) as u32,
                _ => 0,
            },
            mmio::QUEUE_NUM_MAX => chosen.map_or(0, |_| QUEUE_MOST),
            mmio::QUEUE_READY => chosen.is_some_and(|setup| setup.queue.is_some()).into(),
            mmio::INTERRUPT_STATUS => driven.interrupt,
            mmio::STATUS => driven.status,
            mmio::CONFIG_GENERATION => 0,
            mmio::CONFIG.. if offset.is_multiple_of(4) => {
                let word = usize::try_from((offset - mmio::CONFIG) / 4).ok()?;
                *self.identity.config.get(word)?
            }
            _ => return None,
        })
    }

    /// Writes the register at `offset`; `None` if there is none that can be written.
    pub fn write(&mut self, offset: u64, value: u32) -> Option<Asked> {
        let there = self.there;
        let driven = &mut self.driven;
        match offset {
            mmio::DEVICE_FEATURES_SEL => driven.device_features_high = value,
            mmio::DRIVER_FEATURES_SEL => driven.driver_features_high = value,
            mmio::DRIVER_FEATURES => {
                // Once FEATURES_OK is set they are settled.
                if driven.status & status::FEATURES_OK == 0 {
                    match driven.driver_features_high {
                        0 => driven.features = driven.features & !0 << 32 | u64::from(value),
                        1 => {
                            driven.features =
                                driven.features & u64::from(u32::MAX) | u64::from(value) << 32;
                        }
                        // There are no such features: to accept one is an error.
                        _ if value != 0 => driven.features |= 1 << 63,
                        _ => {}
                    }
                    self.there = self.identity.queues_with(driven.features);
                }
            }
            mmio::QUEUE_SEL => driven.selected = value,
            mmio::QUEUE_READY => driven.set_ready(there, value),
            mmio::QUEUE_NOTIFY => {
                let queue = Some(value as usize).filter(|&queue| queue < there);
                return queue.map(Asked::Notify);
            }
            mmio::INTERRUPT_ACK => {
                driven.interrupt &= !value;
                return Some(Asked::Acknowledge);
            }
            mmio::STATUS if value == 0 => return Some(Asked::Reset),
            mmio::STATUS => {
                let before = self.is_running();
                self.set_status(value);
                if self.is_running() && !before {
                    return Some(Asked::Started);
                }
            }
            _ if driven.set_part(there, offset, value) => {}
            _ => return None,
        }
        Some(Asked::Nothing)
    }

    /// The driver sets bits one after another; only a reset clears any.
    fn set_status(&mut self, value: u32) {
        let driven = &mut self.driven;
        let mut bits = value & 0xff & !status::DEVICE_NEEDS_RESET;
        let offered = driven.features & !self.identity.features == 0;
        if !offered || driven.features & VERSION_1 == 0 {
            bits &= !status::FEATURES_OK;
        }
        if (driven.status | bits) & status::FEATURES_OK == 0 {
            bits &= !status::DRIVER_OK;
        }
        driven.status |= bits;
    }

    /// True if the driver has set all up and nothing has gone wrong.
    #[must_use]
    pub fn is_running(&self) -> bool {
        let state = self.driven.status & (status::DRIVER_OK | status::DEVICE_NEEDS_RESET);
        state == status::DRIVER_OK
    }

    /// Queue `number`, if it is to be used.
    pub fn queue(&mut self, number: usize) -> Option<&mut Queue> {
        let running = self.is_running() && number < self.there;
        self.driven.queues.get_mut(number)?.queue.as_mut().filter(|_| running)
    }

    /// The features that the driver has accepted.
    #[must_use]
    pub const fn accepted(&self) -> u64 {
        self.driven.features
    }

    /// Adds a reason to interrupt.
    pub fn interrupt(&mut self, bits: u32) {
        self.driven.interrupt |= bits;
    }

    /// True if the driver has not acknowledged all reasons to interrupt.
    #[must_use]
    pub fn is_interrupting(&self) -> bool {
        self.driven.interrupt != 0
    }

    /// The device cannot go on: it does nothing until it is reset.
    pub fn stop(&mut self) {
        self.driven.status |= status::DEVICE_NEEDS_RESET;
        self.interrupt(interrupt::CONFIG);
    }

    /// Forgets all that the driver has set.
    pub fn reset(&mut self) {
        let mut queues = core::mem::take(&mut self.driven.queues);
        queues.fill(Setup::default());
        self.driven = Driven { queues, ..Driven::default() };
        self.there = self.identity.queues_with(0);
    }
}

/// What an empty slot reads.
#[must_use]
pub const fn read_empty(offset: u64) -> Option<u32> {
    match offset {
        mmio::MAGIC_VALUE => Some(mmio::MAGIC),
        mmio::VERSION => Some(mmio::VERSION_2),
        mmio::DEVICE_ID => Some(0),
        mmio::VENDOR_ID => Some(VENDOR),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
