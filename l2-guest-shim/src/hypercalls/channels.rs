//! Event channels.
//! May: guest-memory. Context: shim, IF = 0. Input: guest-controlled.

use super::{Failure, Outcome, answer};
use crate::{
    blk, console, devices,
    evtchn::Binding,
    guest::{self, PORTS, facts},
    hw::{area::Area, copy},
    net,
    store::page,
    xen::{
        domid,
        errno::{EINVAL, ENOENT, ENOSYS},
        evtchnop::{ALLOC_UNBOUND, BIND_IPI, BIND_VCPU, BIND_VIRQ, CLOSE, SEND, STATUS, UNMASK},
        virq,
    },
};
use core::sync::atomic::Ordering::Relaxed;

/// `event_channel_op(command, argument)`.
pub extern "C" fn event_channel_op(
    command: u64,
    at: u64,
    _: u64,
    _: u64,
    _: u64,
    area: Area,
) -> i64 {
    answer(match command {
        SEND => send(at, area),
        // Without a store nobody could be told of the port; Linux does without both then.
        ALLOC_UNBOUND if page::is_open() => alloc_unbound(at),
        BIND_VIRQ => bind_virq(at),
        BIND_IPI => bind_ipi(at),
        BIND_VCPU => bind_vcpu(at, area),
        CLOSE => close(at),
        STATUS => status(at),
        UNMASK => unmask(at, area),
        _ => Err(Failure(ENOSYS)),
    })
}

fn send(at: u64, area: Area) -> Outcome {
    let port: u32 = copy::read(at)?;
    let bound = PORTS.lock().get(port).map_err(Failure)?;
    match bound.binding {
        Binding::Console => console::kick(area),
        Binding::Store => page::kick(area),
        Binding::Disk(disk, queue) => blk::kick(disk, queue, area),
        Binding::Card(card, pair) => net::kick(card, pair, port, area),
        // Nobody listens yet.
        Binding::Unbound => {}
        Binding::Ipi => guest::raise(port, area),
        Binding::Virq(_) | Binding::Free => return Err(Failure(EINVAL)),
    }
    Ok(0)
}

fn check_vcpu(vcpu: u32) -> Result<u32, Failure> {
    if vcpu < facts().vcpus { Ok(vcpu) } else { Err(Failure(ENOENT)) }
}

/// Arguments: virtual interrupt, vCPU; result: port.
fn bind_virq(at: u64) -> Outcome {
    let [number, vcpu]: [u32; 2] = copy::read(at)?;
    let vcpu = check_vcpu(vcpu)?;
    let port = PORTS.lock().bind(Binding::Virq(number), vcpu).map_err(Failure)?;
    if number == virq::TIMER {
        Area::of(vcpu as usize).data().timer_port.store(port, Relaxed);
    }
    copy::write(at.wrapping_add(8), &port)?;
    Ok(0)
}

/// Arguments: domain, domain that is to bind itself to the port; result: port.
fn alloc_unbound(at: u64) -> Outcome {
    let [domain, remote, ..]: [u16; 4] = copy::read(at)?;
    // Devices are in domain 0, and nobody else is there.
    if domain != domid::SELF || remote != 0 {
        return Err(Failure(EINVAL));
    }
    let port = PORTS.lock().bind(Binding::Unbound, 0).map_err(Failure)?;
    copy::write(at.wrapping_add(4), &port)?;
    Ok(0)
}

/// Argument: vCPU; result: port.
fn bind_ipi(at: u64) -> Outcome {
    let vcpu = check_vcpu(copy::read(at)?)?;
    let port = PORTS.lock().bind(Binding::Ipi, vcpu).map_err(Failure)?;
    copy::write(at.wrapping_add(4), &port)?;
    Ok(0)
}

/// Arguments: port, vCPU.
fn bind_vcpu(at: u64, area: Area) -> Outcome {
    let [port, vcpu]: [u32; 2] = copy::read(at)?;
    let vcpu = check_vcpu(vcpu)?;
    let bound = {
        let mut ports = PORTS.lock();
        ports.set_vcpu(port, vcpu).map_err(Failure)?;
        ports.get(port).map_err(Failure)?
    };
    devices::follow(bound.binding, port, vcpu, area);
    Ok(0)
}

fn close(at: u64) -> Outcome {
    let port: u32 = copy::read(at)?;
    let mut ports = PORTS.lock();
    let bound = ports.get(port).map_err(Failure)?;
    ports.close(port).map_err(Failure)?;
    guest::forget(port);
    if bound.binding == Binding::Virq(virq::TIMER) {
        Area::of(bound.vcpu as usize).data().timer_port.store(0, Relaxed);
    }
    Ok(0)
}

/// Arguments: domain and padding, port; results: status, vCPU, detail.
fn status(at: u64) -> Outcome {
    const CLOSED: u32 = 0;
    const UNBOUND: u32 = 1;
    const INTERDOMAIN: u32 = 2;
    const VIRQ: u32 = 4;
    const IPI: u32 = 5;
    let [_, port]: [u32; 2] = copy::read(at)?;
    let bound = PORTS.lock().get(port);
    let (kind, vcpu, detail) = match bound {
        Err(_) => (CLOSED, 0, 0),
        Ok(bound) => match bound.binding {
            Binding::Free => (CLOSED, 0, 0),
            Binding::Unbound => (UNBOUND, bound.vcpu, 0),
            Binding::Console | Binding::Store | Binding::Disk(..) | Binding::Card(..) => {
                (INTERDOMAIN, bound.vcpu, 0)
            }
            Binding::Virq(number) => (VIRQ, bound.vcpu, number),
            Binding::Ipi => (IPI, bound.vcpu, 0),
        },
    };
    copy::write(at.wrapping_add(8), &[kind, vcpu, detail])?;
    Ok(0)
}

fn unmask(at: u64, area: Area) -> Outcome {
    let port: u32 = copy::read(at)?;
    let bound = PORTS.lock().get(port).map_err(Failure)?;
    guest::unmask(port, bound.vcpu, area);
    Ok(0)
}
