//! The devices of one kind that the kernel is shown, each with its place in the store.
//! May: nothing. Context: shim.

use super::Backend;
use pv_abi::ext::devices::SLOTS;
use spin::Mutex;

/// Devices by the order in which they were shown, from 0; there is a place for each that L1 may give.
#[derive(Debug)]
pub struct Shown<T>([Mutex<Option<(Backend, T)>>; SLOTS]);

impl<T> Shown<T> {
    /// None yet.
    #[must_use]
    pub const fn new() -> Self {
        Self([const { Mutex::new(None) }; SLOTS])
    }

    /// The first place that nobody has.
    #[must_use]
    pub fn free(&self) -> Option<u8> {
        self.0.iter().position(|place| place.lock().is_none()).map(|index| index as u8)
    }

    /// Shows a device at `index`, which is free.
    pub fn put(&self, index: u8, backend: Backend, device: T) {
        *self.0[usize::from(index)].lock() = Some((backend, device));
    }

    /// Does something with the device at `index`, if there is one.
    pub fn with(&self, index: u8, work: impl FnOnce(&mut T)) {
        if let Some(place) = self.0.get(usize::from(index))
            && let Some((_, device)) = &mut *place.lock()
        {
            work(device);
        }
    }

    /// Does something with each.
    pub fn each(&self, mut work: impl FnMut(&mut Backend, &mut T)) {
        for place in &self.0 {
            if let Some((backend, device)) = &mut *place.lock() {
                work(backend, device);
            }
        }
    }
}

impl<T> Default for Shown<T> {
    fn default() -> Self {
        Self::new()
    }
}
