//! Virtio devices: their slots, and disks. Slot 0 holds a disk of 64 sectors or more that may be written,
//! slot 1 one that may only be read; without them their checks are skipped.

use super::{Group, Setting, check, disk_queues};
use crate::{
    abi, clock,
    disk::{DATA, Disk, kind},
    interrupts,
    paging::{self, A, D, NX, P, W},
    tap::{Case, Verdict, equal, holds, skip},
    virtio::{INDIRECT, NEEDS_RESET, NEXT, SIZE, read, register, write},
};
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};
use pv_abi::{
    ext::{Features, call, devices},
    hypercall::{EINVAL, IRQ_HALT},
    virtio::block::{
        config,
        feature::{DISCARD, RO, WRITE_ZEROES},
    },
};

pub const GROUP: Group = Group {
    name: "disk",
    setting: Setting::Feature(Features::DEVICES),
    checks: &[
        check("slots", "VIO-1 VIO-2 FEAT-12 XHC-23 XHC-24 XHC-25 XHC-26", slots),
        check("registers_in_memory", "DEV-9 VIO-1", registers_in_memory),
        check("features", "VIO-3", features),
        check("queue", "VIO-3", queue),
        check("write_and_read", "BLK-1 BLK-3", write_and_read),
        check("indirect", "BLK-1 VIO-3", indirect),
        check("refused", "BLK-2", refused),
        check("read_only", "BLK-1 BLK-2", read_only),
        check("line", "DEV-9 VIO-4", line),
        check("vector", "VIO-4 XHC-26", vector),
        check("wakes", "VIO-4 VIO-6", wakes),
        check("broken_rings", "VIO-5", broken_rings),
        check("private_pages", "VIO-5", private_pages),
        check("erase", "BLK-4", erase),
        check("machine_errors", "BLK-2 BLK-5", machine_errors),
        check("machine_disk_dies", "BLK-5 VIO-6", machine_disk_dies),
        check("several_at_once", "VIO-6 BLK-3", several_at_once),
        check("reset", "VIO-6", reset),
        check("queues", "BLK-6 VIO-3 XHC-25 XHC-27", disk_queues::offered),
        check("queues_at_once", "BLK-6 BLK-3 VIO-6", disk_queues::at_once),
        check("queues_broken", "BLK-6 VIO-5", disk_queues::broken),
        check("queues_reset", "BLK-6 VIO-6", disk_queues::reset),
        check("queue_vectors", "XHC-27 VIO-4", disk_queues::vectors),
        check("queue_other_vcpu", "XHC-27 VIO-4", disk_queues::other_vcpu),
    ],
};

pub const SECTOR: u64 = 512;
pub const OK: u64 = 0;
const IOERR: u64 = 1;
const UNSUPP: u64 = 2;

/// Skips a check without a disk in `slot`.
pub fn needed(slot: u64) -> Verdict {
    if read(slot, register::DEVICE_ID) == 2 { Ok(()) } else { skip("the slot holds no disk") }
}

fn start() -> Result<Disk, crate::tap::Wrong> {
    needed(0)?;
    Disk::start(0, 0)
}

pub fn vector_call(slot: u64, vector: u64, vcpu: u64) -> u64 {
    abi::call(call::DEVICE_VECTOR, [slot, vector, vcpu, 0])
}

/// What there is in each slot, and what is refused.
fn slots() -> Verdict {
    for slot in 0..devices::SLOTS as u64 {
        equal("MagicValue", read(slot, register::MAGIC), 0x7472_6976)?;
        equal("Version", read(slot, register::VERSION), 2)?;
    }
    let empty = devices::SLOTS as u64 - 1;
    equal("DeviceID", read(empty, register::DEVICE_ID), 0)?;
    for (name, slot, offset) in [
        ("an empty slot", empty, register::STATUS),
        ("no slot", devices::SLOTS as u64, 0),
        ("no slot at all", u64::MAX, 0),
        ("within a register", 0, 2),
        ("past the block", 0, 0x1000),
        ("far away", 0, !3),
        ("one that is written only", 0, register::QUEUE_SEL),
    ] {
        equal("DEVICE_READ", read(slot, offset), EINVAL).case(name)?;
    }
    equal("DEVICE_WRITE, empty", write(empty, register::STATUS, 1), EINVAL)?;
    equal("DEVICE_WRITE, read-only", write(0, register::MAGIC, 1), EINVAL)?;
    let doorbell = |slot, queue| abi::call(call::DOORBELL, [slot, queue, 0, 0]);
    equal("DOORBELL, empty", doorbell(empty, 0), EINVAL)?;
    equal("DEVICE_VECTOR, empty", vector_call(empty, 0x60, 0), EINVAL)?;
    needed(0)?;
    equal("33 bits", write(0, register::STATUS, 1 << 32), EINVAL)?;
    equal("DOORBELL, no such queue", doorbell(0, 1), EINVAL)?;
    equal("DOORBELL, no such queue", doorbell(0, 1 << 32), EINVAL)?;
    equal("DOORBELL, not set up", doorbell(0, 0), 0)?;
    for (vector, vcpu) in [(15, 0), (0x100, 0), (0x60, 99), (0x60, 1 << 32)] {
        equal("DEVICE_VECTOR", vector_call(0, vector, vcpu), EINVAL)?;
    }
    Ok(())
}

fn register_at(address: u64) -> &'static AtomicU32 {
    paging::device(address)
}

/// A native guest sees the same in memory.
fn registers_in_memory() -> Verdict {
    for slot in 0..devices::SLOTS as u64 {
        let gpa = devices::BASE + devices::STRIDE * slot;
        let block = paging::set_area(0, gpa | P | W | A | D | NX);
        for offset in [register::MAGIC, register::VERSION, register::DEVICE_ID] {
            let found = register_at(block + offset).load(Relaxed);
            equal("a register", found.into(), read(slot, offset))?;
        }
    }
    needed(0)?;
    let block = paging::set_area(0, devices::BASE | P | W | A | D | NX);
    for value in [1, 3] {
        register_at(block + register::STATUS).store(value, Relaxed);
        equal("Status", read(0, register::STATUS), value.into())?;
    }
    let sectors = u64::from(register_at(block + register::CONFIG).load(Relaxed));
    equal("sectors", sectors, read(0, register::CONFIG))?;
    let low = paging::device16(block + register::CONFIG).load(Relaxed);
    equal("half of them", low.into(), sectors & 0xffff)?;
    equal("half a register", paging::device16(block).load(Relaxed).into(), 0xffff)?;
    register_at(block + register::STATUS).store(0, Relaxed);
    equal("Status after a reset", read(0, register::STATUS), 0)
}

/// Features that are not offered, or VERSION_1 missing: FEATURES_OK stays clear.
fn features() -> Verdict {
    needed(0)?;
    write(0, register::DEVICE_FEATURES_SEL, 1);
    equal("VERSION_1", read(0, register::DEVICE_FEATURES) & 1, 1)?;
    for (name, low, high, expected) in
        [("none", 0, 0, 3), ("one that is not offered", 1, 1, 3), ("what it must", 0, 1, 11)]
    {
        write(0, register::STATUS, 0);
        write(0, register::STATUS, 3);
        for (select, value) in [(0, low), (1, high)] {
            write(0, register::DRIVER_FEATURES_SEL, select);
            write(0, register::DRIVER_FEATURES, value);
        }
        write(0, register::STATUS, 11);
        equal("Status", read(0, register::STATUS), expected).case(name)?;
    }
    equal("reset", write(0, register::STATUS, 0), 0)
}

/// What makes no queue does not become ready.
fn queue() -> Verdict {
    needed(0)?;
    write(0, register::STATUS, 0);
    equal("QueueNumMax", read(0, register::QUEUE_NUM_MAX), devices::QUEUE_MOST.into())?;
    for (name, size, at, ready) in [
        ("not set", 0, 0x1000, 0),
        ("too large", 512, 0x1000, 0),
        ("no power of two", 12, 0x1000, 0),
        ("not aligned", 16, 0x1008, 0),
        ("fine", 256, 0x1000, 1),
    ] {
        write(0, register::QUEUE_NUM, size);
        write(0, register::QUEUE_DESC, at);
        write(0, register::QUEUE_READY, 1);
        equal("QueueReady", read(0, register::QUEUE_READY), ready).case(name)?;
    }
    equal("reset", write(0, register::STATUS, 0), 0)?;
    equal("QueueReady", read(0, register::QUEUE_READY), 0)
}

pub fn fill(gpa: u64, bytes: u64, seed: u64) {
    (0..bytes).step_by(8).for_each(|at| paging::word(gpa + at).store(seed ^ at, Relaxed));
}

pub fn filled(gpa: u64, bytes: u64, seed: u64) -> Verdict {
    for at in (0..bytes).step_by(8) {
        equal("data", paging::word(gpa + at).load(Relaxed), seed ^ at)?;
    }
    Ok(())
}

/// What is written is read, in whatever pieces; and the disk has a name.
fn write_and_read() -> Verdict {
    const SEED: u64 = 0x0123_4567_89ab_0000;
    let mut disk = start()?;
    let (from, to) = (paging::frame(DATA), paging::frame(DATA + 8));
    let bytes = 16 * SECTOR;
    fill(from, bytes, SEED);
    let half = (bytes / 2) as u32;
    // The second piece begins within a page.
    let pieces = [(from, half, false), (from + u64::from(half), half, false)];
    equal("write", disk.ask((kind::OUT, 8), &pieces)?, OK)?;
    equal("flush", disk.ask((kind::FLUSH, 0), &[])?, OK)?;
    fill(to, bytes, 0);
    let pieces =
        [(to, 100, true), (to + 100, half - 100, true), (to + u64::from(half), half, true)];
    disk.begin(0, (kind::IN, 8), &pieces)?;
    equal("bytes written, and the answer", disk.wait()?, bytes + 1)?;
    equal("read", Disk::answer(0), OK)?;
    filled(to, bytes, SEED)?;
    equal("name", disk.ask((kind::GET_ID, 0), &[(to, 20, true)])?, OK)?;
    equal("disk0", paging::word(to).load(Relaxed), u64::from_le_bytes(*b"disk0\0\0\0"))
}

/// A request in a table of its own.
fn indirect() -> Verdict {
    const SEED: u64 = 0x1de_0000;
    needed(0)?;
    let mut disk = Disk::start(0, 1 << 28)?;
    let (data, header, table) =
        (paging::frame(DATA), paging::frame(DATA + 1), paging::frame(DATA + 2));
    fill(data, SECTOR, SEED);
    for (kind, written) in [(kind::OUT, false), (kind::IN, true)] {
        paging::word(header).store(kind.into(), Relaxed);
        paging::word(header + 8).store(40, Relaxed);
        paging::word(header + 16).store(0xff, Relaxed);
        Disk::describe(table, 0, (header, 16, false), NEXT, 2);
        Disk::describe(table, 2, (data, SECTOR as u32, written), NEXT, 1);
        Disk::describe(table, 1, (header + 16, 1, true), 0, 0);
        Disk::describe(Disk::table(), 5, (table, 48, false), INDIRECT, 0);
        disk.offer(5)?;
        disk.wait()?;
        equal("answer", paging::word(header + 16).load(Relaxed) & 0xff, OK)?;
        filled(data, SECTOR, SEED)?;
        fill(data, SECTOR, if written { SEED } else { 0 });
    }
    Ok(())
}

/// Requests that fail, and change nothing.
fn refused() -> Verdict {
    let mut disk = start()?;
    let (data, sectors) = (paging::frame(DATA), disk.sectors());
    let sector = SECTOR as u32;
    for (name, what, buffers, answer) in [
        ("past the end", (kind::IN, sectors), &[(data, sector, true)][..], IOERR),
        ("across the end", (kind::IN, sectors - 1), &[(data, 2 * sector, true)], IOERR),
        ("far past the end", (kind::OUT, u64::MAX), &[(data, sector, false)], IOERR),
        ("no whole sector", (kind::IN, 0), &[(data, sector - 1, true)], IOERR),
        ("no memory", (kind::OUT, 0), &[(1 << 36, sector, false)], IOERR),
        ("the last address", (kind::OUT, 0), &[(!0 - 4095, sector, false)], IOERR),
        ("no such request", (77, 0), &[], UNSUPP),
        ("the last sector", (kind::IN, sectors - 1), &[(data, sector, true)], OK),
        ("nothing", (kind::IN, sectors), &[], OK),
    ] {
        equal("answer", disk.ask(what, buffers)?, answer).case(name)?;
    }
    equal("Status", disk.status(), 15)
}

/// Ranges are discarded and zeroed, and nothing beside them.
fn erase() -> Verdict {
    const SEED: u64 = 0xe4a5_0000;
    needed(0)?;
    write(0, register::DEVICE_FEATURES_SEL, 0);
    let offered = read(0, register::DEVICE_FEATURES) & (DISCARD | WRITE_ZEROES);
    if offered != DISCARD | WRITE_ZEROES {
        return skip("the machine's disk discards nothing");
    }
    let word = |offset: u64| read(0, register::CONFIG + offset);
    let most = [word(config::MAX_DISCARD_SECTORS), word(config::MAX_WRITE_ZEROES_SECTORS)];
    holds("ranges have a length", most[0] > 0 && most[1] > 0)?;
    equal("max_discard_seg", word(config::MAX_DISCARD_SEG), 1)?;
    equal("max_write_zeroes_seg", word(config::MAX_WRITE_ZEROES_SEG), 1)?;
    let mut disk = Disk::start(0, offered)?;
    let (data, range, sectors) = (paging::frame(DATA), paging::frame(DATA + 1), disk.sectors());
    let bytes = 8 * SECTOR;
    fill(data, bytes, SEED);
    equal("write", disk.ask((kind::OUT, 56), &[(data, bytes as u32, false)])?, OK)?;
    let mut ask = |kind, sector: u64, sectors: u64, flags: u64, len| {
        paging::word(range).store(sector, Relaxed);
        paging::word(range + 8).store(flags << 32 | sectors, Relaxed);
        disk.ask((kind, 0), &[(range, len, false)])
    };
    for (name, kind, sector, count, flags, len, answer) in [
        ("zeros", kind::WRITE_ZEROES, 58, 2, 0, 16, OK),
        ("zeros that need no room", kind::WRITE_ZEROES, 60, 1, 1, 16, OK),
        ("discard", kind::DISCARD, 62, 1, 0, 16, OK),
        ("nothing", kind::DISCARD, sectors, 0, 0, 16, OK),
        ("past the end", kind::DISCARD, sectors, 1, 0, 16, IOERR),
        ("across the end", kind::WRITE_ZEROES, sectors - 1, 2, 0, 16, IOERR),
        ("far past the end", kind::DISCARD, u64::MAX, 1, 0, 16, IOERR),
        ("half a range", kind::DISCARD, 62, 1, 0, 8, IOERR),
        ("two ranges", kind::DISCARD, 62, 1, 0, 32, IOERR),
        ("a flag that discards have not", kind::DISCARD, 56, 1, 1, 16, UNSUPP),
        ("no such flag", kind::WRITE_ZEROES, 56, 1, 2, 16, UNSUPP),
    ] {
        equal("answer", ask(kind, sector, count, flags, len)?, answer).case(name)?;
    }
    equal("read", disk.ask((kind::IN, 56), &[(data, bytes as u32, true)])?, OK)?;
    for at in (0..bytes).step_by(8) {
        // What was discarded reads as anything.
        match at / SECTOR {
            2..=4 => equal("zero", paging::word(data + at).load(Relaxed), 0)?,
            6 => {}
            _ => equal("data", paging::word(data + at).load(Relaxed), SEED ^ at)?,
        }
    }
    Ok(())
}

/// The machine's disk fails sectors 100 (to be read), 101 (to be written) and flushes, if it has the name
/// that says so: the request fails, and nothing else does.
fn machine_errors() -> Verdict {
    let mut disk = start()?;
    let data = paging::frame(DATA);
    if !has_name(&mut disk, *b"failing\0")? {
        return skip("the disk is not one that fails");
    }
    let sector = SECTOR as u32;
    for (name, what, written, answer) in [
        ("a sector that cannot be read", (kind::IN, 100), true, IOERR),
        ("another", (kind::IN, 101), true, OK),
        ("a sector that cannot be written", (kind::OUT, 101), false, IOERR),
        ("another", (kind::OUT, 100), false, OK),
        ("a sector that cannot be read, again", (kind::IN, 100), true, IOERR),
    ] {
        equal("answer", disk.ask(what, &[(data, sector, written)])?, answer).case(name)?;
    }
    equal("flush", disk.ask((kind::FLUSH, 0), &[])?, IOERR)?;
    equal("read", disk.ask((kind::IN, 0), &[(data, sector, true)])?, OK)?;
    equal("Status", disk.status(), 15)
}

fn has_name(disk: &mut Disk, name: [u8; 8]) -> Result<bool, crate::tap::Wrong> {
    let data = paging::frame(DATA);
    equal("name", disk.ask((kind::GET_ID, 0), &[(data, 20, true)])?, OK)?;
    Ok(paging::word(data).load(Relaxed) == u64::from_le_bytes(name))
}

/// The machine's disk stops to answer, if it has the name that says so: a reset waits until that is
/// noticed, and then all requests fail.
fn machine_disk_dies() -> Verdict {
    let mut disk = start()?;
    if !has_name(&mut disk, *b"dying\0\0\0")? {
        return skip("the disk is not one that dies");
    }
    let buffer = [(paging::frame(DATA), 8192, true)];
    for number in 0..5 {
        disk.begin(3 * number, (kind::IN, 0), &buffer)?;
    }
    let before = abi::tsc();
    equal("reset", write(0, register::STATUS, 0), 0)?;
    equal("Status", disk.status(), 0)?;
    let seconds = (abi::tsc() - before) / clock::tsc_hz();
    holds("the reset has waited for 25 to 40 seconds", (25..40).contains(&seconds))?;
    let mut disk = start()?;
    for what in [(kind::IN, 0), (kind::OUT, 0)] {
        let data = (paging::frame(DATA), SECTOR as u32, what.0 == kind::IN);
        equal("answer", disk.ask(what, &[data])?, IOERR)?;
    }
    equal("flush", disk.ask((kind::FLUSH, 0), &[])?, IOERR)
}

/// A disk that may only be read says so, and stays as it is.
fn read_only() -> Verdict {
    needed(1)?;
    write(1, register::DEVICE_FEATURES_SEL, 0);
    equal("RO", read(1, register::DEVICE_FEATURES) & RO, RO)?;
    let mut disk = Disk::start(1, RO)?;
    let data = paging::frame(DATA);
    let read = [(data, SECTOR as u32, true)];
    equal("read", disk.ask((kind::IN, 0), &read)?, OK)?;
    let before = paging::word(data).load(Relaxed);
    fill(data, SECTOR, !before);
    equal("write", disk.ask((kind::OUT, 0), &[(data, SECTOR as u32, false)])?, IOERR)?;
    equal("read again", disk.ask((kind::IN, 0), &read)?, OK)?;
    equal("the first word", paging::word(data).load(Relaxed), before)
}

/// Lets interrupts in until one more than `before` has come, or it is plain that none will.
pub fn let_in(before: usize) -> usize {
    abi::pvcs().enable_interrupts();
    clock::wait(clock::tsc_hz() / 100, || {
        abi::call(call::YIELD, [0; 4]);
        interrupts::count() > before
    });
    abi::pvcs().disable_interrupts();
    interrupts::count() - before
}

/// It interrupts by its line of the I/O APIC.
fn line() -> Verdict {
    needed(1)?;
    let mut disk = Disk::start(1, RO)?;
    let read_one = [(paging::frame(DATA), SECTOR as u32, true)];
    super::devices::route(devices::LINE as u64 + 1, 0x62, 0)?;
    let before = interrupts::count();
    equal("read", disk.ask((kind::IN, 0), &read_one)?, OK)?;
    equal("interrupts", let_in(before) as u64, 1)?;
    equal("vector", interrupts::vector(before), 0x62)?;
    equal("InterruptStatus", read(1, register::INTERRUPT_STATUS), 1)?;
    equal("InterruptACK", write(1, register::INTERRUPT_ACK, 1), 0)?;
    equal("InterruptStatus", read(1, register::INTERRUPT_STATUS), 0)?;
    equal("read", disk.ask((kind::IN, 0), &read_one)?, OK)?;
    equal("another", let_in(before + 1) as u64, 1)?;
    write(1, register::STATUS, 0);
    super::devices::unroute(devices::LINE as u64 + 1)
}

/// It interrupts by a vector, each time unless that is suppressed, and after a reset too.
fn vector() -> Verdict {
    let mut disk = start()?;
    let read_one = [(paging::frame(DATA), SECTOR as u32, true)];
    equal("DEVICE_VECTOR", vector_call(0, 0x61, 0), 0)?;
    for (name, suppressed, expected) in
        [("wanted", false, 1), ("again, without InterruptACK", false, 1), ("suppressed", true, 0)]
    {
        disk.ring.suppress_interrupts(suppressed);
        let before = interrupts::count();
        equal("read", disk.ask((kind::IN, 0), &read_one)?, OK)?;
        equal("interrupts", let_in(before) as u64, expected).case(name)?;
        if expected > 0 {
            equal("vector", interrupts::vector(before), 0x61)?;
        }
    }
    let mut disk = start()?;
    let before = interrupts::count();
    equal("read", disk.ask((kind::IN, 0), &read_one)?, OK)?;
    equal("after a reset", let_in(before) as u64, 1)?;
    equal("DEVICE_VECTOR, none", vector_call(0, 0, 0), 0)?;
    let before = interrupts::count();
    equal("read", disk.ask((kind::IN, 0), &read_one)?, OK)?;
    equal("none", let_in(before) as u64, 0)
}

/// A vCPU that waits goes on when the answer has come.
fn wakes() -> Verdict {
    let mut disk = start()?;
    equal("DEVICE_VECTOR", vector_call(0, 0x63, 0), 0)?;
    for _ in 0..20 {
        let before = interrupts::count();
        disk.begin(0, (kind::IN, 0), &[(paging::frame(DATA), SECTOR as u32, true)])?;
        abi::call(IRQ_HALT, [0; 4]);
        abi::pvcs().disable_interrupts();
        equal("interrupts", (interrupts::count() - before) as u64, 1)?;
        equal("vector", interrupts::vector(before), 0x63)?;
        disk.wait()?;
        equal("answer", Disk::answer(0), OK)?;
    }
    equal("DEVICE_VECTOR, none", vector_call(0, 0, 0), 0)
}

/// Whatever is wrong with the rings, the device stops and can be reset; nothing else happens.
fn broken_rings() -> Verdict {
    let table = Disk::table();
    let buffer = (paging::frame(DATA), 16, false);
    let prepare: [(&'static str, &dyn Fn() -> u16); 6] = [
        ("an index past the queue", &|| SIZE),
        ("a loop", &|| {
            Disk::describe(table, 0, buffer, NEXT, 1);
            Disk::describe(table, 1, buffer, NEXT, 0);
            0
        }),
        ("a next past the queue", &|| {
            Disk::describe(table, 0, buffer, NEXT, SIZE);
            0
        }),
        ("an indirect table in another", &|| {
            Disk::describe(table, 0, (table + 16, 16, false), INDIRECT, 0);
            Disk::describe(table, 1, (table + 16, 16, false), INDIRECT, 0);
            0
        }),
        ("an indirect table where no memory is", &|| {
            Disk::describe(table, 0, (1 << 36, 32, false), INDIRECT, 0);
            0
        }),
        ("no room for an answer", &|| {
            Disk::describe(table, 0, buffer, 0, 0);
            0
        }),
    ];
    for (name, prepare) in prepare {
        let mut disk = start()?;
        let head = prepare();
        disk.offer(head)?;
        equal("Status", disk.status(), 15 | NEEDS_RESET).case(name)?;
        equal("InterruptStatus", read(0, register::INTERRUPT_STATUS), 2).case(name)?;
        disk.offer(head)?;
        equal("reset", write(0, register::STATUS, 0), 0)?;
        equal("Status", disk.status(), 0).case(name)?;
    }
    // More than the queue has room for.
    let mut disk = start()?;
    disk.ring.skip_ahead(SIZE);
    disk.offer(0)?;
    equal("overrun", disk.status(), 15 | NEEDS_RESET)?;
    let fine = start()?.ask((kind::IN, 0), &[(paging::frame(DATA), SECTOR as u32, true)])?;
    equal("read", fine, OK)
}

/// The device keeps out of pages that are the guest's alone.
fn private_pages() -> Verdict {
    crate::extension::enable(Features::PRIVATE)?;
    let mut disk = start()?;
    let page = paging::frame(DATA);
    let convert = |number, page| abi::call(number, [page, 1, 0, 0]);
    fill(page, SECTOR, 7);
    equal("UNSHARE", convert(call::UNSHARE, page), 0)?;
    for (kind, written) in [(kind::IN, true), (kind::OUT, false)] {
        let answer = disk.ask((kind, 0), &[(page, SECTOR as u32, written)])?;
        equal("data", answer, IOERR)?;
    }
    filled(page, SECTOR, 7)?;
    equal("SHARE", convert(call::SHARE, page), 0)?;
    let table = Disk::table();
    equal("UNSHARE", convert(call::UNSHARE, table), 0)?;
    disk.offer(0)?;
    equal("rings", disk.status(), 15 | NEEDS_RESET)?;
    equal("SHARE", convert(call::SHARE, table), 0)?;
    equal("reset", write(0, register::STATUS, 0), 0)
}

/// Requests that are under way at the same time are all answered, each with its own data.
fn several_at_once() -> Verdict {
    let mut disk = start()?;
    let data = |number: u16| paging::frame(DATA + usize::from(number));
    for (kind, written) in [(kind::OUT, false), (kind::IN, true)] {
        for number in 0..5u16 {
            fill(data(number), SECTOR, if written { 0 } else { u64::from(number) << 32 });
            let buffer = [(data(number), SECTOR as u32, written)];
            disk.begin(3 * number, (kind, 50 + u64::from(number)), &buffer)?;
        }
        for _ in 0..5 {
            disk.wait()?;
        }
        for number in 0..5u16 {
            equal("answer", Disk::answer(3 * number), OK)?;
            filled(data(number), SECTOR, u64::from(number) << 32)?;
        }
    }
    Ok(())
}

/// After a reset the device uses no page: all of them may be made private at once.
fn reset() -> Verdict {
    crate::extension::enable(Features::PRIVATE)?;
    let pages = paging::frame(DATA);
    for _ in 0..20 {
        let mut disk = start()?;
        for number in 0..5u16 {
            let at = pages + 4096 * u64::from(number);
            disk.begin(3 * number, (kind::IN, 0), &[(at, 8 * SECTOR as u32, true)])?;
        }
        equal("reset", write(0, register::STATUS, 0), 0)?;
        equal("UNSHARE", abi::call(call::UNSHARE, [pages, 5, 0, 0]), 0)?;
        equal("SHARE", abi::call(call::SHARE, [pages, 5, 0, 0]), 0)?;
    }
    holds("a request after that", start()?.ask((kind::FLUSH, 0), &[])? == OK)
}
