//! A guest's virtio console, which is a port to what its UART leads to.
//! May: guest-memory. Context: run-loop, irq-off. Input: guest-controlled chains, the user's keystrokes.
//!
//! What is written to the console is written without the front's lock: the serial port is slow.

use super::{
    front::Front,
    port::{self, Output},
    queue::{Chain, MOST},
};
use crate::{console, dev::Rest, vm::Vm};
use alloc::boxed::Box;
use pv_abi::virtio::console::{RECEIVE, TRANSMIT};
use spin::Mutex;

/// Bytes of output that are written at once.
const AT_ONCE: usize = 1024;
/// What a chain counts, at least.
const EFFORT: usize = 16;

/// The device.
#[derive(Debug, Default)]
pub struct Terminal {
    output: Mutex<Box<Output>>,
}

impl Terminal {
    /// Its front, in `slot`.
    #[must_use]
    pub fn front(slot: usize) -> Front {
        Front::new(slot, port::identity())
    }

    /// Writes what the driver has made available, or a part of it.
    pub fn write(&self, vm: &Vm, front: &Mutex<Front>) -> Rest {
        let output = &mut **self.output.lock();
        let mut bytes = [0; AT_ONCE];
        let mut effort = 0;
        while effort < AT_ONCE {
            if !begin(vm, &mut front.lock(), output) {
                return Rest::Nothing;
            }
            let count = output.copy(vm, &mut bytes[effort..]);
            console::write(&vm.console, &bytes[effort..effort + count]);
            effort += count.max(EFFORT);
            if !output.is_under_way() {
                let front = &mut front.lock();
                if let Some(queue) = front.queue(TRANSMIT) {
                    let used = queue.push_used(vm, output.head(), 0);
                    front.used(vm, TRANSMIT, used);
                }
            }
        }
        Rest::More
    }

    /// The device was reset.
    pub fn forget(&self) {
        self.output.lock().forget();
    }
}

/// Goes on with `output`, or begins with what is next; false if there is nothing.
fn begin(vm: &Vm, front: &mut Front, output: &mut Output) -> bool {
    let Some(queue) = front.queue(TRANSMIT) else { return false };
    output.begin(vm, queue).unwrap_or_else(|broken| {
        front.stop(vm, broken);
        false
    })
}

/// Gives input that waits to the driver, as far as it has room; false if it does not run.
pub fn read(vm: &Vm, front: &mut Front) -> bool {
    if !front.registers.is_running() {
        return false;
    }
    let mut chain = Chain::default();
    // As many as the queue has. Whoever adds more tells of it.
    for _ in 0..MOST {
        let Some(queue) = front.queue(RECEIVE) else { break };
        match port::put_input(vm, queue, &mut chain, |out| vm.console.take(out)) {
            Ok(true) => front.used(vm, RECEIVE, Ok(())),
            Ok(false) => break,
            Err(broken) => {
                front.stop(vm, broken);
                break;
            }
        }
    }
    true
}
