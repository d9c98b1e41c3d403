//! What memory there is.
//! May: guest-memory. Context: shim, IF = 0. Input: guest-controlled.

use super::{Failure, Outcome, answer};
use crate::{
    guest::facts,
    hw::{area::Area, copy},
    xen::{
        errno::{EINVAL, ENOSYS},
        memory::{MACHPHYS_MAPPING, MEMORY_MAP},
    },
};
use pv_abi::ext::window;

/// A record of the memory map: start, size, type; 20 bytes.
const RECORD: usize = 20;
const RAM: u32 = 1;

/// `memory_op(command, argument)`.
pub extern "C" fn memory_op(command: u64, at: u64, _: u64, _: u64, _: u64, _: Area) -> i64 {
    answer(match command {
        MEMORY_MAP => memory_map(at),
        // First and last address of the map, and the last frame in it.
        MACHPHYS_MAPPING => {
            let frames = facts().end_pages;
            copy::write(at, &[window::M2P, window::M2P + 8 * frames, frames - 1])
                .map(|()| 0)
                .map_err(Failure::from)
        }
        _ => Err(Failure(ENOSYS)),
    })
}

/// One flat piece of RAM: holes would send the kernel into remapping for nothing.
fn memory_map(at: u64) -> Outcome {
    let [entries, buffer]: [u64; 2] = copy::read(at)?;
    if entries as u32 == 0 {
        return Err(Failure(EINVAL));
    }
    let mut record = [0u8; RECORD];
    record[8..16].copy_from_slice(&(facts().ram_pages << 12).to_le_bytes());
    record[16..20].copy_from_slice(&RAM.to_le_bytes());
    copy::write(buffer, &record)?;
    copy::write(at, &1u32)?;
    Ok(0)
}
