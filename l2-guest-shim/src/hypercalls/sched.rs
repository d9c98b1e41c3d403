//! Waiting and ending.
//! May: guest-memory. Context: shim, IF = 0. Input: guest-controlled.

use super::{Failure, Outcome, answer};
use crate::{
    entry::end,
    guest::{VcpuInfo, facts},
    hw::{area::Area, call, copy, memory},
    xen::{
        errno::{EINVAL, ENOSYS},
        schedop::{BLOCK, POLL, SHUTDOWN, YIELD},
        shared_info, shutdown,
    },
};
use core::sync::atomic::Ordering::Relaxed;
use pv_abi::{ext, msr::arch};

/// `sched_op(command, argument)`.
pub extern "C" fn sched_op(command: u64, at: u64, _: u64, _: u64, _: u64, area: Area) -> i64 {
    answer(match command {
        // Nobody else wants this vCPU's CPU; events are looked at on the way out.
        YIELD => Ok(0),
        BLOCK => {
            block(area);
            Ok(0)
        }
        POLL => poll(at, area),
        SHUTDOWN => shut_down(at),
        _ => Err(Failure(ENOSYS)),
    })
}

/// Opens events and waits for one: the halt itself is the last thing `entry.S` does, on the
/// kernel's stack, so that the event can come right there.
fn block(area: Area) {
    let info = VcpuInfo::of(area);
    info.set_masked(false);
    if !info.pending() {
        area.data().halt.store(1, Relaxed);
    }
}

/// Waits until one of some ports is pending, or a time has come. Arguments: address of the ports,
/// their number, time in nanoseconds or 0 for none.
fn poll(at: u64, area: Area) -> Outcome {
    let [list, count, timeout]: [u64; 3] = copy::read(at)?;
    let count = count & 0xffff_ffff;
    if count > 128 {
        return Err(Failure(EINVAL));
    }
    for number in 0..count {
        let port: u32 = copy::read(list.wrapping_add(4 * number))?;
        let word =
            facts().shared_info + shared_info::EVTCHN_PENDING as u64 + u64::from(port / 64) * 8;
        let pending =
            memory::word(word).is_some_and(|word| word.load(Relaxed) >> (port % 64) & 1 != 0);
        if pending {
            return Ok(0);
        }
    }
    if timeout != 0 {
        call::wrmsr(arch::TSC_DEADLINE, facts().clock.tsc_at(timeout));
    }
    // Any event ends the wait; the kernel looks again.
    area.data().halt.store(1, Relaxed);
    Ok(0)
}

fn shut_down(at: u64) -> Outcome {
    let reason: u32 = copy::read(at)?;
    let reason = match reason {
        shutdown::POWEROFF => ext::shutdown::POWEROFF,
        shutdown::REBOOT => ext::shutdown::REBOOT,
        shutdown::CRASH => ext::shutdown::CRASH,
        // Nobody could wake a suspended guest.
        shutdown::SUSPEND => return Err(Failure(EINVAL)),
        _ => return Err(Failure(EINVAL)),
    };
    end(reason, format_args!(""))
}
