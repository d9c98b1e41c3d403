//! Virtio devices of guests that are no disks and no network cards: what the user asks for.

use crate::{
    kernel::Kernel,
    plan::{GuestPlan, Plan},
    preflight::GuestFiles,
};
use anyhow::{Result, ensure};
use pv_abi::{
    bundle::{Backend, CIDS, Device, DeviceKind},
    ext::devices::SLOTS,
};
use std::{collections::HashSet, mem::discriminant, str::FromStr};

/// The value of `--device`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DevicePlan(pub DeviceKind);

impl FromStr for DevicePlan {
    type Err = String;

    /// `entropy`, `console`, or `vsock=` and an address.
    fn from_str(text: &str) -> Result<Self, String> {
        Ok(Self(match text.split_once('=') {
            None if text == "entropy" => DeviceKind::Entropy,
            None if text == "console" => DeviceKind::Console,
            Some(("vsock", cid)) => DeviceKind::Vsock { cid: parse_cid(cid)? },
            _ => return Err(format!("`{text}` is none of entropy, console, vsock=CID")),
        }))
    }
}

fn parse_cid(text: &str) -> Result<u32, String> {
    text.parse().ok().filter(|cid| CIDS.contains(cid)).ok_or_else(|| {
        let (first, last) = (CIDS.start(), CIDS.end());
        format!("`{text}` is no guest's address: write a number from {first} to {last}")
    })
}

/// Checks the devices of all guests, whose kernels are in `files`.
///
/// # Errors
/// The first thing found wrong and what to do about it.
pub fn check(plan: &Plan, files: &[GuestFiles]) -> Result<()> {
    let mut seen = HashSet::new();
    for (guest, files) in plan.guests.iter().zip(files) {
        let native = matches!(files.kernel, Kernel::Native(_));
        check_guest(guest, native, &mut seen).map_err(|why| plan.origin.about(guest, why))?;
    }
    Ok(())
}

fn check_guest(guest: &GuestPlan, native: bool, seen: &mut HashSet<u32>) -> Result<()> {
    if guest.devices.is_empty() {
        return Ok(());
    }
    ensure!(
        native,
        "`device` is for native kernels, and this is a stock one, which finds disks and network cards \
         only: leave it out"
    );
    ensure!(
        guest.backend != Backend::Assisted,
        "a guest that L0 runs has no such devices: give it backend auto or shadow"
    );
    ensure!(
        first_slot(guest) + guest.devices.len() <= SLOTS,
        "a guest has {SLOTS} devices at most, disks and network cards included: leave some out"
    );
    let kinds: HashSet<_> = guest.devices.iter().map(|device| discriminant(&device.0)).collect();
    ensure!(
        kinds.len() == guest.devices.len(),
        "a guest has one device of each kind: leave the others out"
    );
    for device in &guest.devices {
        if let DeviceKind::Vsock { cid } = device.0 {
            ensure!(
                seen.insert(cid),
                "address {cid} among sockets is that of another guest: choose another"
            );
        }
    }
    Ok(())
}

fn first_slot(guest: &GuestPlan) -> usize {
    guest.disks.len() + guest.nets.len()
}

/// The devices of a guest as L1 is told of them.
#[must_use]
pub fn describe(guest: &GuestPlan) -> Vec<Device> {
    let device = |(number, plan): (usize, &DevicePlan)| Device {
        // There are no more slots than fit.
        slot: u8::try_from(first_slot(guest) + number).unwrap_or(u8::MAX),
        kind: plan.0,
    };
    guest.devices.iter().enumerate().map(device).collect()
}

/// True if a guest is given random bytes: L1's machine is to have some.
#[must_use]
pub fn any_entropy(plan: &Plan) -> bool {
    let mut devices = plan.guests.iter().flat_map(|guest| &guest.devices);
    devices.any(|device| device.0 == DeviceKind::Entropy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named() {
        let parse = |text: &str| text.parse::<DevicePlan>().map(|plan| plan.0);
        assert_eq!(parse("entropy"), Ok(DeviceKind::Entropy));
        assert_eq!(parse("console"), Ok(DeviceKind::Console));
        assert_eq!(parse("vsock=3"), Ok(DeviceKind::Vsock { cid: 3 }));
        for wrong in ["", "rng", "vsock", "entropy=1", "vsock=", "vsock=2", "vsock=4294967295"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
