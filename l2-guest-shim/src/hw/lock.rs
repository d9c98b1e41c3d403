//! Locks between the shim's vCPUs.
//! Context: shim. Input: none.

use super::call;
use core::hint::spin_loop;
use spin::relax::RelaxStrategy;

/// A lock of the shim's.
pub type Mutex<T> = spin::mutex::Mutex<T, Patience>;

/// Instructions PAUSE before L1 is asked to run somebody else: a call costs about as much as waiting so long.
const PAUSES: u32 = 64;

/// Waits for a little while, then lets others run: who holds the lock may be a vCPU that has lost its CPU, and would
/// not get it back before this one's slice is over.
#[derive(Clone, Copy, Debug)]
pub struct Patience;

impl RelaxStrategy for Patience {
    fn relax() {
        for _ in 0..PAUSES {
            spin_loop();
        }
        call::yield_slice();
    }
}
