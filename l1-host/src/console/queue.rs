//! A guest's end of its console: input waits in a queue, output has an address.
//! May: nothing. Context: irq-off. Input: guest-controlled vector, user's keystrokes.

use super::GuestId;
use arrayvec::ArrayVec;
use core::sync::atomic::{AtomicBool, AtomicU8, Ordering::Relaxed};
use spin::{Mutex, Once};

/// Bytes of input that may wait; more are dropped, as a terminal drops them.
const DEPTH: usize = 4096;

/// One console.
#[derive(Debug, Default)]
pub struct Console {
    input: Mutex<ArrayVec<u8, DEPTH>>,
    arrived: AtomicBool,
    /// Interrupt vector that tells the guest of input; 0 for none.
    pub vector: AtomicU8,
    /// Whose it is, once the guest is known to the multiplexer.
    guest: Once<GuestId>,
}

impl Console {
    /// Whose it is; `None` before the guest was added to the multiplexer.
    #[must_use]
    pub fn guest(&self) -> Option<GuestId> {
        self.guest.get().copied()
    }

    pub(super) fn belong_to(&self, guest: GuestId) {
        self.guest.call_once(|| guest);
    }

    /// Queues input.
    pub fn receive(&self, bytes: &[u8]) {
        let mut input = self.input.lock();
        let room = DEPTH - input.len();
        let fits = &bytes[..bytes.len().min(room)];
        input.try_extend_from_slice(fits).expect("cut to the room there is");
        self.arrived.store(true, Relaxed);
    }

    /// Takes up to `buffer.len()` bytes off the queue; returns how many.
    pub fn take(&self, buffer: &mut [u8]) -> usize {
        let mut input = self.input.lock();
        let count = buffer.len().min(input.len());
        buffer[..count].copy_from_slice(&input[..count]);
        input.drain(..count);
        count
    }

    /// The vector to raise if input has arrived since the last call.
    pub fn poll(&self) -> Option<u8> {
        let vector = self.vector.load(Relaxed);
        (vector != 0 && self.arrived.swap(false, Relaxed)).then_some(vector)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_is_queued_in_order_and_announced_once() {
        let console = Console::default();
        console.receive(b"ab");
        assert_eq!(console.poll(), None, "nobody wants to know yet");
        console.vector.store(0x50, Relaxed);
        assert_eq!(console.poll(), Some(0x50));
        assert_eq!(console.poll(), None);
        console.receive(b"c");
        let mut buffer = [0; 2];
        assert_eq!((console.take(&mut buffer), &buffer), (2, b"ab"));
        assert_eq!((console.take(&mut buffer), buffer[0]), (1, b'c'));
    }

    #[test]
    fn a_flood_is_cut() {
        let console = Console::default();
        console.receive(&[7; DEPTH + 10]);
        assert_eq!(console.take(&mut [0; 2 * DEPTH]), DEPTH);
    }
}
