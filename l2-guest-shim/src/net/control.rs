//! The control queue of a card with several pairs of queues: says how many of them are used (virtio 1.2, 5.1.6.5.5).
//! May: nothing. Context: shim. Input: from L1, and guest-controlled, for its kernel can write everywhere.

use crate::{
    guest_memory::Memory,
    virtio::{
        device::Setup,
        queue::{self, Buffer, Use},
    },
};
use pv_abi::virtio::net::control::{MQ, OK, VQ_PAIRS_SET};

/// Entries of the queue.
const ENTRIES: usize = 4;
type Queue = queue::Queue<ENTRIES>;

/// Where the command and its answer are, behind the queue.
const COMMAND: u64 = Queue::SIZE;
const COMMAND_BYTES: usize = 4;
const ANSWER: u64 = COMMAND + COMMAND_BYTES as u64;
/// Bytes of queue, command and answer.
pub const SIZE: u64 = ANSWER + 1;

/// The queue.
#[derive(Debug)]
pub struct Control {
    base: u64,
    queue: Queue,
}

impl Control {
    /// The queue in the [`SIZE`] bytes at `base`.
    #[must_use]
    pub fn new(memory: &impl Memory, base: u64) -> Self {
        Self { base, queue: Queue::new(memory, base) }
    }

    /// The device's queue.
    #[must_use]
    pub const fn setup(&self) -> Setup {
        (ENTRIES, self.queue.parts())
    }

    /// Has the device use so many pairs; `None` if it does not want to. `doorbell` tells it of the command, which it has
    /// answered then.
    pub fn use_pairs(
        &mut self,
        memory: &impl Memory,
        pairs: u16,
        doorbell: impl FnOnce(),
    ) -> Option<()> {
        let [low, high] = pairs.to_le_bytes();
        let command: [u8; COMMAND_BYTES] = [MQ, VQ_PAIRS_SET, low, high];
        let (command_at, answer_at) = (self.base + COMMAND, self.base + ANSWER);
        memory.write(command_at, &command)?;
        memory.write(answer_at, &[!OK])?;
        let buffer = |gpa, len, usage| Buffer { gpa, len, usage };
        let buffers = [
            buffer(command_at, COMMAND_BYTES as u32, Use::Reads),
            buffer(answer_at, 1, Use::Writes),
        ];
        let head = self.queue.add(memory, &buffers)?;
        if self.queue.show(memory) {
            doorbell();
        }
        self.queue.done(memory).filter(|done| done.head == head)?;
        self.queue.release(head);
        let mut answer = [!OK];
        memory.read(answer_at, &mut answer)?;
        (answer == [OK]).then_some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{guest_memory::fake::Ram, virtio::fake::Served};
    use pv_abi::virtio::net::control::ERR;

    const BASE: u64 = 4096;

    /// What becomes of a command that a device answers so.
    fn said(answer: Option<u8>) -> (Option<()>, [u8; COMMAND_BYTES]) {
        let ram = Ram::new(2);
        let mut control = Control::new(&ram, BASE);
        let mut device = Served::new(control.setup());
        let mut command = [0; COMMAND_BYTES];
        let done = control.use_pairs(&ram, 3, || {
            let Some(answer) = answer else { return };
            let (head, chain) = device.take(&ram).expect("a command");
            let [(asked, COMMAND_BYTES, false), (told, 1, true)] = chain[..] else {
                panic!("{chain:?}")
            };
            ram.read(asked, &mut command).unwrap();
            ram.write(told, &[answer]).unwrap();
            device.put(&ram, head.into(), 1);
        });
        (done, command)
    }

    #[test]
    fn the_device_is_asked_and_answers() {
        assert_eq!(said(Some(OK)), (Some(()), [4, 0, 3, 0]));
        assert_eq!(said(Some(ERR)), (None, [4, 0, 3, 0]), "it refuses");
        assert_eq!(said(None).0, None, "it says nothing");
        assert_eq!(said(Some(0xff)).0, None);
    }
}
