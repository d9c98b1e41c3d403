//! Lets devices reach a VM's memory, as far as it is theirs to use.
//! May: guest-memory. Context: run-loop, irq-off. Input: guest-controlled addresses.

use super::{DeviceMemory, Page};
use crate::{
    hw::physmap::{self, Frame},
    vm::{Vm, owner::Pin},
};
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use pv_abi::addr::{Gfn, Gpa};

/// A page of a VM, pinned.
#[derive(Debug)]
pub struct Held<'a> {
    frame: &'static Frame,
    _pin: Pin<'a>,
}

impl Page for Held<'_> {
    fn read(&self, offset: usize) -> u128 {
        let [low, high] = [0, 1].map(|word| self.frame[offset / 8 + word].load(Relaxed));
        u128::from(high) << 64 | u128::from(low)
    }
}

impl DeviceMemory for Vm {
    type Page<'a> = Held<'a>;

    fn hold(&self, number: u64) -> Option<Held<'_>> {
        let pin = self.owners.pin(Gfn(number))?;
        let frame = physmap::frame(self.env().ram.host_frame(Gfn(number))?);
        Some(Held { frame, _pin: pin })
    }

    fn read(&self, gpa: u64, out: &mut [u8]) -> bool {
        self.device_read(Gpa(gpa), out)
    }

    fn write(&self, gpa: u64, data: &[u8]) -> bool {
        self.device_write(Gpa(gpa), data)
    }

    fn load16(&self, gpa: u64) -> Option<u16> {
        let gfn = Gfn(gpa >> 12);
        let _pin = self.owners.pin(gfn)?;
        let frame = physmap::frame(self.env().ram.host_frame(gfn)?);
        let word = frame[(gpa & 0xfff) as usize / 8].load(Acquire);
        Some((word >> (gpa % 8 * 8)) as u16)
    }

    fn store16(&self, gpa: u64, value: u16) -> bool {
        let gfn = Gfn(gpa >> 12);
        let Some(_pin) = self.owners.pin(gfn) else { return false };
        let Some(hpa) = self.env().ram.host_frame(gfn) else { return false };
        let word = &physmap::frame(hpa)[(gpa & 0xfff) as usize / 8];
        let shift = gpa % 8 * 8;
        let put = |old: u64| Some(old & !(0xffff << shift) | u64::from(value) << shift);
        let stored = word.fetch_update(AcqRel, Acquire, put).is_ok();
        self.wrote(gfn);
        stored
    }
}
