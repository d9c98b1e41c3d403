//! Waiting and ending.
//! May: guest-memory. Context: shim, IF = 0. Input: guest-controlled.

use super::{Failure, Outcome, answer, vcpu};
use crate::{
    entry::end,
    guest::{VcpuInfo, facts},
    hw::{area::Area, call, copy, memory},
    traps,
    xen::{
        errno::{EINVAL, ENOSYS},
        schedop::{BLOCK, POLL, SHUTDOWN, YIELD},
        shared_info, shutdown,
    },
};
use core::sync::atomic::{
    Ordering::{Relaxed, SeqCst},
    fence,
};
use pv_abi::ext;

/// `sched_op(command, argument)`.
pub extern "C" fn sched_op(command: u64, at: u64, _: u64, _: u64, _: u64, area: Area) -> i64 {
    answer(match command {
        YIELD => {
            call::yield_slice();
            Ok(0)
        }
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
    // Whoever raises an event from here on finds events open, and tells.
    fence(SeqCst);
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
    // Whoever raises one of the ports from here on tells, masked or not.
    area.data().polls.store(1, SeqCst);
    let result = poll_ports(list, count, timeout, area);
    area.data().polls.store(0, Relaxed);
    result
}

fn poll_ports(list: u64, count: u64, timeout: u64, area: Area) -> Outcome {
    for number in 0..count {
        let port: u32 = copy::read(list.wrapping_add(4 * number))?;
        let word =
            facts().shared_info + shared_info::EVTCHN_PENDING as u64 + u64::from(port / 64) * 8;
        let pending =
            memory::word(word).is_some_and(|word| word.load(SeqCst) >> (port % 64) & 1 != 0);
        if pending {
            return Ok(0);
        }
    }
    // Any interrupt ends the wait; the kernel looks again.
    let deadline = area.data().deadline.load(Relaxed);
    let end = if timeout == 0 { u64::MAX } else { facts().clock.tsc_at(timeout).max(1) };
    let sooner = deadline == 0 || end < deadline;
    if timeout != 0 && sooner {
        vcpu::set(end, area);
    }
    call::wait_interrupt();
    traps::take_interrupts(area);
    if timeout != 0 && sooner {
        // Unless it has come meanwhile.
        vcpu::set(area.data().deadline.load(Relaxed), area);
    }
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
