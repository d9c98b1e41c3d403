//! A guest's entropy device.
//! May: guest-memory. Context: run-loop, irq-off. Input: guest-controlled chains.

use super::{entropy, front::Front, queue::Chain};
use crate::{
    abi_flaw::{Flaw, planted},
    dev::{Rest, entropy as pool},
    vm::Vm,
};
use pv_abi::virtio::entropy::QUEUE;

/// Chains that are filled at once.
const AT_ONCE: usize = 16;

/// The front of the device in `slot`; `None` if there is nothing that random bytes could come from.
#[must_use]
pub fn front(slot: usize) -> Option<Front> {
    pool::is_there().then(|| Front::new(slot, entropy::identity()))
}

/// Fills what the driver has made available, or a part of it.
pub fn serve(vm: &Vm, front: &mut Front) -> Rest {
    let mut chain = Chain::default();
    for _ in 0..AT_ONCE {
        let Some(queue) = front.queue(QUEUE) else { return Rest::Nothing };
        match entropy::serve_one(vm, queue, &mut chain, random) {
            Ok(true) => front.used(vm, QUEUE, Ok(())),
            Ok(false) => return Rest::Nothing,
            Err(broken) => {
                front.stop(vm, broken);
                return Rest::Nothing;
            }
        }
    }
    Rest::More
}

fn random(out: &mut [u8]) {
    if planted(Flaw::EntropyZero) {
        out.fill(0);
    } else {
        pool::fill(out);
    }
}
