//! The networks: which cards are on each, and whether it has a way out.
//! May: guest-memory. Context: boot; run-loop, irq-off. Input: frames that guests and the network send.

use super::{Mac, Target, counts::Lost, frame::Frame, segment::Version, source, target};
use crate::{
    abi_flaw::{Flaw, planted},
    dev::{
        host::{self, Uplink},
        virtio::card,
    },
    log,
    vm::Vm,
};
use alloc::{
    string::String,
    sync::{Arc, Weak},
    vec::Vec,
};
use pv_abi::bundle::{self, Uplink as Which};
use spin::{Once, RwLock};

static NETWORKS: Once<Vec<Network>> = Once::new();

/// A network.
#[derive(Debug)]
pub struct Network {
    name: String,
    uplink: Option<&'static Uplink>,
    seats: RwLock<Vec<Seat>>,
}

/// A card's place.
#[derive(Debug)]
struct Seat {
    mac: Mac,
    vm: Weak<Vm>,
    slot: usize,
}

/// Makes the networks. One whose uplink the machine lacks is not made, and the log says so.
pub fn start(wanted: &[bundle::Network]) {
    let named: Vec<_> = wanted.iter().filter_map(|network| network.uplink).collect();
    NETWORKS.call_once(|| wanted.iter().filter_map(|one| Network::new(one, &named)).collect());
}

/// The network of this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Network> {
    NETWORKS.get()?.iter().find(|network| network.name == name)
}

/// The network that goes out by `uplink`.
fn behind(uplink: &Uplink) -> Option<&'static Network> {
    let mine = |network: &&Network| network.uplink.is_some_and(|own| core::ptr::eq(own, uplink));
    NETWORKS.get()?.iter().find(mine)
}

/// True if the card that `frame`, which has come by `uplink`, is for takes long TCP packets of `version`.
#[must_use]
pub fn takes_long(uplink: &Uplink, frame: &[u8], version: Version) -> bool {
    let Target::One(mac) = target(frame) else { return false };
    let seat = behind(uplink).and_then(|network| network.seat(mac));
    let vm = seat.and_then(|(vm, slot)| Some((vm.upgrade()?, slot)));
    vm.is_some_and(|(vm, slot)| card::takes_long(&vm, slot, version))
}

/// A frame has come by `uplink`.
pub fn arrived(uplink: &Uplink, frame: &mut Frame<'_>) {
    if let Some(network) = behind(uplink) {
        // Nobody outside sends by the address of a card here.
        let known = network.seat(source(frame.bytes)).is_some();
        let lost = known || network.send(None, frame).is_err();
        if lost {
            uplink.counts.lost(Lost::Nobody);
        }
    }
}

impl Network {
    /// `named` are the uplinks of all networks.
    fn new(wanted: &bundle::Network, named: &[Which]) -> Option<Self> {
        let is_free = |uplink: &Uplink| !named.contains(&Which::Address(uplink.mac()));
        let uplink = match wanted.uplink {
            None => None,
            Some(Which::Address(mac)) => host::uplink(|uplink| uplink.mac() == mac),
            Some(Which::First) => host::uplink(is_free),
        };
        if uplink.is_none() && wanted.uplink.is_some() {
            log!("network {}: the machine lacks its card", wanted.name);
            return None;
        }
        Some(Self { name: wanted.name.clone(), uplink, seats: RwLock::new(Vec::new()) })
    }

    /// The address of the card by which it goes out.
    #[must_use]
    pub fn uplink_mac(&self) -> Option<Mac> {
        Some(self.uplink?.mac())
    }

    /// Frames for `mac` go to the card in `slot` of `vm`.
    pub fn join(&self, mac: Mac, vm: &Arc<Vm>, slot: usize) {
        self.leave(mac);
        self.seats.write().push(Seat { mac, vm: Arc::downgrade(vm), slot });
    }

    /// Frames for `mac` go to no card here.
    pub fn leave(&self, mac: Mac) {
        self.seats.write().retain(|seat| seat.mac != mac);
    }

    fn seat(&self, mac: Mac) -> Option<(Weak<Vm>, usize)> {
        let seats = self.seats.read();
        seats.iter().find(|seat| seat.mac == mac).map(|seat| (seat.vm.clone(), seat.slot))
    }

    /// Sends a frame of the card with address `from`, or of the uplink's, to whom it is for.
    ///
    /// # Errors
    /// [`Lost`], if it is not the receiver who has lost it.
    pub fn send(&self, from: Option<Mac>, frame: &mut Frame<'_>) -> Result<(), Lost> {
        let target = match target(frame.bytes) {
            Target::One(_) if planted(Flaw::FramesToAll) => Target::Everyone,
            target => target,
        };
        match target {
            Target::One(mac) if from == Some(mac) => Err(Lost::Nobody),
            Target::One(mac) => match self.seat(mac) {
                Some((vm, slot)) => {
                    let vm = vm.upgrade().ok_or(Lost::Nobody)?;
                    card::deliver(&vm, slot, frame);
                    Ok(())
                }
                None => self.send_out(from, frame).ok_or(Lost::Nobody),
            },
            Target::Everyone => {
                for seat in self.seats.read().iter().filter(|seat| Some(seat.mac) != from) {
                    if let Some(vm) = seat.vm.upgrade() {
                        card::deliver(&vm, seat.slot, frame);
                    }
                }
                // That there is no way out is no loss.
                let _ = self.send_out(from, frame);
                Ok(())
            }
        }
    }

    /// What was sent out goes on its way.
    pub fn sent(&self) {
        if let Some(uplink) = self.uplink {
            uplink.tell();
        }
    }

    /// Sends it out, unless it has come from there. It may wait until [`Self::sent`].
    fn send_out(&self, from: Option<Mac>, frame: &Frame<'_>) -> Option<()> {
        from?;
        self.uplink?.send(frame);
        Some(())
    }
}
