//! Moves a console's bytes into and out of chains, as a virtio console without features does (virtio 1.2, 5.3).
//! May: guest-memory. Context: run-loop. Input: guest-controlled chains.

use super::{
    DeviceMemory, copy,
    queue::{Broken, Chain, Queue},
    registers::Identity,
};
use pv_abi::virtio::{console, feature};

/// Bytes of input that a chain gets at most.
const MOST: usize = 256;

/// What the driver sees of the device.
#[must_use]
pub fn identity() -> Identity {
    let features = feature::VERSION_1 | feature::INDIRECT_DESC;
    Identity {
        device: console::DEVICE,
        features,
        queues: [(0, console::QUEUES)].into(),
        config: [].into(),
    }
}

/// Output on its way: a chain, and how much of it has been written.
#[derive(Debug, Default)]
pub struct Output {
    chain: Chain,
    done: u64,
    len: u64,
}

impl Output {
    /// Takes the next chain of `queue`, if the last one is done; false if there is none.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn begin(&mut self, memory: &impl DeviceMemory, queue: &mut Queue) -> Result<bool, Broken> {
        if self.is_under_way() {
            return Ok(true);
        }
        if !queue.pop_into(memory, &mut self.chain)? {
            return Ok(false);
        }
        if !self.chain.writable.is_empty() {
            return Err(Broken::Direction);
        }
        (self.done, self.len) = (0, copy::len(&self.chain.readable));
        Ok(true)
    }

    /// Copies the next bytes to `out`; how many. The rest of a chain that goes on where no device may look is
    /// lost.
    pub fn copy(&mut self, memory: &impl DeviceMemory, out: &mut [u8]) -> usize {
        let wanted = (self.len - self.done).min(out.len() as u64) as usize;
        let count = copy::gather(memory, &self.chain.readable, self.done, &mut out[..wanted]);
        self.done = if count == wanted { self.done + count as u64 } else { self.len };
        count
    }

    /// True if there is more of the chain.
    #[must_use]
    pub const fn is_under_way(&self) -> bool {
        self.done < self.len
    }

    /// The chain, by its first descriptor.
    #[must_use]
    pub const fn head(&self) -> u16 {
        self.chain.head
    }

    /// Forgets the chain.
    pub const fn forget(&mut self) {
        self.done = self.len;
    }
}

/// Puts input into the next chain of `queue`, as `take` gives it; false if there is no chain, or no input.
/// `chain` is room for it.
///
/// # Errors
/// [`Broken`].
pub fn put_input(
    memory: &impl DeviceMemory,
    queue: &mut Queue,
    chain: &mut Chain,
    take: impl FnOnce(&mut [u8]) -> usize,
) -> Result<bool, Broken> {
    if !queue.pop_into(memory, chain)? {
        return Ok(false);
    }
    if !chain.readable.is_empty() {
        return Err(Broken::Direction);
    }
    let room = copy::len(&chain.writable).min(MOST as u64);
    let mut bytes = [0; MOST];
    let count = take(&mut bytes[..room as usize]);
    if count == 0 {
        queue.put_back();
        return Ok(false);
    }
    let written = copy::scatter(memory, &chain.writable, 0, &bytes[..count]);
    queue.push_used(memory, chain.head, written as u32)?;
    Ok(true)
}
