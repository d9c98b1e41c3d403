//! Disks with several queues: the VM has two vCPUs or more.

use super::disks::{OK, SECTOR, fill, filled, let_in, needed, vector_call};
use crate::{
    abi, clock,
    disk::{DATA, Disk, kind},
    entry, extension, interrupts, paging,
    second::{self, INDEX},
    tap::{Case, Verdict, Wrong, equal, holds, skip},
    virtio::{read, register, write},
};
use pv_abi::{
    ext::{Features, call, devices},
    hypercall::EINVAL,
};

/// VIRTIO_BLK_F_MQ, and where num_queues is.
const MQ: u64 = 1 << 12;
const NUM_QUEUES: u64 = register::CONFIG + 32;

fn doorbell(queue: u64) -> u64 {
    abi::call(call::DOORBELL, [0, queue, 0, 0])
}

fn queue_vector(queue: u64, vector: u64, vcpu: u64) -> u64 {
    abi::call(call::QUEUE_VECTOR, [0, queue << 8 | vector, vcpu, 0])
}

/// Takes queues 0 and 1 of the disk over.
fn two() -> Result<[Disk; 2], Wrong> {
    needed(0)?;
    if entry::boot().vcpus < 2 {
        return skip("this VM has one vCPU").map(|()| unreachable!("it is skipped"));
    }
    Disk::start_two(0, MQ)
}

/// There are as many as there are vCPUs, for those who accept that, and one for all others.
pub fn offered() -> Verdict {
    needed(0)?;
    let vcpus = u64::from(entry::boot().vcpus);
    let queues = if vcpus > 1 { vcpus.min(devices::DISK_QUEUES_MOST as u64) } else { 1 };
    write(0, register::DEVICE_FEATURES_SEL, 0);
    let offers = read(0, register::DEVICE_FEATURES) & MQ != 0;
    equal("VIRTIO_BLK_F_MQ", offers.into(), u64::from(queues > 1))?;
    let said = if offers { queues } else { 0 };
    equal("num_queues", read(0, NUM_QUEUES) >> 16, said)?;
    for (name, features, there) in [("accepted", MQ, queues), ("not accepted", 0, 1)] {
        if features != 0 && !offers {
            continue;
        }
        Disk::start(0, features)?;
        for queue in 0..queues + 2 {
            let exists = queue < there;
            write(0, register::QUEUE_SEL, queue);
            let most = if exists { devices::QUEUE_MOST.into() } else { 0 };
            equal("QueueNumMax", read(0, register::QUEUE_NUM_MAX), most).case(name)?;
            let answer = if exists { 0 } else { EINVAL };
            equal("DOORBELL", doorbell(queue), answer).case(name)?;
            write(0, register::QUEUE_NUM, 16);
            write(0, register::QUEUE_READY, 1);
            equal("QueueReady", read(0, register::QUEUE_READY), exists.into()).case(name)?;
        }
        equal("reset", write(0, register::STATUS, 0), 0)?;
    }
    for (queue, vector, vcpu) in
        [(queues, 0x61, 0), (!0 >> 8, 0x61, 0), (0, 15, 0), (0, 0x61, vcpus), (0, 0x61, 1 << 32)]
    {
        equal("QUEUE_VECTOR", queue_vector(queue, vector, vcpu), EINVAL)?;
    }
    let empty = abi::call(call::QUEUE_VECTOR, [devices::SLOTS as u64 - 1, 0x61, 0, 0]);
    equal("QUEUE_VECTOR, empty slot", empty, EINVAL)
}

/// Requests of both are under way at the same time, each is answered where it was made, and what one has
/// written, and the other flushed, is there for both.
pub fn at_once() -> Verdict {
    let mut disks = two()?;
    let data = |queue: usize| paging::frame(DATA + queue);
    for round in 0..10_u64 {
        for (queue, disk) in disks.iter_mut().enumerate() {
            fill(data(queue), SECTOR, round << 40 | (queue as u64) << 32);
            let buffer = [(data(queue), SECTOR as u32, false)];
            disk.begin(8 * queue as u16, (kind::OUT, 50 + queue as u64), &buffer)?;
        }
        for (queue, disk) in disks.iter_mut().enumerate() {
            disk.wait()?;
            equal("write", Disk::answer(8 * queue as u16), OK)?;
            holds("it is answered once", !disk.ring.has_used())?;
        }
        let [first, second] = &mut disks;
        equal("flush by the other", second.ask((kind::FLUSH, 0), &[])?, OK)?;
        for (queue, disk) in [(1, first), (0, second)] {
            fill(data(queue), SECTOR, 0);
            let buffer = [(data(queue), SECTOR as u32, true)];
            equal("read", disk.ask((kind::IN, 50 + queue as u64), &buffer)?, OK)?;
            filled(data(queue), SECTOR, round << 40 | (queue as u64) << 32)?;
        }
    }
    equal("reset", write(0, register::STATUS, 0), 0)
}

/// A queue that is broken stops the device, with all its queues.
pub fn broken() -> Verdict {
    let [mut first, mut second] = two()?;
    second.offer(crate::virtio::SIZE)?;
    equal("Status", first.status(), 15 | crate::virtio::NEEDS_RESET)?;
    first.begin(0, (kind::FLUSH, 0), &[])?;
    holds("nothing is answered", !first.ring.has_used())?;
    let [mut first, _] = two()?;
    equal("flush after a reset", first.ask((kind::FLUSH, 0), &[])?, OK)
}

/// A reset ends the requests of both: no page of theirs is in use.
pub fn reset() -> Verdict {
    extension::enable(Features::PRIVATE)?;
    let pages = paging::frame(DATA);
    for _ in 0..20 {
        for (queue, disk) in two()?.iter_mut().enumerate() {
            for number in 0..2u16 {
                let at = pages + 4096 * (2 * queue as u64 + u64::from(number));
                let first = 8 * queue as u16 + 3 * number;
                disk.begin(first, (kind::IN, 0), &[(at, 8 * SECTOR as u32, true)])?;
            }
        }
        equal("reset", write(0, register::STATUS, 0), 0)?;
        equal("UNSHARE", abi::call(call::UNSHARE, [pages, 4, 0, 0]), 0)?;
        equal("SHARE", abi::call(call::SHARE, [pages, 4, 0, 0]), 0)?;
    }
    equal("a request after that", two()?[1].ask((kind::FLUSH, 0), &[])?, OK)
}

/// A queue may have a vector of its own, and keeps it when the device is reset.
pub fn vectors() -> Verdict {
    let read_one = [(paging::frame(DATA), SECTOR as u32, true)];
    two()?;
    equal("DEVICE_VECTOR", vector_call(0, 0x61, 0), 0)?;
    equal("QUEUE_VECTOR", queue_vector(1, 0x65, 0), 0)?;
    let told = |queue: usize, vector: u64, why: &'static str| {
        let disk = &mut two()?[queue];
        let before = interrupts::count();
        equal("read", disk.ask((kind::IN, 0), &read_one)?, OK)?;
        equal("interrupts", let_in(before) as u64, 1).case(why)?;
        equal("vector", interrupts::vector(before), vector).case(why)
    };
    told(0, 0x61, "a queue without")?;
    told(1, 0x65, "a queue with one of its own")?;
    equal("InterruptStatus", read(0, register::INTERRUPT_STATUS), 0)?;
    equal("QUEUE_VECTOR, none", queue_vector(1, 0, 0), 0)?;
    told(1, 0x61, "no longer")?;
    equal("QUEUE_VECTOR", queue_vector(1, 0x65, 0), 0)?;
    equal("DEVICE_VECTOR", vector_call(0, 0x62, 0), 0)?;
    told(1, 0x62, "the device's counts again")?;
    equal("DEVICE_VECTOR, none", vector_call(0, 0, 0), 0)
}

/// A queue interrupts another vCPU than the others.
pub fn other_vcpu() -> Verdict {
    second::needed()?;
    let read_one = [(paging::frame(DATA), SECTOR as u32, true)];
    let [mut first, mut second] = two()?;
    equal("DEVICE_VECTOR", vector_call(0, 0x61, 0), 0)?;
    equal("QUEUE_VECTOR", queue_vector(1, 0x65, INDEX as u64), 0)?;
    second::start(|| {
        abi::pvcs().enable_interrupts();
        second::reached(1);
        while !second::quits() {
            abi::call(call::YIELD, [0; 4]);
        }
    })?;
    second::wait_for(1)?;
    let before = [0, INDEX].map(interrupts::count_of);
    equal("read", second.ask((kind::IN, 0), &read_one)?, OK)?;
    let come = clock::wait(clock::tsc_hz(), || {
        abi::call(call::YIELD, [0; 4]);
        interrupts::count_of(INDEX) > before[1]
    });
    holds("vCPU 1 is told", come)?;
    equal("vector", interrupts::vector_of(INDEX, before[1]), 0x65)?;
    equal("interrupts of vCPU 0", let_in(before[0]) as u64, 0)?;
    equal("read", first.ask((kind::IN, 0), &read_one)?, OK)?;
    equal("interrupts of vCPU 0", let_in(before[0]) as u64, 1)?;
    equal("interrupts of vCPU 1", (interrupts::count_of(INDEX) - before[1]) as u64, 1)?;
    equal("DEVICE_VECTOR, none", vector_call(0, 0, 0), 0)
}
