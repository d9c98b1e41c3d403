//! Network cards. Slots 2 and 3 hold two that are on one network with no others; without them their checks
//! are skipped.

use super::{Group, Setting, card_pairs, check};
use crate::{
    abi,
    card::{
        CSUM, Came, Card, GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, HEADER, HOST_TSO4, HOST_TSO6, MAC,
        MRG_RXBUF, MTU, NEEDS_CSUM, RECEIVE, SPACER, STATUS, TRANSMIT, content,
    },
    interrupts, paging,
    tap::{Case, Verdict, Wrong, equal, holds, skip},
    virtio::{INDIRECT, NEEDS_RESET, NEXT, SIZE, WRITE, read, register, write},
};
use core::sync::atomic::Ordering::Relaxed;
use pv_abi::{
    ext::{Features, call},
    hypercall::EINVAL,
};

pub const GROUP: Group = Group {
    name: "card",
    setting: Setting::Feature(Features::DEVICES),
    checks: &[
        check("identity", "NET-1 VIO-3", identity),
        check("both_ways", "NET-1 NET-2", both_ways),
        check("groups", "NET-2", groups),
        check("nobody", "NET-2", nobody),
        check("spoofed", "NET-3", spoofed),
        check("malformed", "NET-3", malformed),
        check("no_room", "NET-4", no_room),
        check("checksums", "NET-5", checksums),
        check("merged", "NET-6", merged),
        check("one_chain", "NET-6", one_chain),
        check("segments", "NET-8", segments),
        check("spacer", "NET-9", spacer),
        check("no_segments", "NET-8 NET-3", no_segments),
        check("silence", "NET-7", silence),
        check("interrupts", "VIO-4", both_interrupt),
        check("broken", "VIO-5", broken),
        check("private_pages", "VIO-5", private_pages),
        check("reset", "VIO-6", reset),
        check("pairs", "NET-10 VIO-3 XHC-25", card_pairs::offered),
        check("pairs_asked", "NET-10", card_pairs::asked),
        check("pairs_commands", "NET-10", card_pairs::commands),
        check("pairs_flows", "NET-11", card_pairs::flows),
        check("pairs_send", "NET-10 NET-2 NET-7", card_pairs::both_send),
        check("pairs_vectors", "NET-10 XHC-27 VIO-4", card_pairs::vectors),
        check("pairs_broken", "NET-10 VIO-5 VIO-6", card_pairs::broken),
    ],
};

pub const FIRST: u64 = 2;
pub const SECOND: u64 = 3;
/// Everybody.
const ALL: u64 = 0xffff_ffff_ffff;

/// Skips a check without both cards.
pub fn needed() -> Verdict {
    for slot in [FIRST, SECOND] {
        if read(slot, register::DEVICE_ID) != 1 {
            return skip("the slots hold no network cards");
        }
    }
    Ok(())
}

/// Both cards, each with room for four frames.
fn start(features: u64) -> Result<[Card; 2], Wrong> {
    needed()?;
    let mut cards = [Card::start(FIRST, features)?, Card::start(SECOND, features)?];
    for card in &mut cards {
        (0..4).for_each(|number| card.make_room(number, 2048));
    }
    Ok(cards)
}

/// Nothing has come.
pub fn empty(card: &mut Card) -> Verdict {
    holds("nothing has come", card.came().is_none())
}

/// What has come.
pub fn came(card: &mut Card) -> Result<Came, Wrong> {
    card.came().ok_or(Wrong::differs("frames that have come", 0, 1))
}

fn identity() -> Verdict {
    needed()?;
    let mut macs = [0; 2];
    for (slot, mac) in [FIRST, SECOND].into_iter().zip(&mut macs) {
        write(slot, register::STATUS, 0);
        write(slot, register::DEVICE_FEATURES_SEL, 0);
        let segments = HOST_TSO4 | HOST_TSO6 | GUEST_TSO4 | GUEST_TSO6;
        let wanted = CSUM | GUEST_CSUM | MTU | MAC | MRG_RXBUF | STATUS | segments;
        let found = read(slot, register::DEVICE_FEATURES);
        equal("features", found & wanted, wanted)?;
        let word = |at| read(slot, register::CONFIG + at);
        equal("link up", word(4) >> 16, 1)?;
        equal("pairs of queues", word(8) & 0xffff, card_pairs::pairs())?;
        equal("MTU", word(8) >> 16, 1500)?;
        *mac = word(0) | (word(4) & 0xffff) << 32;
        equal("the group bit", *mac & 1, 0)?;
        for (queue, most) in [(RECEIVE, 256), (TRANSMIT, 256), (2, 0)] {
            write(slot, register::QUEUE_SEL, queue);
            equal("QueueNumMax", read(slot, register::QUEUE_NUM_MAX), most)?;
        }
        let doorbell = |queue| abi::call(call::DOORBELL, [slot, queue, 0, 0]);
        equal("DOORBELL, not set up", doorbell(TRANSMIT), 0)?;
        equal("DOORBELL, no such queue", doorbell(2), EINVAL)?;
    }
    holds("addresses differ", macs[0] != macs[1])
}

/// Frames of any length arrive as they were sent, in their order, with a header that says so.
fn both_ways() -> Verdict {
    for (from, to) in [(0, 1), (1, 0)] {
        let mut cards = start(0)?;
        let (mac, own) = (cards[to].mac(), cards[from].mac());
        for (seed, len) in [(1, 60), (2, 1514), (3, 14), (4, 1001)] {
            cards[from].send_to(mac, len, seed)?;
            let came = came(&mut cards[to])?;
            came.judge(len, seed)?;
            equal("flags", came.half(0), 0)?;
            equal("num_buffers", came.half(10), 1)?;
            for half in 0..3 {
                equal("to", came.half(HEADER + 2 * half), mac >> (16 * half) & 0xffff)?;
                equal("from", came.half(HEADER + 6 + 2 * half), own >> (16 * half) & 0xffff)?;
            }
        }
        empty(&mut cards[from])?;
        empty(&mut cards[to])?;
    }
    Ok(())
}

/// What is for a group comes to all others, and not to its sender.
fn groups() -> Verdict {
    let [mut one, mut other] = start(0)?;
    // The lowest byte comes first: all, 01:00:5e:00:00:01, 33:33:00:00:00:01.
    for (seed, group) in [(5, ALL), (6, 0x0100_005e_0001), (7, 0x0100_0000_3333)] {
        one.send_to(group, 100, seed)?;
        came(&mut other)?.judge(100, seed)?;
        empty(&mut one)?;
    }
    Ok(())
}

/// What is for nobody here, or for its sender, comes to nobody.
fn nobody() -> Verdict {
    let [mut one, mut other] = start(0)?;
    for to in [other.mac() ^ 0x8000_0000, one.mac(), 0] {
        one.send_to(to, 100, 8)?;
        empty(&mut one)?;
        empty(&mut other)?;
    }
    one.send_to(other.mac(), 100, 9)?;
    came(&mut other)?.judge(100, 9)
}

/// Nobody sends in another's name.
fn spoofed() -> Verdict {
    let [mut one, mut other] = start(0)?;
    let to = other.mac();
    for from in [to, one.mac() ^ 1 << 40, ALL, 0] {
        one.lay_out(to, from, 100, 10);
        one.send(100)?;
        one.lay_out(ALL, from, 100, 10);
        one.send(100)?;
        empty(&mut other)?;
    }
    one.send_to(to, 100, 11)?;
    came(&mut other)?.judge(100, 11)
}

/// What is no frame is taken, and nothing comes of it.
fn malformed() -> Verdict {
    let [mut one, mut other] = start(CSUM)?;
    let (to, page) = (other.mac(), one.page());
    let set = |at: u64, value: u16| paging::half(page + at).store(value, Relaxed);
    let lay_out = |one: &Card| one.lay_out(to, one.mac(), 100, 12);
    for (name, len) in [("no header", 8), ("no frame", 12), ("13 bytes", 25), ("too long", 1531)] {
        lay_out(&one);
        one.transmit.describe(0, page, len, 0, 0);
        one.transmit.offer(0);
        one.transmit.ring()?;
        one.wait_sent()?;
        holds("nothing has come", other.came().is_none()).case(name)?;
    }
    for (name, start, offset) in
        [("the header's", 13, 0), ("past the end", 14, 85), ("far past it", 0xffff, 0xffff)]
    {
        lay_out(&one);
        set(0, NEEDS_CSUM);
        set(6, start);
        set(8, offset);
        one.send(100)?;
        holds("nothing has come", other.came().is_none()).case(name)?;
    }
    lay_out(&one);
    // Segments were not accepted.
    set(0, 1 << 8);
    one.send(100)?;
    empty(&mut other)?;
    one.transmit.describe(0, 1 << 36, 100, 0, 0);
    one.transmit.offer(0);
    one.transmit.ring()?;
    one.wait_sent()?;
    empty(&mut other)?;
    equal("Status", one.status(), 15)?;
    one.send_to(to, 100, 13)?;
    came(&mut other)?.judge(100, 13)
}

/// A receiver without buffers loses frames; the sender does not notice.
fn no_room() -> Verdict {
    let [mut one, mut other] = start(0)?;
    let to = other.mac();
    for seed in 20..30 {
        one.send_to(to, 100, seed)?;
    }
    for seed in 20..24 {
        came(&mut other)?.judge(100, seed)?;
    }
    empty(&mut other)?;
    other.make_room(0, 2048);
    one.send_to(to, 100, 31)?;
    came(&mut other)?.judge(100, 31)
}

/// A checksum that is left undone stays so for who takes that, and is completed for who does not.
fn checksums() -> Verdict {
    const START: u64 = 34;
    const OFFSET: u64 = 6;
    for (features, flags) in [(CSUM | GUEST_CSUM, 1), (CSUM, 0)] {
        let [mut one, mut other] = start(features)?;
        one.lay_out(other.mac(), one.mac(), 101, 40);
        let set = |at: u64, value: u16| paging::half(one.page() + at).store(value, Relaxed);
        set(0, NEEDS_CSUM);
        set(6, START as u16);
        set(8, OFFSET as u16);
        // The byte after the last one must not count.
        set(HEADER + 100, content(40, 50) & 0xff | 0x5500);
        let place = START + OFFSET;
        let words = (START / 2..50).map(|half| content(40, half).swap_bytes());
        let sum =
            words.map(u64::from).sum::<u64>() + u64::from(content(40, 50).to_le_bytes()[0]) * 256;
        one.send(101)?;
        let came = came(&mut other)?;
        equal("length", came.len, HEADER + 101)?;
        equal("flags", came.half(0), flags)?;
        let found = came.half(HEADER + place);
        if flags == 1 {
            equal("start", came.half(6), START)?;
            equal("offset", came.half(8), OFFSET)?;
            equal("as it was", found, content(40, place / 2).into())?;
        } else {
            let folded = (0..4).fold(sum, |sum, _| (sum & 0xffff) + (sum >> 16));
            equal("complete", (found as u16).swap_bytes().into(), !folded & 0xffff)?;
        }
        for half in (7..50).filter(|half| 2 * half != place) {
            equal("content", came.half(HEADER + 2 * half), content(40, half).into())?;
        }
    }
    // A card that was not told of checksums left undone takes none.
    let [mut one, mut other] = start(GUEST_CSUM)?;
    one.lay_out(other.mac(), one.mac(), 100, 41);
    paging::half(one.page()).store(NEEDS_CSUM, Relaxed);
    paging::half(one.page() + 6).store(34, Relaxed);
    one.send(100)?;
    empty(&mut other)
}

/// A frame is spread over several buffers, all of which are used at once.
fn merged() -> Verdict {
    needed()?;
    let mut one = Card::start(FIRST, MRG_RXBUF)?;
    let mut other = Card::start(SECOND, MRG_RXBUF)?;
    let room = 400;
    (0..4).for_each(|number| other.make_room(number, room));
    let to = other.mac();
    one.send_to(to, 1000, 50)?;
    let mut at = 0;
    for number in 0..3 {
        let came = came(&mut other)?;
        if number == 0 {
            equal("num_buffers", came.half(10), 3)?;
        }
        equal("length", came.len, (HEADER + 1000 - at).min(room))?;
        for half in (0..came.len / 2).filter(|half| at + 2 * half >= HEADER + 14) {
            let word = (at + 2 * half - HEADER) / 2;
            equal("content", came.half(2 * half), content(50, word).into())?;
        }
        at += room;
    }
    empty(&mut other)?;
    // It does not fit into what is left, which stays.
    one.send_to(to, 1000, 51)?;
    empty(&mut other)?;
    one.send_to(to, 100, 52)?;
    came(&mut other)?.judge(100, 52)
}

/// Without that feature a frame goes into one chain, of several pieces maybe, or nowhere.
fn one_chain() -> Verdict {
    needed()?;
    let mut one = Card::start(FIRST, 0)?;
    let mut other = Card::start(SECOND, 0)?;
    let (to, at) = (other.mac(), other.buffer(0));
    other.receive.describe(0, at, 10, WRITE | NEXT, 1);
    other.receive.describe(1, at + 10, 2, WRITE | NEXT, 2);
    other.receive.describe(2, at + 12, 300, WRITE, 0);
    other.receive.offer(0);
    one.send_to(to, 301, 60)?;
    empty(&mut other)?;
    one.send_to(to, 300, 61)?;
    let came = came(&mut other)?;
    came.judge(300, 61)?;
    equal("num_buffers", came.half(10), 1)
}

/// Where the parts of a TCP packet are in its frame, and how much of it is data.
const IP: u64 = 14;
const TCP: u64 = IP + 20;
const BODY: u64 = TCP + 20;
const BODY_BYTES: u64 = 2500;
/// Bytes of data in a segment, and the sequence number of the first.
const PART: u16 = 1000;
const SEQUENCE: u64 = 0xffff_fe00;

/// Lays out a long TCP packet to be divided, which has PSH, FIN and ACK.
fn lay_out_long(one: &Card, to: u64) {
    one.lay_out(to, one.mac(), BODY + BODY_BYTES, 55);
    let header = [NEEDS_CSUM | 1 << 8, BODY as u16, PART, TCP as u16, 16, 0];
    one.set_halves(0, &header);
    let big = |halves: [u16; 11]| halves.map(u16::swap_bytes);
    let total = (20 + 20 + BODY_BYTES) as u16;
    let ip = big([0x0800, 0x4500, total, 7, 0x4000, 0x4006, 0, 0x0a00, 1, 0x0a00, 2]);
    one.set_halves(HEADER + IP - 2, &ip);
    let [high, low] = [(SEQUENCE >> 16) as u16, SEQUENCE as u16];
    let tcp = big([1, 2, high, low, 3, 4, 0x5019, 5, 0, 0, 0]);
    one.set_halves(HEADER + TCP, &tcp[..10]);
}

/// A 16-bit number of the network's in what came.
fn big(came: &Came, at: u64) -> u64 {
    (came.half(HEADER + at) as u16).swap_bytes().into()
}

/// A long packet comes whole to who takes it so, and in segments to who does not.
fn segments() -> Verdict {
    const SENDS: u64 = CSUM | HOST_TSO4;
    let [mut one, mut other] = start(SENDS | GUEST_CSUM | GUEST_TSO4 | MRG_RXBUF)?;
    lay_out_long(&one, other.mac());
    one.send(BODY + BODY_BYTES)?;
    let first = came(&mut other)?;
    equal("num_buffers", first.half(10), 2)?;
    equal("flags and type", first.half(0), 1 << 8 | 1)?;
    equal("size", first.half(4), PART.into())?;
    equal("both lengths", first.len + came(&mut other)?.len, HEADER + BODY + BODY_BYTES)?;
    for features in [SENDS, SENDS | GUEST_CSUM] {
        let [mut one, mut other] = start(features)?;
        lay_out_long(&one, other.mac());
        one.send(BODY + BODY_BYTES)?;
        let mut done = 0;
        for (number, part) in [1000, 1000, 500].into_iter().enumerate() {
            let came = came(&mut other)?;
            equal("length", came.len, HEADER + BODY + part)?;
            equal("type", came.half(0) >> 8, 0)?;
            equal("IP's length", big(&came, IP + 2), 40 + part)?;
            equal("identification", big(&came, IP + 4), 7 + number as u64)?;
            let sequence = big(&came, TCP + 4) << 16 | big(&came, TCP + 6);
            equal("sequence", sequence, (SEQUENCE + done) & 0xffff_ffff)?;
            let last = if number == 2 { 9 } else { 0 };
            equal("TCP's flags", big(&came, TCP + 12), 0x5010 | last)?;
            let sum =
                |from: u64, to: u64| (from..to).step_by(2).map(|at| big(&came, at)).sum::<u64>();
            let folded = |sum: u64| (0..4).fold(sum, |sum, _| (sum & 0xffff) + (sum >> 16));
            equal("IP's checksum", folded(sum(IP, TCP)), 0xffff)?;
            let pseudo = sum(IP + 12, TCP) + 6 + 20 + part;
            if features & GUEST_CSUM == 0 {
                equal("TCP's checksum", folded(pseudo + sum(TCP, BODY + part)), 0xffff)?;
            } else {
                equal("TCP's partial checksum", big(&came, TCP + 16), folded(pseudo))?;
            }
            for at in (0..part).step_by(2) {
                let expected = content(55, (BODY + done + at) / 2);
                equal("data", came.half(HEADER + BODY + at), expected.into())?;
            }
            done += part;
        }
        empty(&mut other)?;
    }
    Ok(())
}

/// The second chain of a long packet stays empty for who wants it so, and that of no other frame.
fn spacer() -> Verdict {
    let features = CSUM | HOST_TSO4 | GUEST_CSUM | GUEST_TSO4 | MRG_RXBUF | SPACER;
    let [mut one, mut other] = start(features)?;
    lay_out_long(&one, other.mac());
    one.send(BODY + BODY_BYTES)?;
    let first = came(&mut other)?;
    equal("num_buffers", first.half(10), 3)?;
    equal("flags and type", first.half(0), 1 << 8 | 1)?;
    equal("the spacer's length", came(&mut other)?.len, 0)?;
    let last = came(&mut other)?;
    equal("both lengths", first.len + last.len, HEADER + BODY + BODY_BYTES)?;
    equal("data", last.half(0), content(55, (first.len - HEADER) / 2).into())?;
    one.send_to(other.mac(), 100, 56)?;
    came(&mut other)?.judge(100, 56)?;
    empty(&mut other)
}

/// What cannot be divided is lost.
fn no_segments() -> Verdict {
    let [mut one, mut other] = start(CSUM | HOST_TSO4)?;
    let (to, page) = (other.mac(), one.page());
    let set = |at: u64, value: u16| paging::half(page + at).store(value, Relaxed);
    for (name, at, value) in [
        ("segments of nothing", 4, 0),
        ("too short", 4, 127),
        ("too long", 4, 1465),
        ("no checksum left undone", 0, 1 << 8),
        ("IPv6, which was not accepted", 0, NEEDS_CSUM | 4 << 8),
        ("no such type", 0, NEEDS_CSUM | 3 << 8),
        ("another header's start", 6, TCP as u16 + 4),
        ("another checksum", 8, 6),
        ("not IPv4", HEADER + IP, 0x0060),
        ("not TCP", HEADER + IP + 8, 0x1140),
        ("headers without an end", HEADER + TCP + 12, 0x19f0 | 0x10),
    ] {
        lay_out_long(&one, to);
        set(at, value);
        // With its header alone, the last of these has no data.
        let len = if at == HEADER + TCP + 12 { BODY } else { BODY + BODY_BYTES };
        one.send(len)?;
        holds("nothing has come", other.came().is_none()).case(name)?;
    }
    lay_out_long(&one, to);
    one.send(BODY + BODY_BYTES)?;
    came(&mut other)?;
    equal("Status", one.status(), 15)
}

/// No doorbell is wanted for buffers to receive into.
fn silence() -> Verdict {
    let cards = start(0)?;
    for card in &cards {
        equal("NO_NOTIFY", card.receive.used_flags(), 1)?;
        equal("of frames to send", card.transmit.used_flags(), 0)?;
    }
    Ok(())
}

/// Receiver and sender hear of what was used, unless they do not want to.
fn both_interrupt() -> Verdict {
    let [mut one, mut other] = start(0)?;
    let vector = |slot, vector| {
        equal("DEVICE_VECTOR", abi::call(call::DEVICE_VECTOR, [slot, vector, 0, 0]), 0)
    };
    vector(FIRST, 0x64)?;
    vector(SECOND, 0x65)?;
    let to = other.mac();
    for (name, sender, receiver, expected) in [
        ("both", false, false, 2),
        ("the receiver", true, false, 1),
        ("the sender", false, true, 1),
        ("none", true, true, 0),
    ] {
        one.transmit.suppress_interrupts(sender);
        other.receive.suppress_interrupts(receiver);
        let before = interrupts::count();
        one.send_to(to, 100, 70)?;
        came(&mut other)?;
        abi::pvcs().enable_interrupts();
        abi::call(call::YIELD, [0; 4]);
        abi::pvcs().disable_interrupts();
        equal("interrupts", (interrupts::count() - before) as u64, expected).case(name)?;
    }
    vector(FIRST, 0)?;
    vector(SECOND, 0)
}

/// A queue that is not well-formed stops its device, and no other.
fn broken() -> Verdict {
    let page = paging::frame(100);
    type Way<'a> = (&'static str, &'a dyn Fn(&mut Card));
    let ways: [Way<'_>; 5] = [
        ("an index past the queue", &|card| card.transmit.offer(SIZE)),
        ("a loop", &|card| {
            card.transmit.describe(0, page, 100, NEXT, 0);
            card.transmit.offer(0);
        }),
        ("an indirect table where no memory is", &|card| {
            card.transmit.describe(0, 1 << 36, 32, INDIRECT, 0);
            card.transmit.offer(0);
        }),
        ("a buffer to be written", &|card| {
            card.transmit.describe(0, page, 100, WRITE, 0);
            card.transmit.offer(0);
        }),
        ("a buffer to be read", &|card| {
            // All that there are.
            (0..4).for_each(|number| card.receive.describe(number, page, 2048, 0, 0));
        }),
    ];
    for (name, way) in ways {
        let [mut one, mut other] = start(0)?;
        way(&mut one);
        one.transmit.ring()?;
        let to = one.mac();
        other.send_to(to, 100, 80)?;
        equal("Status", one.status(), 15 | NEEDS_RESET).case(name)?;
        equal("the other's Status", other.status(), 15).case(name)?;
        one.transmit.ring()?;
        equal("reset", write(FIRST, register::STATUS, 0), 0)?;
    }
    let [mut one, mut other] = start(0)?;
    one.send_to(other.mac(), 100, 81)?;
    came(&mut other)?.judge(100, 81)
}

/// Nothing is put into pages that are the guest's alone, and nothing is sent of them.
fn private_pages() -> Verdict {
    crate::extension::enable(Features::PRIVATE)?;
    let [mut one, mut other] = start(0)?;
    let convert = |number, page| equal("conversion", abi::call(number, [page, 1, 0, 0]), 0);
    let (to, buffer, page) = (other.mac(), other.buffer(0), one.page());
    let before = paging::word(buffer).load(Relaxed);
    convert(call::UNSHARE, buffer)?;
    one.send_to(to, 100, 90)?;
    let lost = other.came();
    equal("given back, empty", lost.map_or(!0, |came| came.len), 0)?;
    equal("as it was", paging::word(buffer).load(Relaxed), before)?;
    convert(call::SHARE, buffer)?;
    one.lay_out(to, one.mac(), 100, 91);
    convert(call::UNSHARE, page)?;
    one.send(100)?;
    convert(call::SHARE, page)?;
    empty(&mut other)?;
    one.send_to(to, 100, 92)?;
    came(&mut other)?.judge(100, 92)
}

/// A card that was reset gets nothing, and uses no page.
fn reset() -> Verdict {
    crate::extension::enable(Features::PRIVATE)?;
    let [mut one, other] = start(0)?;
    let (to, pages) = (other.mac(), other.buffer(0));
    equal("reset", write(SECOND, register::STATUS, 0), 0)?;
    one.send_to(to, 100, 95)?;
    equal("UNSHARE", abi::call(call::UNSHARE, [pages, 4, 0, 0]), 0)?;
    equal("SHARE", abi::call(call::SHARE, [pages, 4, 0, 0]), 0)?;
    let mut other = Card::start(SECOND, 0)?;
    other.make_room(0, 2048);
    one.send_to(to, 100, 96)?;
    came(&mut other)?.judge(100, 96)
}
