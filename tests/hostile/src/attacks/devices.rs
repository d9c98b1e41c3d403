//! Attacks on virtio devices by their registers: any access, and queues of any size, anywhere.
//! May: nothing. Context: any. Input: random.

use super::{frames, packets, pairs, requests, rings_smp};
use crate::{
    judge::{Group, Rounds, attack},
    runtime::{
        abi::{self, pvcs},
        counters::Reason,
        memory, piece,
        trial::{Mode, Trial, Way},
        virtio::{self, DATA, Device, RUNNING, SEVERAL, fuzzed, read, write},
    },
};
use hostile::values;
use pv_abi::{
    event::BP,
    ext::{
        Features, call,
        devices::{BASE, QUEUE_MOST, SLOTS, STRIDE},
    },
    hypercall::EINVAL,
    virtio::{
        block::feature::MQ,
        mmio,
        net::{self, config, feature::CTRL_VQ},
        status, vsock,
    },
};
use suite::{
    holds,
    random::Random,
    same,
    verdict::{Case, Verdict},
};

pub const GROUP: Group = Group {
    name: "devices",
    attacks: &[
        attack("calls", "VIO-1 VIO-2 XHC-23 XHC-24 XHC-25 XHC-26 XHC-27", 45, calls),
        attack("memory", "DEV-9 VIO-1 VIO-2", 50, in_memory),
        attack("set_up", "VIO-3 VIO-5 BLK-6 NET-10", 20, set_up),
        attack("requests", "VIO-5 BLK-1 BLK-2", 40, requests::any),
        attack("floods", "VIO-5 BLK-2", 2, requests::floods),
        attack("resets", "VIO-6", 4, requests::resets),
        attack("tables", "MMU-5 PVCS-3 BLK-1", 2, requests::over_tables),
        attack("frames", "VIO-5 NET-2 NET-3", 50, frames::sent),
        attack("buffers", "VIO-5 NET-4 NET-6", 30, frames::received),
        attack("pairs", "VIO-5 NET-10 NET-11", 40, pairs::pairs),
        attack("entropy", "VIO-5 RNG-1", 20, packets::entropy),
        attack("packets", "VIO-5 VSK-2 VSK-3", 40, packets::packets),
        attack("rewritten", "VIO-5 VIO-6 BLK-6 NET-10", 40, rings_smp::rewritten),
        attack("endless", "VIO-5", 1, rings_smp::endless),
    ],
};

/// Makes an attack while all that is not an attack's own memory is kept from devices: what they would do
/// there, they must not.
pub(super) fn shielded(rounds: &mut Rounds, body: impl FnOnce(&mut Rounds) -> Verdict) -> Verdict {
    let enabled = abi::call1(call::ENABLE, (Features::PRIVATE | Features::DEVICES).bits().into());
    same!(enabled, 0, "ENABLE");
    let pages = memory::frame(0) / 4096;
    same!(abi::call(call::UNSHARE, [0, pages, 0, 0]), 0, "UNSHARE");
    virtio::reset_items();
    let verdict = body(rounds);
    same!(abi::call(call::SHARE, [0, pages, 0, 0]), 0, "SHARE");
    // Nothing of the devices' is left, and nothing comes of them any more.
    for slot in 0..SLOTS as u64 {
        abi::call(call::DEVICE_VECTOR, [slot, 0, 0, 0]);
        write(slot, mmio::STATUS, 0);
    }
    verdict
}

/// A guest-physical address of any kind.
pub(super) fn address(random: &mut Random) -> u64 {
    let near = random.below(4096);
    match random.below(10) {
        0..4 => memory::frame(random.below(DATA + 16)) + (near & !random.pick(&[0, 15, 511, 4095])),
        // Across the end of memory, and behind it.
        4 => memory::memory() + near - 2048,
        // What is private: code, canaries, tables, the PVCS.
        5 => random.below(memory::frame(0)),
        6 => random.pick(&[pvcs().address(), memory::kernel_root(), memory::jail()]) + near,
        // What is no memory: devices.
        7 => random.pick(&[BASE, 0xfec0_0000, 0xfee0_0000, 1 << 36, 1 << 52]) + near,
        8 => u64::MAX - near,
        _ => values::number(random),
    }
}

/// The offset of a register, or of none.
fn offset(random: &mut Random) -> u64 {
    match random.below(16) {
        0 => values::number(random),
        1 => random.below(STRIDE),
        2..5 => mmio::CONFIG + random.below(64),
        _ => 4 * random.below(mmio::CONFIG / 4),
    }
}

/// What is written there.
fn value(random: &mut Random, offset: u64) -> u64 {
    let sane = match offset {
        mmio::STATUS => &[0, 11, RUNNING, RUNNING, RUNNING, 0xff][..],
        mmio::QUEUE_SEL | mmio::QUEUE_NOTIFY => &[0, 1, 2],
        mmio::QUEUE_NUM => &[0, 1, 2, 255, 256, 257, 512],
        mmio::DEVICE_FEATURES_SEL | mmio::DRIVER_FEATURES_SEL => &[0, 1, 2],
        mmio::DRIVER_FEATURES => &[0, 1, 1 << 28],
        mmio::QUEUE_READY => &[0, 1],
        _ => &[],
    };
    match (sane, random.below(4)) {
        (&[], 0..3) => address(random) & 0xffff_ffff,
        (sane, 0..3) => random.pick(sane),
        _ => values::number(random),
    }
}

/// Any calls with any arguments.
fn calls(rounds: &mut Rounds) -> Verdict {
    let [card, _] = virtio::cards()?;
    let disk = virtio::disk()?;
    shielded(rounds, |rounds| {
        let mut answers = [0_u64; 2];
        let mut stopped = 0_u64;
        while let Some(round) = rounds.next() {
            if round % 16 == 0 {
                // By calls alone a queue would hardly ever come about.
                let random = &mut rounds.random;
                let device = random.pick(&[card, disk]);
                device.negotiate(random.bits())?;
                let parts = core::array::from_fn(|_| address(random) & !15);
                device.ring(0).set_up(256, parts)?;
            }
            for _ in 0..8 {
                let refused = one_call(&mut rounds.random).case(format_args!("round {round}"))?;
                answers[usize::from(refused)] += 1;
            }
            let slot = rounds.random.below(4);
            let status = read(slot, mmio::STATUS);
            if status != EINVAL && status & u64::from(status::DEVICE_NEEDS_RESET) != 0 {
                stopped += 1;
                write(slot, mmio::STATUS, 0);
            }
        }
        let least = answers[0].min(answers[1]);
        holds!(least >= rounds.count / 2, "answers {answers:?}: served, refused");
        holds!(stopped > 0 || rounds.count < 1 << 14, "no device has stopped");
        rounds.entered(Reason::Hypercall, 8 * rounds.count)
    })
}

/// True if it was refused.
fn one_call(random: &mut Random) -> Verdict<bool> {
    fuzzed(1);
    let slot = if random.once_in(8) { values::number(random) } else { random.below(4) };
    let offset = offset(random);
    let aligned = offset.is_multiple_of(4) && slot < SLOTS as u64;
    let answer = match random.below(8) {
        0..3 => {
            let answer = read(slot, offset);
            holds!(answer >> 32 == 0 || answer == EINVAL, "{slot}, {offset:#x} reads {answer:#x}");
            holds!(aligned || answer == EINVAL, "{slot}, {offset:#x} is no register to read");
            answer
        }
        3..6 => {
            let value = value(random, offset);
            let answer = write(slot, offset, value);
            let fine = aligned && value >> 32 == 0;
            holds!(answer == 0 && fine || answer == EINVAL, "{slot}, {offset:#x}: {answer:#x}");
            answer
        }
        6 => {
            let queue = random.pick(&[0, 1, 2, 4, 5, 0x1_0000_0000, u64::MAX]);
            let answer = abi::call(call::DOORBELL, [slot, queue, 0, 0]);
            // What a driver has accepted is left to chance.
            let queues = match u32::try_from(read(slot, mmio::DEVICE_ID)) {
                Ok(net::DEVICE) => 5,
                Ok(vsock::DEVICE) => 3,
                _ => 2,
            };
            let fine = queue < queues && slot < SLOTS as u64;
            holds!(answer == 0 && fine || answer == EINVAL, "queue {queue}: {answer:#x}");
            answer
        }
        _ => {
            // Vectors that nobody takes for exceptions.
            let vector = random.pick(&[0, 1, 15, 32, 0x51, 255, 256, u64::MAX]);
            let vcpu = random.pick(&[0, 0, 1, 32, u64::MAX]);
            let fine = (vector == 0 || (16..256).contains(&vector)) && vcpu < 2;
            if random.once_in(2) {
                // What is too large for a vector is part of the queue's number.
                let queue = random.pick(&[0, 1, 2, 3, 0xff, u64::MAX >> 8]);
                let second = queue << 8 | vector;
                let answer = abi::call(call::QUEUE_VECTOR, [slot, second, vcpu, 0]);
                let fine = !(1..16).contains(&(second & 0xff)) && vcpu < 2 && second >> 8 < 5;
                holds!(
                    answer == 0 && fine || answer == EINVAL,
                    "queue vector {second:#x}: {answer:#x}"
                );
                return Ok(answer == EINVAL);
            }
            let answer = abi::call(call::DEVICE_VECTOR, [slot, vector, vcpu, 0]);
            holds!(answer == 0 && fine || answer == EINVAL, "vector {vector}: {answer:#x}");
            answer
        }
    };
    Ok(answer == EINVAL)
}

/// Slots, offsets, widths and ways that are gone through one by one.
const PLACES: u64 = 4 * 0x200 * 4 * 2;

/// Accesses to memory, of each width at each offset, then of any at any. A load reads what a call says, or
/// ones; a store that is no 32-bit word's changes nothing.
fn in_memory(rounds: &mut Rounds) -> Verdict {
    let [card, _] = virtio::cards()?;
    let disk = virtio::disk()?;
    memory::reset_pages(|| 0);
    for slot in 0..4 {
        let leaf = memory::leaf(memory::FREE_PAGE + slot as usize);
        leaf.store(memory::data_page(BASE + slot * STRIDE), core::sync::atomic::Ordering::Relaxed);
    }
    memory::flush();
    shielded(rounds, |rounds| {
        while let Some(round) = rounds.next() {
            let random = &mut rounds.random;
            let place = if round < PLACES { round } else { random.below(8 * PLACES) };
            let (slot, width, stores) = (place % 4, 1 << (place / 4 % 4), place / 16 % 2 == 1);
            let offset = (place / 32 % STRIDE).min(STRIDE - width);
            if round % 64 == 0 {
                random.pick(&[card, disk]).negotiate(random.bits())?;
            }
            let value = if stores { value(random, offset) } else { random.bits() };
            let code = match (width, stores) {
                (1, false) => piece::load_8(),
                (2, false) => piece::load_16(),
                (4, false) => piece::load_32(),
                (_, false) => piece::load(),
                (1, true) => piece::store_8(),
                (2, true) => piece::store_16(),
                (4, true) => piece::store_32(),
                (_, true) => piece::store(),
            };
            let expected = expected(slot, offset, width);
            let before = read(slot, mmio::STATUS);
            let at = memory::area(memory::FREE_PAGE + slot as usize) + offset;
            let mode = random.pick(&[Mode::User, Mode::Supervisor]);
            let left = Trial::of(mode, code).with(|r| (r.rbx, r.rax) = (at, value)).run();
            fuzzed(1);
            same!(left.way, Way::Event(BP), "slot {slot}, {offset:#x}, {width} bytes");
            let found = left.registers.rax & u64::MAX >> (64 - 8 * width);
            if !stores {
                same!(found, expected, "slot {slot}, {offset:#x}, {width} bytes read");
            } else if width != 4 || !offset.is_multiple_of(4) {
                same!(read(slot, mmio::STATUS), before, "Status after {width} at {offset:#x}");
            }
        }
        rounds.entered(Reason::Mmio, rounds.count)
    })
}

/// What memory reads there, by calls.
fn expected(slot: u64, offset: u64, width: u64) -> u64 {
    let ones = u64::MAX >> (64 - 8 * width);
    let within = offset % 4;
    let whole = width == 4 && within == 0;
    let part = offset >= mmio::CONFIG && within + width <= 4;
    match read(slot, offset - within) {
        word if word != EINVAL && (whole || part) => word >> (8 * within) & ones,
        _ => ones,
    }
}

/// Whether a queue of these can be, by the rules.
fn can_be(size: u64, [table, driver, device]: [u64; 3]) -> bool {
    let fits = |at: u64, align: u64, bytes: u64| {
        at.is_multiple_of(align) && at.checked_add(bytes).is_some()
    };
    size.is_power_of_two()
        && size <= QUEUE_MOST.into()
        && fits(table, 16, 16 * size)
        && fits(driver, 2, 6 + 2 * size)
        && fits(device, 4, 6 + 8 * size)
}

/// A device may look at `bytes` from `at` on.
fn is_open(at: u64, bytes: u64) -> bool {
    at >= memory::frame(0) && at < memory::memory() && at + bytes <= memory::memory()
}

/// Queues of any size, anywhere, over one another, set up again while in use, and kicks of those that
/// there are not.
fn set_up(rounds: &mut Rounds) -> Verdict {
    let [card, _] = virtio::cards()?;
    let disk = virtio::disk()?;
    shielded(rounds, |rounds| {
        let (mut ready, mut stopped) = (0_u64, 0_u64);
        while let Some(round) = rounds.next() {
            let random = &mut rounds.random;
            let device = random.pick(&[card, disk]);
            let case = set_up_one(random, device).case(format_args!("round {round}"))?;
            ready += u64::from(case.is_ready);
            stopped += u64::from(case.has_stopped);
        }
        let enough = ready > rounds.count / 16 && stopped > rounds.count / 64;
        holds!(enough, "{ready} queues became ready, {stopped} devices stopped");
        Ok(())
    })
}

struct SetUp {
    is_ready: bool,
    has_stopped: bool,
}

fn set_up_one(random: &mut Random, device: Device) -> Verdict<SetUp> {
    let features = random.bits();
    device.negotiate(features)?;
    write(device.slot, mmio::DEVICE_FEATURES_SEL, 0);
    let accepted = read(device.slot, mmio::DEVICE_FEATURES) & features;
    let is_card = read(device.slot, mmio::DEVICE_ID) == 1;
    let pairs = device.config(config::MAX_VIRTQUEUE_PAIRS) & 0xffff;
    let queues = match (is_card, accepted & SEVERAL) {
        (true, SEVERAL) => 2 * pairs + 1,
        (true, CTRL_VQ) => 3,
        (true, _) => 2,
        (false, _) if accepted & MQ != 0 => 2,
        (false, _) => 1,
    };
    let number = random.below(if is_card { 5 } else { 2 });
    let exists = number < queues;
    let ring = device.ring(number);
    ring.clear();
    let size = random.pick(&[0, 1, 2, 3, 16, 256, 257, 512, 0x8000_0000, 0xffff_ffff]);
    let aligned = random.pick(&[15, 15, 15, 0]);
    let parts = core::array::from_fn(|_| address(random) & !aligned);
    fuzzed(5);
    ring.set_up(size, parts)?;
    let is_ready = exists && can_be(size, parts);
    let found = read(device.slot, mmio::QUEUE_READY);
    same!(found, u64::from(is_ready), "QueueReady with size {size:#x}, {parts:x?}");
    write(device.slot, mmio::STATUS, RUNNING);
    for queue in [number, number ^ 1, 2 + random.below(100)] {
        let there = queue < queues;
        let answer = abi::call(call::DOORBELL, [device.slot, queue, 0, 0]);
        same!(answer, if there { 0 } else { EINVAL }, "DOORBELL of queue {queue}");
    }
    // One in use stays as it is, whatever is written.
    if is_ready && random.once_in(2) {
        let parts = core::array::from_fn(|_| address(random));
        fuzzed(5);
        ring.set_up(size, parts)?;
        same!(read(device.slot, mmio::QUEUE_READY), 1, "QueueReady, once more");
        write(device.slot, mmio::QUEUE_NOTIFY, number);
    }
    // The available ring's index is looked at first; of frames to come it is not, but a flag is set.
    let commands = accepted & CTRL_VQ != 0 && number + 1 == queues;
    let receives = exists && is_card && number.is_multiple_of(2) && !commands;
    let looked_at = if receives { parts[2] } else { parts[1] + 2 };
    let has_stopped = device.needs_reset();
    if is_ready {
        holds!(has_stopped || is_open(looked_at, 2), "rings {parts:x?} are out of reach");
    } else {
        holds!(!has_stopped, "it stopped without a queue");
    }
    Ok(SetUp { is_ready, has_stopped })
}
