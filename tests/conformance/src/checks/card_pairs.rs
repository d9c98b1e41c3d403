//! Network cards with several pairs of queues: the VM has two vCPUs or more.

use super::{
    cards::{FIRST, SECOND, came, empty, needed},
    disks::let_in,
};
use crate::{
    abi,
    card::{CTRL_VQ, Card, HEADER, MQ, RECEIVE, TRANSMIT},
    entry, interrupts, paging,
    tap::{Case, Verdict, Wrong, equal, holds, skip},
    virtio::{NEEDS_RESET, NEXT, RING_FRAMES, Ring, SIZE, WRITE, read, register, write},
};
use core::sync::atomic::Ordering::Relaxed;
use pv_abi::{
    ext::{call, devices},
    hypercall::EINVAL,
};

/// Both features.
const SEVERAL: u64 = CTRL_VQ | MQ;
/// Frames of check memory behind those of both cards: rings of the second card's further queues, and a page for
/// commands.
const RINGS: usize = 64;
const COMMANDS: usize = RINGS + 3 * RING_FRAMES;
/// Answers to commands.
const OK: u64 = 0;
const ERR: u64 = 1;
/// Protocols.
const TCP: u16 = 6;
const UDP: u16 = 17;
/// Bytes of the frames that are sent.
const LEN: u64 = 100;

/// Pairs that each card has.
pub fn pairs() -> u64 {
    u64::from(entry::boot().vcpus).clamp(1, devices::CARD_PAIRS_MOST as u64)
}

fn doorbell(queue: u64) -> u64 {
    abi::call(call::DOORBELL, [SECOND, queue, 0, 0])
}

/// There are as many as there are vCPUs, and a control queue behind them, for those who accept that.
pub fn offered() -> Verdict {
    needed()?;
    let pairs = pairs();
    write(SECOND, register::DEVICE_FEATURES_SEL, 0);
    let offers = read(SECOND, register::DEVICE_FEATURES) & SEVERAL;
    equal("VIRTIO_NET_F_MQ and CTRL_VQ", offers, if pairs > 1 { SEVERAL } else { 0 })?;
    for (name, features, there) in [
        ("none accepted", 0, 2),
        ("CTRL_VQ accepted", CTRL_VQ, 3),
        ("both accepted", SEVERAL, 2 * pairs + 1),
    ] {
        if features & !offers != 0 {
            continue;
        }
        Card::start(SECOND, features)?;
        for queue in 0..2 * pairs + 3 {
            let exists = queue < there;
            write(SECOND, register::QUEUE_SEL, queue);
            let most = if exists { devices::QUEUE_MOST.into() } else { 0 };
            equal("QueueNumMax", read(SECOND, register::QUEUE_NUM_MAX), most).case(name)?;
            equal("DOORBELL", doorbell(queue), if exists { 0 } else { EINVAL }).case(name)?;
        }
        equal("reset", write(SECOND, register::STATUS, 0), 0)?;
    }
    Ok(())
}

/// A card that sends by its first pair, and one of which two pairs are driven, and the control queue.
struct Two {
    one: Card,
    other: Card,
    /// Frames to come by the other's second pair.
    receive: Ring,
    /// Frames to send by it.
    transmit: Ring,
    control: Ring,
}

fn two() -> Result<Two, Wrong> {
    needed()?;
    if pairs() < 2 {
        return skip("this VM has one vCPU").map(|()| unreachable!("it is skipped"));
    }
    let mut one = Card::start(FIRST, 0)?;
    (0..SIZE).for_each(|number| one.make_room(number, 2048));
    let ring = |number, place: usize| Ring::new(SECOND, number, RINGS + place * RING_FRAMES);
    let (mut receive, transmit) = (ring(2 + RECEIVE, 0), ring(2 + TRANSMIT, 1));
    let control = ring(2 * pairs(), 2);
    let mut other = Card::start_with(SECOND, SEVERAL, [&receive, &transmit, &control])?;
    (0..SIZE / 2).for_each(|number| other.make_room(number, 2048));
    for number in SIZE / 2..SIZE {
        receive.describe(number, other.buffer(number), 2048, WRITE, 0);
        receive.offer(number);
    }
    Ok(Two { one, other, receive, transmit, control })
}

impl Two {
    /// Gives a command of these bytes, and so much room for its answer; the answer, if there is one.
    fn command(&mut self, bytes: &[u8], room: u64) -> Result<Option<u64>, Wrong> {
        let (at, answer) = (paging::frame(COMMANDS), paging::frame(COMMANDS) + 1024);
        paging::write_bytes(at, bytes);
        paging::word(answer).store(0xff, Relaxed);
        let next = if room > 0 { NEXT } else { 0 };
        self.control.describe(0, at, bytes.len() as u64, next, 1);
        self.control.describe(1, answer, room, WRITE, 0);
        self.control.offer(0);
        self.control.ring()?;
        let Some((_, written)) = self.control.take() else { return Ok(None) };
        equal("bytes of the answer", written, 1)?;
        Ok(Some(paging::word(answer).load(Relaxed) & 0xff))
    }

    /// VQ_PAIRS_SET; its answer.
    fn set_pairs(&mut self, pairs: u64) -> Result<u64, Wrong> {
        let answer = self.command(&[4, 0, pairs as u8, (pairs >> 8) as u8], 1)?;
        answer.ok_or(Wrong::differs("commands that were answered", 0, 1))
    }

    /// Sends the other a packet of IPv4: the pair by which it comes.
    fn packet(&mut self, protocol: u16, fragment: u16, ports: [u16; 2]) -> Result<usize, Wrong> {
        self.one.lay_out(self.other.mac(), self.one.mac(), LEN, 1);
        let ip = [0x0800, 0x4500, 86, 7, fragment, 0x4000 | protocol, 0, 0x0a00, 1, 0x0a00, 2];
        self.one.set_halves(HEADER + 12, &ip.map(u16::swap_bytes));
        self.one.set_halves(HEADER + 34, &ports.map(u16::swap_bytes));
        self.sent()
    }

    /// Sends what is laid out: the pair by which it comes. Its buffer is there for others then.
    fn sent(&mut self) -> Result<usize, Wrong> {
        self.one.send(LEN)?;
        let pairs = [&mut self.other.receive, &mut self.receive];
        let mut by = None;
        for (pair, ring) in pairs.into_iter().enumerate() {
            if let Some((number, len)) = ring.take() {
                holds("it comes once", by.is_none())?;
                equal("length", len, HEADER + LEN)?;
                ring.offer(number);
                by = Some(pair);
            }
        }
        by.ok_or(Wrong::differs("frames that have come", 0, 1))
    }

    /// How many of 32 flows come by each pair.
    fn spread(&mut self) -> Result<[u64; 2], Wrong> {
        let mut count = [0; 2];
        for port in 0..32 {
            count[self.packet(TCP, 0, [40_000 + port, 80])?] += 1;
        }
        Ok(count)
    }

    fn by_first(&mut self) -> Verdict {
        equal("flows by the first pair", self.spread()?[0], 32)
    }

    fn by_both(&mut self) -> Verdict {
        let count = self.spread()?;
        holds("both pairs are used", count.iter().all(|&count| count > 0))
    }
}

/// Frames come by as many pairs as the driver has asked to use; by the first until then, and when it was reset.
pub fn asked() -> Verdict {
    let mut cards = two()?;
    cards.by_first()?;
    for (pairs, several) in [(2, true), (1, false), (2, true)] {
        equal("VQ_PAIRS_SET", cards.set_pairs(pairs)?, OK)?;
        if several { cards.by_both() } else { cards.by_first() }.case("VQ_PAIRS_SET")?;
    }
    two()?.by_first().case("after a reset")
}

/// A command that is none, or cannot be, is answered so, and changes nothing; one that cannot be answered stops the
/// card.
pub fn commands() -> Verdict {
    let mut cards = two()?;
    equal("VQ_PAIRS_SET", cards.set_pairs(2)?, OK)?;
    for number in [0, pairs() + 1, 0x101, 0x8000, 0xffff] {
        equal("VQ_PAIRS_SET", cards.set_pairs(number)?, ERR)?;
    }
    for bytes in [&[4, 1, 1, 0][..], &[0, 0, 1], &[4, 0, 1], &[4, 0, 1, 0, 0], &[0; 1000]] {
        equal("answer", cards.command(bytes, 1)?.unwrap_or(!0), ERR)?;
    }
    cards.by_both()?;
    equal("VQ_PAIRS_SET, more room", cards.command(&[4, 0, 1, 0], 9)?.unwrap_or(!0), OK)?;
    cards.by_first()?;
    equal("Status", cards.other.status(), 15)?;
    equal("answered", cards.command(&[4, 0, 2, 0], 0)?.is_some().into(), 0)?;
    equal("Status", cards.other.status(), 15 | NEEDS_RESET)
}

/// All frames of a flow come by one pair.
pub fn flows() -> Verdict {
    let mut cards = two()?;
    equal("VQ_PAIRS_SET", cards.set_pairs(2)?, OK)?;
    let mut by = [0; 16];
    for round in 0..5 {
        for (port, by) in (0..).zip(&mut by) {
            let pair = cards.packet(TCP, 0x4000, [port, 80])?;
            if round > 0 {
                equal("the pair of a flow", pair as u64, *by as u64)?;
            }
            *by = pair;
        }
    }
    // Fragments have no ports, but for the first; and a datagram may be one of several.
    for (name, protocol) in [("TCP", TCP), ("UDP", UDP)] {
        let first = cards.packet(protocol, 0x2000, [1, 2])?;
        for (port, fragment) in (0..10).map(|port| (port, 0x2000)).chain([(3, 5), (4, 6)]) {
            let pair = cards.packet(protocol, fragment, [port, 80])?;
            equal("the pair of fragments", pair as u64, first as u64).case(name)?;
        }
        if protocol == UDP {
            let pair = cards.packet(UDP, 0, [7, 8])?;
            equal("the pair of a datagram", pair as u64, first as u64)?;
        }
    }
    for _ in 0..4 {
        cards.one.lay_out(cards.other.mac(), cards.one.mac(), LEN, 9);
        equal("the pair of others", cards.sent()? as u64, 0)?;
    }
    Ok(())
}

/// Each pair sends, whatever pairs frames come by.
pub fn both_send() -> Verdict {
    let mut cards = two()?;
    let to = cards.one.mac();
    for seed in 1..6 {
        cards.other.send_to(to, LEN, seed)?;
        came(&mut cards.one)?.judge(LEN, seed)?;
        cards.other.lay_out(to, cards.other.mac(), LEN, 10 + seed);
        cards.transmit.describe(0, cards.other.page(), HEADER + LEN, 0, 0);
        cards.transmit.offer(0);
        cards.transmit.ring()?;
        holds("the frame is taken", cards.transmit.take().is_some())?;
        came(&mut cards.one)?.judge(LEN, 10 + seed)?;
        empty(&mut cards.one)?;
    }
    equal("NO_NOTIFY", cards.receive.used_flags(), 1)?;
    equal("of frames to send", cards.transmit.used_flags(), 0)?;
    equal("of commands", cards.control.used_flags(), 0)
}

/// Each queue of a pair may have a vector of its own.
pub fn vectors() -> Verdict {
    two()?;
    let device_vector =
        |vector| equal("DEVICE_VECTOR", abi::call(call::DEVICE_VECTOR, [SECOND, vector, 0, 0]), 0);
    device_vector(0x61)?;
    for (queue, vector) in [(RECEIVE, 0x65), (2 + TRANSMIT, 0x66), (2 * pairs(), 0x67)] {
        let arguments = [SECOND, queue << 8 | vector, 0, 0];
        equal("QUEUE_VECTOR", abi::call(call::QUEUE_VECTOR, arguments), 0)?;
    }
    let none = [SECOND, (2 * pairs() + 1) << 8 | 0x65, 0, 0];
    equal("QUEUE_VECTOR, no such queue", abi::call(call::QUEUE_VECTOR, none), EINVAL)?;
    let mut cards = two()?;
    let told = |work: &mut dyn FnMut() -> Verdict, vector: u64| {
        let before = interrupts::count();
        work()?;
        equal("interrupts", let_in(before) as u64, 1)?;
        equal("vector", interrupts::vector(before), vector)
    };
    let to = cards.other.mac();
    told(&mut || cards.one.send_to(to, LEN, 1), 0x65)?;
    let transmit = &mut cards.transmit;
    transmit.describe(0, cards.other.page(), HEADER + LEN, 0, 0);
    transmit.offer(0);
    told(&mut || transmit.ring(), 0x66)?;
    told(&mut || cards.set_pairs(2).map(drop), 0x67)?;
    equal("InterruptStatus", read(SECOND, register::INTERRUPT_STATUS), 0)?;
    device_vector(0)
}

/// A queue of the second pair that is broken stops the card, with all its queues.
pub fn broken() -> Verdict {
    let mut cards = two()?;
    cards.transmit.offer(SIZE);
    cards.transmit.ring()?;
    equal("Status", cards.other.status(), 15 | NEEDS_RESET)?;
    let to = cards.other.mac();
    cards.one.send_to(to, LEN, 1)?;
    empty(&mut cards.other)?;
    let mut cards = two()?;
    cards.one.send_to(to, LEN, 2)?;
    came(&mut cards.other)?.judge(LEN, 2)
}
