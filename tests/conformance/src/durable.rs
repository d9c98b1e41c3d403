//! Writes blocks with numbers to the disk in slot 0, and says of each when it is to outlive the machine:
//! whoever ends the machine sees whether that is so.

use crate::{
    disk::{DATA, Disk, kind},
    extension,
    paging::{self, word},
    tap::{Verdict, equal},
};
use core::sync::atomic::Ordering::Relaxed;
use pv_abi::{ext::Features, virtio::block::SECTOR};
use suite::println;

/// Sectors of a block.
const BLOCK: u64 = 8;

/// Writes blocks 1, 2, 3, ..., each full of its number, until something fails. Now and then several are
/// written before they are flushed.
pub fn write() {
    if let Err(wrong) = go_on() {
        println!("Bail out! {wrong:?}");
    }
}

fn go_on() -> Verdict {
    extension::enable(Features::DEVICES)?;
    let mut disk = Disk::start(0, 0)?;
    let (data, bytes) = (paging::frame(DATA), BLOCK * SECTOR);
    for number in 1..disk.sectors() / BLOCK {
        (0..bytes).step_by(8).for_each(|at| word(data + at).store(number, Relaxed));
        let place = (kind::OUT, number * BLOCK);
        equal("write", disk.ask(place, &[(data, bytes as u32, false)])?, 0)?;
        if number % 4 != 3 {
            equal("flush", disk.ask((kind::FLUSH, 0), &[])?, 0)?;
            println!("durable {number}");
        }
    }
    Ok(())
}
