//! Virtual CPUs: their info areas and timers.
//! May: guest-memory. Context: shim, IF = 0. Input: guest-controlled.

use super::{Failure, Outcome, answer, smp};
use crate::{
    guest::{VcpuInfo, facts},
    hw::{area::Area, call, copy, memory},
    xen::{
        errno::{EINVAL, ENOENT, ENOSYS},
        shared_info::VCPU_INFO_SIZE,
        vcpuop::{
            DOWN, GET_RUNSTATE_INFO, INITIALISE, IS_UP, REGISTER_RUNSTATE_AREA, REGISTER_TIME_AREA,
            REGISTER_VCPU_INFO, SET_SINGLESHOT_TIMER, STOP_PERIODIC_TIMER, STOP_SINGLESHOT_TIMER,
            UP,
        },
    },
};
use core::sync::atomic::Ordering::{Relaxed, Release};
use pv_abi::msr::arch;

/// `vcpu_op(command, vcpu, argument)`.
pub extern "C" fn vcpu_op(command: u64, vcpu: u64, at: u64, _: u64, _: u64, area: Area) -> i64 {
    if vcpu >= facts().vcpus.into() {
        return ENOENT;
    }
    let target = Area::of(vcpu as usize);
    answer(match command {
        // Its own, as kernels do: nobody arms another's.
        SET_SINGLESHOT_TIMER if target == area => set_timer(at, area),
        STOP_SINGLESHOT_TIMER if target == area => {
            arm(0, area);
            Ok(0)
        }
        SET_SINGLESHOT_TIMER | STOP_SINGLESHOT_TIMER => Err(Failure(EINVAL)),
        // There never is a periodic one; saying so makes the kernel use the one-shot timer.
        STOP_PERIODIC_TIMER => Ok(0),
        INITIALISE => smp::initialise(vcpu as u32, at),
        UP => smp::up(vcpu as u32),
        DOWN if target == area => Ok(smp::down(area)),
        IS_UP => Ok(i64::from(smp::is_up(target))),
        REGISTER_VCPU_INFO => register_info(at, target),
        REGISTER_RUNSTATE_AREA => register_runstate(at, target),
        GET_RUNSTATE_INFO => copy::write(at, &runstate(target)).map(|()| 0).map_err(Failure::from),
        REGISTER_TIME_AREA => register_time(at),
        _ => Err(Failure(ENOSYS)),
    })
}

/// Argument: absolute system time, flags. A time that has passed fires at once.
fn set_timer(at: u64, area: Area) -> Outcome {
    let time: u64 = copy::read(at)?;
    // 0 would disarm.
    arm(facts().clock.tsc_at(time).max(1), area);
    Ok(0)
}

/// Arms this vCPU's timer for a TSC value, or disarms it with 0.
pub(super) fn arm(deadline: u64, area: Area) {
    area.data().deadline.store(deadline, Relaxed);
    set(deadline, area);
}

/// The same for a moment: the kernel's own deadline is not forgotten.
pub(super) fn set(deadline: u64, area: Area) {
    if !area.set_deadline(deadline) {
        call::wrmsr(arch::TSC_DEADLINE, deadline);
    }
}

/// `set_timer_op(time)`: the older form; 0 stops it.
pub extern "C" fn set_timer_op(time: u64, _: u64, _: u64, _: u64, _: u64, area: Area) -> i64 {
    let deadline = if time == 0 { 0 } else { facts().clock.tsc_at(time).max(1) };
    arm(deadline, area);
    0
}

/// Arguments: frame, offset. From now on the vCPU's info is there.
fn register_info(at: u64, target: Area) -> Outcome {
    let [frame, offset]: [u64; 2] = copy::read(at)?;
    let offset = offset & 0xffff_ffff;
    let gpa = frame.checked_mul(4096).ok_or(Failure(EINVAL))? + offset;
    let size = VCPU_INFO_SIZE as u64;
    if offset > 4096 - size || !offset.is_multiple_of(8) || !memory::contains(gpa, size) {
        return Err(Failure(EINVAL));
    }
    let old = VcpuInfo::of(target);
    for word in (0..VCPU_INFO_SIZE).step_by(8) {
        if let (Some(from), Some(to)) =
            (memory::word(old.field(word)), memory::word(gpa + word as u64))
        {
            to.store(from.load(Relaxed), Relaxed);
        }
    }
    target.data().vcpu_info.store(memory::address(gpa), Release);
    // Whatever was raised meanwhile is found by looking at everything once.
    let new = VcpuInfo::of(target);
    for selector in 0..64 {
        new.select(selector);
    }
    Ok(0)
}

/// `struct vcpu_runstate_info`: state, time of entry, time in each of four states: running, ready,
/// blocked, off. It runs whenever it looks; when it was blocked nobody asks.
fn runstate(target: Area) -> [u64; 6] {
    let now = facts().clock.ns_at(tsc());
    let stolen = target.stolen();
    [0, now, now.saturating_sub(stolen), stolen, 0, 0]
}

/// Tells the kernel of time that was stolen since it was last told.
pub fn update_runstate(area: Area) {
    let (data, stolen) = (area.data(), area.stolen());
    let at = data.runstate.load(Relaxed);
    if at != 0 && data.stolen.swap(stolen, Relaxed) != stolen {
        // The kernel looks at its entry time before and after: it changes first.
        let _ = copy::write(at, &runstate(area));
    }
}

fn tsc() -> u64 {
    call::rdmsr(arch::TSC)
}

/// Argument: address of the area.
fn register_runstate(at: u64, target: Area) -> Outcome {
    let area: u64 = copy::read(at)?;
    copy::write(area, &runstate(target))?;
    target.data().runstate.store(area, Relaxed);
    Ok(0)
}

/// Argument: address of a time page for the vDSO. It never changes.
fn register_time(at: u64) -> Outcome {
    let area: u64 = copy::read(at)?;
    if area != 0 {
        copy::write(area, &facts().clock.info())?;
    }
    Ok(0)
}
