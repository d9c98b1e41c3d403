//! The console ring: the kernel's output to L1, the user's input to the kernel.
//! May: guest-memory. Context: shim. Input: guest-controlled ring indices.

use crate::{
    guest::{self, CONSOLE_PORT},
    hw::{area::Area, call, lock::Mutex, memory},
    xen::console::{IN, IN_CONS, IN_PROD, IN_SIZE, OUT, OUT_CONS, OUT_PROD, OUT_SIZE},
};
use core::sync::atomic::{
    AtomicU32,
    Ordering::{Acquire, Relaxed, Release},
};

fn index(offset: u64) -> Option<&'static AtomicU32> {
    memory::word32(guest::console() + offset)
}

/// One vCPU at a time moves what is in the ring.
static MOVING: Mutex<()> = Mutex::new(());

fn notify(area: Area) {
    let port = CONSOLE_PORT.load(Relaxed);
    if port != 0 {
        guest::raise(port, area);
    }
}

/// The kernel has put output into the ring, or taken input out of it.
pub fn kick(area: Area) {
    let moved = {
        let _moving = MOVING.lock();
        drain()
    };
    if moved.is_some_and(|moved| moved > 0) {
        notify(area);
    }
    input(area);
}

/// Moves output to L1, straight from the ring.
fn drain() -> Option<u32> {
    let (cons, prod) = (index(OUT_CONS)?, index(OUT_PROD)?);
    let mut at = cons.load(Relaxed);
    let waiting = prod.load(Acquire).wrapping_sub(at).min(OUT_SIZE);
    let mut left = waiting;
    while left > 0 {
        let offset = at % OUT_SIZE;
        let piece = left.min(OUT_SIZE - offset);
        let taken =
            call::console_write(guest::console() + OUT + u64::from(offset), piece.into()) as u32;
        if taken == 0 {
            break;
        }
        at = at.wrapping_add(taken);
        left -= taken;
    }
    cons.store(at, Release);
    Some(waiting - left)
}

/// Moves input from L1 into the ring, as much as fits.
pub fn input(area: Area) {
    let moving = MOVING.lock();
    let (Some(cons), Some(prod)) = (index(IN_CONS), index(IN_PROD)) else { return };
    let mut at = prod.load(Relaxed);
    let before = at;
    loop {
        let used = at.wrapping_sub(cons.load(Acquire)).min(IN_SIZE);
        let offset = at % IN_SIZE;
        let room = (IN_SIZE - used).min(IN_SIZE - offset);
        if room == 0 {
            break;
        }
        let given =
            call::console_read(guest::console() + IN + u64::from(offset), room.into()) as u32;
        if given == 0 {
            break;
        }
        at = at.wrapping_add(given);
    }
    if at != before {
        prod.store(at, Release);
        drop(moving);
        notify(area);
    }
}
