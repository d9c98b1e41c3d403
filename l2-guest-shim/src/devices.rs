//! The guest's devices of all kinds, as its store and its event channels reach them.
//! May: hypercalls. Context: shim, IF = 0. Input: guest-controlled, passed on.

use crate::{
    blk,
    entry::log,
    evtchn::Binding,
    guest::facts,
    hw::area::Area,
    net,
    store::{
        Error, Store,
        path::{DOMAIN, HOME},
        short,
    },
    virtio::{device::kind, slot::Slot},
};
use arrayvec::ArrayVec;
use pv_abi::virtio;

/// Looks for devices before the kernel runs, and puts them into the store; true if there are any.
pub fn attach(store: &mut Store) -> bool {
    let mut found = false;
    for slot in Slot::all() {
        found |= match kind(&slot) {
            Some(virtio::block::DEVICE) => blk::attach(slot, store),
            Some(virtio::net::DEVICE) => net::attach(slot, store),
            Some(other) => {
                log(format_args!("slot {} has a device of unknown type {other}", slot.number()));
                false
            }
            None => false,
        };
    }
    found && describe_domain(store).is_ok()
}

/// What kernels look for in the store beside devices.
fn describe_domain(store: &mut Store) -> Result<(), Error> {
    let mut place = |name: &[u8], value: core::fmt::Arguments<'_>| {
        let mut path = ArrayVec::<u8, 64>::new();
        path.extend(HOME.iter().chain(name).copied());
        store.place(&path, &short(value))
    };
    place(b"/domid", format_args!("{DOMAIN}"))?;
    for vcpu in 0..facts().vcpus {
        let name = short(format_args!("/cpu/{vcpu}/availability"));
        place(&name, format_args!("online"))?;
    }
    Ok(())
}

/// The kernel has changed something in the store.
pub fn store_changed(store: &mut Store, area: Area) {
    blk::store_changed(store, area);
    net::store_changed(store, area);
}

/// `port`, bound to `binding`, is told to vCPU `vcpu` from now on: so is what the device interrupts.
pub fn follow(binding: Binding, port: u32, vcpu: u32, area: Area) {
    match binding {
        Binding::Disk(disk, queue) => blk::follow(disk, queue, vcpu, area),
        Binding::Card(card, pair) => net::follow(card, pair, port, vcpu, area),
        _ => {}
    }
}
