//! The registers of a slot's device, by calls to L1.
//! May: hypercalls. Context: shim.

use super::device::Registers;
use crate::hw::call;
use pv_abi::ext::devices::SLOTS;

/// A slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(u32);

impl Slot {
    /// All there are.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..SLOTS as u32).map(Self)
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0
    }

    /// Tells the device of new buffers in queue `queue`.
    pub fn doorbell(self, queue: usize) {
        call::doorbell(self.0, queue as u32);
    }

    /// Has the device interrupt vCPU `vcpu` with `vector`; false if L1 refused.
    pub fn interrupt_by(self, vector: u8, vcpu: u32) -> bool {
        call::device_vector(self.0, vector, vcpu)
    }

    /// The same for what is done in queue `queue` alone.
    pub fn queue_interrupt_by(self, queue: u8, vector: u8, vcpu: u32) -> bool {
        call::queue_vector(self.0, queue, vector, vcpu)
    }
}

impl Registers for Slot {
    fn read(&self, offset: u64) -> u32 {
        call::device_read(self.0, offset).unwrap_or(0)
    }

    fn write(&self, offset: u64, value: u32) {
        call::device_write(self.0, offset, value);
    }
}
