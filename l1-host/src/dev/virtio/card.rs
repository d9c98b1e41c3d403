//! A guest's network card: its frames on the way to others, and others' to it.
//! May: guest-memory, alloc. Context: run-loop, irq-off. Input: guest-controlled chains and frames.
//!
//! Frames are copied to L1's own memory before they are looked at: the guest could change them meanwhile.
//! Who sends holds the lock of its card's sending side, and of fronts only one for a moment: its own to
//! take a chain and to give it back, a receiver's to put a frame there.

use super::{
    front::Front,
    net::{self, Address, Checksums, Header, SCRATCH, Spread},
    slots::{Device, Function},
};
use crate::{
    boot,
    dev::{
        Rest,
        switch::{
            ETHERNET,
            counts::{Counts, Lost},
            frame::Frame,
            guard::Guard,
            network::{self, Network},
            rate::Bucket,
        },
    },
    hw::cpu,
    vm::Vm,
};
use alloc::{boxed::Box, sync::Arc};
use pv_abi::{
    bundle,
    virtio::net::{
        HEADER, RECEIVE, TRANSMIT,
        feature::{CSUM, GUEST_CSUM, MRG_RXBUF},
    },
};
use spin::Mutex;

/// Frames that are sent at once, one after another: a guest that goes on sending goes on when its vCPU
/// has its turn.
const AT_ONCE: usize = 256;
/// Bytes that a frame has beside its packet: Ethernet's header, and a tag.
const AROUND: usize = ETHERNET + 4;

/// A card.
#[derive(Debug)]
pub struct Card {
    slot: usize,
    address: Address,
    guard: Guard,
    network: &'static Network,
    sending: Mutex<Sending>,
    /// What it may be sent.
    receiving: Mutex<Option<Bucket>>,
    /// What came of its frames.
    pub counts: Counts,
}

#[derive(Debug)]
struct Sending {
    /// The frame that is being sent, its header first.
    scratch: Box<[u8]>,
    bucket: Option<Bucket>,
}

impl Card {
    /// The card that the guest is to have, and its front; `None` if there is no such network.
    #[must_use]
    pub fn new(wanted: &bundle::Card) -> Option<(Self, Front)> {
        let network = network::find(&wanted.network)?;
        let address = Address { mac: wanted.mac, mtu: wanted.mtu };
        let slot = usize::from(wanted.slot);
        let front = Front::new(slot, address.identity());
        let hz = boot::cpu(0).map_or(1, |cpu| cpu.clock.tsc_hz);
        let bucket = || (wanted.rate > 0).then(|| Bucket::new(wanted.rate, hz, cpu::tsc()));
        let card = Self {
            slot,
            address,
            guard: Guard { mac: wanted.mac, ip: wanted.ip },
            network,
            sending: Mutex::new(Sending {
                scratch: alloc::vec![0; SCRATCH].into(),
                bucket: bucket(),
            }),
            receiving: Mutex::new(bucket()),
            counts: Counts::default(),
        };
        Some((card, front))
    }

    /// From here on, frames for it come to `vm`.
    pub fn plug_in(&self, vm: &Arc<Vm>) {
        self.network.join(self.address.mac, vm, self.slot);
    }

    /// None comes any more.
    pub fn unplug(&self) {
        self.network.leave(self.address.mac);
    }

    /// The driver is ready: it need not tell of buffers for frames to come, which are looked for when one
    /// has come.
    pub fn started(&self, vm: &Vm, front: &mut Front) {
        if let Some(queue) = front.queue(RECEIVE)
            && let Err(broken) = queue.silence(vm)
        {
            front.stop(vm, &broken);
        }
    }

    /// Sends what the driver has made available.
    pub fn send(&self, vm: &Arc<Vm>, front: &Mutex<Front>) -> Rest {
        let mut sending = self.sending.lock();
        for _ in 0..AT_ONCE {
            let (head, taken, checksums) = {
                let mut front = front.lock();
                let partial = front.registers.has_accepted(CSUM);
                let checksums =
                    if partial { Checksums::MayBePartial } else { Checksums::MustBeComplete };
                let Some(queue) = front.queue(TRANSMIT) else { return Rest::Nothing };
                let chain = match queue.pop(&**vm) {
                    Ok(Some(chain)) => chain,
                    Ok(None) => return Rest::Nothing,
                    Err(broken) => {
                        front.stop(vm, &broken);
                        return Rest::Nothing;
                    }
                };
                let taken = match net::take(&**vm, &chain, &mut sending.scratch) {
                    Ok(taken) => taken,
                    Err(broken) => {
                        front.stop(vm, &broken);
                        return Rest::Nothing;
                    }
                };
                front.begin();
                (chain.head, taken, checksums)
            };
            if let Err(why) = self.send_one(&mut sending, taken, checksums) {
                self.counts.lost(why);
            }
            let mut front = front.lock();
            front.end();
            if let Some(queue) = front.queue(TRANSMIT) {
                let used = queue.push_used(&**vm, head, 0);
                front.used(vm, TRANSMIT, used);
            }
        }
        Rest::More
    }

    fn send_one(
        &self,
        sending: &mut Sending,
        taken: Option<usize>,
        checksums: Checksums,
    ) -> Result<(), Lost> {
        let bytes = taken.and_then(|len| sending.scratch.get_mut(..len)).ok_or(Lost::Malformed)?;
        let (header, bytes) = bytes.split_first_chunk_mut::<HEADER>().ok_or(Lost::Malformed)?;
        let offload = net::parse(header, checksums).ok_or(Lost::Malformed)?;
        let mut frame = Frame::new(bytes, offload).ok_or(Lost::Malformed)?;
        let len = frame.bytes.len();
        if len > self.longest() {
            return Err(Lost::Malformed);
        }
        if !self.guard.allows(frame.bytes) {
            return Err(Lost::Spoofed);
        }
        if !passes(&mut sending.bucket, len) {
            return Err(Lost::Rate);
        }
        self.counts.sent(len);
        self.network.send(Some(self.address.mac), &mut frame)
    }

    fn longest(&self) -> usize {
        usize::from(self.address.mtu) + AROUND
    }

    fn receive(&self, vm: &Vm, front: &Mutex<Front>, frame: &mut Frame<'_>) {
        match self.try_receive(vm, &mut front.lock(), frame) {
            Ok(()) => self.counts.received(frame.bytes.len()),
            Err(why) => self.counts.lost(why),
        }
    }

    fn try_receive(&self, vm: &Vm, front: &mut Front, frame: &mut Frame<'_>) -> Result<(), Lost> {
        if frame.bytes.len() > self.longest() {
            return Err(Lost::TooLong);
        }
        if !passes(&mut self.receiving.lock(), frame.bytes.len()) {
            return Err(Lost::ReceiveRate);
        }
        if !front.registers.has_accepted(GUEST_CSUM) {
            frame.complete_checksum();
        }
        let spread = match front.registers.has_accepted(MRG_RXBUF) {
            true => Spread::Chains,
            false => Spread::OneChain,
        };
        let header: Header = net::describe(&frame.offload);
        let queue = front.queue(RECEIVE).ok_or(Lost::NoBuffer)?;
        match net::put(vm, queue, spread, &header, frame.bytes) {
            Ok(put) => {
                front.used(vm, RECEIVE, Ok(()));
                put
            }
            Err(broken) => {
                front.stop(vm, &broken);
                Err(Lost::NoBuffer)
            }
        }
    }
}

/// Gives `frame` to the card in `slot` of `vm`.
pub fn deliver(vm: &Vm, slot: usize, frame: &mut Frame<'_>) {
    if let Some(Device { front, function: Function::Card(card), .. }) =
        vm.devices.device(slot as u64)
    {
        card.receive(vm, front, frame);
    }
}

fn passes(bucket: &mut Option<Bucket>, bytes: usize) -> bool {
    bucket.as_mut().is_none_or(|bucket| bucket.take(bytes, cpu::tsc()))
}
