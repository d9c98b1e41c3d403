//! What `virtio-drivers` needs of L1: memory for rings, and addresses.
//! May: unsafe, take-frame. Context: boot; run-loop. Input: trusted.
#![expect(unsafe_code, reason = "devices are told of raw memory")]

use super::transport::Doorbell;
use crate::{
    hw::{
        mmio,
        physmap::{self, DIRECT_MAP},
    },
    memory,
};
use alloc::string::String;
use bitflags::Flags;
use core::{
    fmt::Debug,
    ops::BitAnd,
    ptr::NonNull,
    sync::atomic::{Ordering::SeqCst, fence},
};
use pv_abi::{addr::Hpa, virtio::feature};
use virtio_drivers::{
    BufferDirection, Hal, PhysAddr,
    queue::VirtQueue,
    transport::{DeviceStatus, Transport},
};

/// L1 as the crate sees it.
#[derive(Debug)]
pub struct L1;

// SAFETY: 1. `dma_alloc` gives frames that the allocator has given to nobody else, zeroed, as pointers
// into the direct map, which covers all RAM for ever. 2. `mmio_phys_to_virt` gives addresses of registers
// that `hw::mmio` maps for this driver alone. 3. There is no IOMMU: a device's addresses are physical.
unsafe impl Hal for L1 {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        // The crate takes 0 for "no memory".
        let none = (0, NonNull::dangling());
        let Some(hpa) = memory::take_pages(pages as u64, 4096) else { return none };
        physmap::zero(hpa, (pages * 4096) as u64);
        match NonNull::new((DIRECT_MAP + hpa.0) as *mut u8) {
            Some(at) => (hpa.0, at),
            None => none,
        }
    }

    unsafe fn dma_dealloc(paddr: PhysAddr, _: NonNull<u8>, pages: usize) -> i32 {
        memory::give(paddr..paddr + (pages * 4096) as u64);
        0
    }

    unsafe fn mmio_phys_to_virt(paddr: PhysAddr, len: usize) -> NonNull<u8> {
        let at = mmio::mapped(paddr, len as u64).and_then(|at| NonNull::new(at as *mut u8));
        at.expect("`dev::host` maps all of a device's registers first")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        // All buffers are those of `Piece`: in the direct map.
        buffer.cast::<u8>().as_ptr() as u64 - DIRECT_MAP
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}

bitflags::bitflags! {
    /// What L1 agrees on with a device of which it needs nothing but what all have.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Plain: u64 {
        const VERSION_1 = feature::VERSION_1;
    }
}

/// `len` bytes of RAM at `hpa`, to be told to a device.
///
/// # Safety
/// The RAM lies in the direct map and stays allocated while the device may use it. The slice is given to
/// the queue only, which takes its address and neither reads nor writes it: the guest whose memory it may
/// be does both, at any time.
pub unsafe fn piece<'a>(hpa: Hpa, len: usize) -> &'a mut [u8] {
    // SAFETY: the caller's promise.
    unsafe { core::slice::from_raw_parts_mut((DIRECT_MAP + hpa.0) as *mut u8, len) }
}

/// Agrees with the device on those of `wanted` that it has.
///
/// # Errors
/// It is older than virtio 1, or refuses.
pub fn agree<F: Flags<Bits = u64> + BitAnd<Output = F> + Debug>(
    transport: &mut impl Transport,
    wanted: F,
) -> Result<F, String> {
    let features = transport.begin_init(wanted);
    let agreed = transport.get_status().contains(DeviceStatus::FEATURES_OK);
    if features.bits() & feature::VERSION_1 == 0 || !agreed {
        return Err("it does not speak virtio 1".into());
    }
    Ok(features)
}

/// Tells the device of what was added to its queue, if it wants to hear of that.
pub fn tell<const SIZE: usize>(queue: &VirtQueue<L1, SIZE>, doorbell: &Doorbell) {
    // What was added is out before the device's flag is looked at; the device does it the other way round.
    fence(SeqCst);
    if queue.should_notify() {
        doorbell.ring();
    }
}
