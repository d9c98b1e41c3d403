//! Reads and writes guest memory on the guest's behalf.
//! May: guest-memory. Context: run-loop. Input: guest-controlled addresses.

use super::{Vcpu, state::Mode};
use crate::{
    abi_flaw::{Flaw, planted},
    hw::physmap,
    memory::paging::bits::{ADDRESS, P, PS, U},
    vm::{Vm, owner::Pin},
};
use core::sync::atomic::Ordering::{Acquire, Relaxed};
use pv_abi::addr::{Gfn, Gpa, Gva, Hpa};
use shadow_mmu::{Access, GuestMemory};

/// A guest-virtual access that the guest's tables forbid: a #PF to deliver.
#[derive(Clone, Copy, Debug)]
pub struct GuestFault {
    /// Faulting address.
    pub gva: Gva,
    /// Error code.
    pub error: u64,
}

impl Vcpu {
    /// Reads instruction bytes at `gva` into `out`; returns how many could be read, at least one.
    ///
    /// # Errors
    /// The fault, if not even the first byte can be fetched.
    pub(super) fn fetch(&self, gva: Gva, out: &mut [u8]) -> Result<usize, GuestFault> {
        let access = self.as_guest(Access::FETCH);
        let mut done = 0;
        while done < out.len() {
            let at = gva.offset(done as u64);
            // The CPU has just fetched from there, so the shadow tables hold it: that is quicker
            // than the guest's, and knows the VM window too.
            let hpa = match self
                .shadow_translate(at)
                .map_or_else(|| self.translate(at, access), |hpa| Ok(Some(hpa)))
            {
                Ok(Some(hpa)) => hpa,
                Ok(None) | Err(_) if done > 0 => break,
                Ok(None) => return Err(GuestFault { gva: at, error: access.bits() }),
                Err(error) => return Err(GuestFault { gva: at, error }),
            };
            let room = (4096 - at.page_offset()) as usize;
            let piece = room.min(out.len() - done);
            let offset = at.page_offset() as usize;
            physmap::copy_from_frame(hpa.page(), offset, &mut out[done..done + piece]);
            done += piece;
        }
        Ok(done)
    }

    /// The first two bytes of the instruction at `gva`; the second is zero if it cannot be read.
    /// Takes one load unless they lie in two words, or the shadow tables do not map them.
    ///
    /// # Errors
    /// As for [`Vcpu::fetch`].
    #[inline]
    pub(super) fn fetch_two(&self, gva: Gva) -> Result<[u8; 2], GuestFault> {
        let offset = gva.page_offset() as usize;
        if offset % 8 != 7
            && let Some(hpa) = self.shadow_translate(gva)
        {
            let word = physmap::frame(hpa.page())[offset / 8].load(Relaxed) >> (offset % 8 * 8);
            return Ok([word as u8, (word >> 8) as u8]);
        }
        let mut bytes = [0; 2];
        self.fetch(gva, &mut bytes)?;
        Ok(bytes)
    }

    /// Where the loaded shadow root maps `gva` for the guest, if it does.
    #[inline]
    fn shadow_translate(&self, gva: Gva) -> Option<Hpa> {
        let (smod, umod) = self.vm.mmu.root_addresses(self.mmu.roots()?);
        let root = if self.mode == Mode::User { umod } else { smod };
        let step = |table: Hpa, level: u8| {
            let entry = physmap::frame(table)[gva.index(level)].load(Acquire);
            (entry & (P | U) == P | U).then_some(entry)
        };
        let large = |entry: u64, level: u8| {
            let within = (1 << (12 + 9 * (u32::from(level) - 1))) - 1;
            Hpa(entry & ADDRESS & !within | gva.0 & within)
        };
        let entry = step(root, 4)?;
        let entry = step(Hpa(entry & ADDRESS), 3)?;
        if entry & PS != 0 {
            return Some(large(entry, 3));
        }
        let entry = step(Hpa(entry & ADDRESS), 2)?;
        if entry & PS != 0 {
            return Some(large(entry, 2));
        }
        step(Hpa(entry & ADDRESS), 1).map(|entry| large(entry, 1))
    }

    /// Where `gva` lies in L1's memory for `access`; `None` if the guest maps no RAM there.
    ///
    /// # Errors
    /// The error code of the #PF if the guest's tables forbid the access.
    pub(super) fn translate(&self, gva: Gva, access: Access) -> Result<Option<Hpa>, u64> {
        let gpa = self.vm.mmu.translate(&self.mmu, gva, access)?;
        Ok(self.vm.env().ram.host_frame(gpa.gfn()).map(|hpa| hpa.offset(gpa.page_offset())))
    }

    /// Reads `out.len()` bytes at `gva` as the guest's current mode would.
    ///
    /// # Errors
    /// The fault to deliver. Where no RAM is, the bytes read as ones.
    pub(super) fn read(&self, gva: Gva, out: &mut [u8]) -> Result<(), GuestFault> {
        let access = self.as_guest(Access::READ);
        let mut done = 0;
        while done < out.len() {
            let at = gva.offset(done as u64);
            let hpa = self.translate(at, access).map_err(|error| GuestFault { gva: at, error })?;
            let piece = ((4096 - at.page_offset()) as usize).min(out.len() - done);
            let part = &mut out[done..done + piece];
            match hpa {
                Some(hpa) => physmap::copy_from_frame(hpa.page(), at.page_offset() as usize, part),
                None => part.fill(0xff),
            }
            done += piece;
        }
        Ok(())
    }
}

impl Vm {
    /// Copies guest-physical memory out for a device, page by page; false where there is no RAM, or
    /// none for devices.
    pub fn device_read(&self, gpa: Gpa, out: &mut [u8]) -> bool {
        let pins = self.pins(gpa, out.len());
        if pins.is_none() && !planted(Flaw::PrivateIgnored) {
            return false;
        }
        let copied = self.pieces(gpa, out.len(), |hpa, offset, range| {
            physmap::copy_from_frame(hpa, offset, &mut out[range]);
        });
        // Only now may the pages change hands.
        drop(pins);
        copied
    }

    /// Copies into guest-physical memory for a device; false where there is no RAM, or none for
    /// devices.
    pub fn device_write(&self, gpa: Gpa, data: &[u8]) -> bool {
        self.pins(gpa, data.len()).is_some_and(|_pins| self.write_physical(gpa, data))
    }

    /// Keeps the pages of a transfer shared: both, for none is longer than a page.
    fn pins(&self, gpa: Gpa, len: usize) -> Option<[Option<Pin<'_>>; 2]> {
        debug_assert!(len <= 4096);
        let Some(rest) = len.checked_sub(1) else { return Some([None, None]) };
        let last = Gpa(gpa.0.checked_add(rest as u64)?).gfn();
        let first = self.owners.pin(gpa.gfn())?;
        let second = if last == gpa.gfn() { None } else { Some(self.owners.pin(last)?) };
        Some([Some(first), second])
    }

    /// Fills a page with zeros.
    pub fn zero_frame(&self, gfn: Gfn) {
        if let Some(hpa) = self.env().ram.host_frame(gfn) {
            physmap::zero(hpa, 4096);
            self.wrote(gfn);
        }
    }

    /// Copies into guest-physical memory; false where there is no RAM.
    pub fn write_physical(&self, gpa: Gpa, data: &[u8]) -> bool {
        self.pieces(gpa, data.len(), |hpa, offset, range| {
            physmap::copy_to_frame(hpa, offset, &data[range]);
            self.wrote(self.env().guest_frame(hpa));
        })
    }

    fn pieces(
        &self,
        gpa: Gpa,
        len: usize,
        mut visit: impl FnMut(Hpa, usize, core::ops::Range<usize>),
    ) -> bool {
        let mut done = 0;
        for run in self.env().ram.runs(gpa.0, len as u64) {
            let Some(run) = run else { return false };
            let piece = (run.end - run.start) as usize;
            let hpa = Hpa(run.start);
            visit(hpa.page(), hpa.page_offset() as usize, done..done + piece);
            done += piece;
        }
        done == len
    }
}
