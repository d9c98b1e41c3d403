//! Fills buffers with random bytes, as a virtio entropy device does (virtio 1.2, 5.4).
//! May: guest-memory. Context: run-loop. Input: guest-controlled chains.

use super::{
    DeviceMemory, copy,
    queue::{Broken, Chain, Queue},
    registers::Identity,
};
use pv_abi::virtio::{entropy, feature};

/// Bytes of a chain that are filled at most. A driver that wants more asks again.
pub const MOST: usize = 4096;

/// What the driver sees of the device.
#[must_use]
pub fn identity() -> Identity {
    let features = feature::VERSION_1 | feature::INDIRECT_DESC;
    Identity { device: entropy::DEVICE, features, queues: [(0, 1)].into(), config: [].into() }
}

/// Fills the next chain of `queue` by `random`, and gives it back; false if there is none. `chain` is room
/// for it.
///
/// # Errors
/// [`Broken`].
pub fn serve_one(
    memory: &impl DeviceMemory,
    queue: &mut Queue,
    chain: &mut Chain,
    random: impl FnOnce(&mut [u8]),
) -> Result<bool, Broken> {
    if !queue.pop_into(memory, chain)? {
        return Ok(false);
    }
    if !chain.readable.is_empty() {
        return Err(Broken::Direction);
    }
    let room = copy::len(&chain.writable).min(MOST as u64);
    let mut bytes = [0; MOST];
    let bytes = &mut bytes[..room as usize];
    random(bytes);
    // What lies where no device may write is not filled, nor what is behind it.
    let written = copy::scatter(memory, &chain.writable, 0, bytes);
    queue.push_used(memory, chain.head, written as u32)?;
    Ok(true)
}
