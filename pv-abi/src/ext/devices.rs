//! Where a guest's virtio devices are.
//!
//! Each slot holds the register block of a virtio-mmio device, version 2 (virtio 1.2, 4.2.2), or an
//! empty one: its DeviceID is 0. Any guest reaches them by [`call::DEVICE_READ`] and its kin, a native
//! one by 32-bit accesses to memory too.
//!
//! [`call::DEVICE_READ`]: super::call::DEVICE_READ

/// Slots of a VM.
pub const SLOTS: usize = 16;
/// Guest-physical address of slot 0's block in a native guest.
pub const BASE: u64 = 0xfeb0_0000;
/// Bytes from one block to the next.
pub const STRIDE: u64 = 0x1000;
/// Line of the I/O APIC that slot 0 has in a native guest; slot n has the n-th after it.
pub const LINE: usize = 8;
/// Queues that a disk has at most: one for each vCPU up to this number.
pub const DISK_QUEUES_MOST: usize = 4;
/// Pairs of queues that a network card has at most: one for each vCPU up to this number.
pub const CARD_PAIRS_MOST: usize = 4;
/// Entries that a queue has at most.
pub const QUEUE_MOST: u32 = 256;
