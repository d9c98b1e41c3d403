//! Chooses who runs a guest: L1 with shadow tables, or L0.
//! May: take-frame, alloc. Context: boot.

use crate::{
    assisted::{self, Machine, Refusal},
    log,
    vm::{
        Vm,
        build::{self, Context, Start},
    },
};
use alloc::{boxed::Box, sync::Arc};
use core::fmt;
use pv_abi::bundle::{Backend as Wanted, Guest};

/// A guest that is ready to run.
#[derive(Debug)]
pub enum Built {
    /// By L1; its first vCPU starts so.
    Shadow(Arc<Vm>, Start),
    /// By L0: the switcher has no part in it.
    Assisted(Box<Machine>),
}

/// Why a guest cannot be run.
#[derive(Debug)]
pub enum Error {
    /// Not by L1.
    Shadow(build::Error),
    /// Not by L0, which the user insists on.
    Assisted(Refusal),
    /// Nor by L0 while there are others.
    NotAlone,
    /// L0 has no devices for it.
    Devices,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shadow(error) => error.fmt(f),
            Self::Assisted(refusal) => refusal.fmt(f),
            Self::Devices => f.write_str(
                "L0 has no virtio devices for it: give it backend auto or shadow",
            ),
            Self::NotAlone => f.write_str(
                "L0 runs a guest that is alone: give it backend auto or shadow, or a machine of its own",
            ),
        }
    }
}

/// Builds `guest`, one of `guests`, for the backend that it wants, or for L0 if that will have it and L1
/// otherwise.
///
/// # Errors
/// [`Error`] says what is missing.
pub fn build(guest: &Guest, context: &Context<'_>, guests: usize) -> Result<Built, Error> {
    // L0 runs a guest for as long as that wants, and nothing else runs meanwhile.
    if guests > 1 && guest.backend == Wanted::Assisted {
        return Err(Error::NotAlone);
    }
    let devices = !(guest.disks.is_empty() && guest.cards.is_empty() && guest.devices.is_empty());
    if devices && guest.backend == Wanted::Assisted {
        return Err(Error::Devices);
    }
    if guests == 1 && guest.backend != Wanted::Shadow && !devices {
        match assisted::build(guest, context) {
            Ok(machine) => {
                log!("guest '{}' is run by L0", guest.name);
                return Ok(Built::Assisted(Box::new(machine)));
            }
            Err(refusal) if guest.backend == Wanted::Assisted => {
                return Err(Error::Assisted(refusal));
            }
            Err(Refusal::Absent) => {}
            Err(refusal) => log!("guest '{}' is run by L1, for {refusal}", guest.name),
        }
    }
    let (vm, start) = build::build(guest, context).map_err(Error::Shadow)?;
    Ok(Built::Shadow(vm, start))
}
