//! Stops threads at odd places for odd times, so that rare interleavings become common ones.

use std::cell::Cell;

thread_local! {
    /// State of the generator; zero is off.
    static STATE: Cell<u64> = const { Cell::new(0) };
}

/// This thread is stopped now and then from here on, or (0) never.
pub fn seed(seed: u64) {
    STATE.set(seed);
}

/// Called wherever the MMU touches the world.
#[inline]
pub fn pause() {
    let mut state = STATE.get();
    if state == 0 {
        return;
    }
    // Xorshift: cheap enough to be called in every access.
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    STATE.set(state);
    if state & 0xff == 0 {
        stop(state >> 8);
    }
}

#[cold]
fn stop(random: u64) {
    if random & 15 == 0 {
        std::thread::yield_now();
        return;
    }
    for _ in 0..random & 0x1ff {
        std::hint::spin_loop();
    }
}
