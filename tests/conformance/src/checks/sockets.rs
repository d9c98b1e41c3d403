//! Sockets. The first slot with a device for them is looked at; without, these checks are skipped. The guest
//! sends to itself, which is to L1 as if it were another.

use super::{Group, Setting, check};
use crate::{
    extension,
    socket::{DEVICE, HEADER, KIND, Packet, REQUEST, RST, RW, STREAM, Sockets},
    tap::{Case, Verdict, Wrong, equal, holds},
    virtio::{NEEDS_RESET, find, read, register, write},
};
use pv_abi::ext::Features;

pub const GROUP: Group = Group {
    name: "sockets",
    setting: Setting::Feature(Features::DEVICES),
    checks: &[
        check("identity", "VSK-1 VIO-3", identity),
        check("a_packet", "VSK-2", a_packet),
        check("divided", "VSK-2", divided),
        check("waits", "VSK-2", waits),
        check("nobody", "VSK-3", nobody),
        check("not_a_packet", "VSK-3", not_a_packet),
        check("too_much", "VSK-4", too_much),
        check("no_room_for_a_byte", "VSK-2 VIO-5", no_room_for_a_byte),
        check("private_pages", "VIO-5", private_pages),
        check("reset", "VSK-4 VIO-6", reset),
    ],
};

fn start() -> Result<Sockets, Wrong> {
    Sockets::start(find(DEVICE)?)
}

/// A packet from the guest to itself.
fn own(sockets: &Sockets, len: u32) -> Packet {
    let cid = sockets.cid();
    Packet { from: (cid, 1000), to: (cid, 2000), len, kind: KIND, op: RW }
}

/// What answers `packet` if there is no such connection.
fn refusal(packet: &Packet) -> Packet {
    Packet { from: packet.to, to: packet.from, len: 0, op: RST, ..*packet }
}

fn none(sockets: &mut Sockets) -> Verdict {
    equal("packets that have come", sockets.receive.take().is_some().into(), 0)
}

fn identity() -> Verdict {
    let sockets = start()?;
    holds("an address that a guest may have", (3..0xffff_ffff).contains(&sockets.cid()))?;
    write(sockets.slot, register::DEVICE_FEATURES_SEL, 0);
    let features = read(sockets.slot, register::DEVICE_FEATURES);
    equal("STREAM", features & STREAM, STREAM)?;
    for (queue, most) in [(0, 256), (1, 256), (2, 256), (3, 0)] {
        write(sockets.slot, register::QUEUE_SEL, queue);
        equal("QueueNumMax", read(sockets.slot, register::QUEUE_NUM_MAX), most)?;
    }
    Ok(())
}

fn a_packet() -> Verdict {
    let mut sockets = start()?;
    for (len, op) in [(0, REQUEST), (1, RW), (1000, RW), (4052, RW)] {
        let packet = Packet { op, ..own(&sockets, len) };
        sockets.make_room(0, 4096)?;
        sockets.send(&packet, len.into(), 7)?;
        holds("it has come as it was", sockets.came(0, 7)? == packet)?;
    }
    none(&mut sockets)
}

/// A packet that is longer than the buffers comes as several.
fn divided() -> Verdict {
    let mut sockets = start()?;
    let packet = own(&sockets, 3000);
    (0..4).try_for_each(|number| sockets.make_room(number, HEADER + 1400))?;
    sockets.send(&packet, 3000, 8)?;
    for (skip, len) in [(0, 1400), (700, 1400), (1400, 200)] {
        holds("a part has come", sockets.came(skip, 8)? == Packet { len, ..packet })?;
    }
    none(&mut sockets)
}

/// What finds no buffer comes when there is one, in its order.
fn waits() -> Verdict {
    let mut sockets = start()?;
    let packet = own(&sockets, 500);
    (0..20).try_for_each(|seed| sockets.send(&packet, 500, seed))?;
    none(&mut sockets)?;
    for seed in 0..20 {
        sockets.make_room(seed, 4096)?;
        holds("the next has come", sockets.came(0, seed)? == packet)?;
    }
    none(&mut sockets)
}

/// Whoever sends to nobody hears of it, but for what says that itself.
fn nobody() -> Verdict {
    let mut sockets = start()?;
    (0..4).try_for_each(|number| sockets.make_room(number, 4096))?;
    let packet = own(&sockets, 10);
    for (to, name) in
        [(2, "the host"), (4_000_000_000, "a guest"), (1 << 32 | packet.from.0, "more")]
    {
        let packet = Packet { to: (to, 5), ..packet };
        sockets.send(&packet, 10, 1).case(name)?;
        holds("RST has come", sockets.came(0, 1).case(name)? == refusal(&packet)).case(name)?;
    }
    let datagram = Packet { kind: 3, ..packet };
    sockets.send(&datagram, 10, 1)?;
    holds("RST of its kind has come", sockets.came(0, 1)? == refusal(&datagram))?;
    (0..1).try_for_each(|number| sockets.make_room(number, 4096))?;
    sockets.send(&Packet { to: (4_000_000_000, 5), op: RST, len: 0, ..packet }, 0, 1)?;
    none(&mut sockets)
}

/// What is no packet of this guest's is lost.
fn not_a_packet() -> Verdict {
    let mut sockets = start()?;
    sockets.make_room(0, 4096)?;
    let packet = own(&sockets, 10);
    sockets.send(&Packet { from: (packet.from.0 + 1, 1000), ..packet }, 10, 1).case("another's")?;
    sockets.send(&packet, 12, 1).case("longer than it says")?;
    sockets.send(&packet, 8, 1).case("shorter than it says")?;
    none(&mut sockets)?;
    sockets.send(&packet, 10, 1)?;
    holds("a packet has come", sockets.came(0, 1)? == packet)
}

/// A megabyte waits, and no more; what has waited comes.
fn too_much() -> Verdict {
    let mut sockets = start()?;
    let packet = own(&sockets, 4000);
    let sent = 300;
    (0..sent).try_for_each(|_| sockets.send(&packet, 4000, 3))?;
    let mut come = 0;
    while {
        sockets.make_room(0, 4096)?;
        sockets.came(0, 3).is_ok()
    } {
        come += 1;
    }
    // 4044 bytes each; the answers to those that did not fit take what is left.
    equal("packets of a megabyte", come, (1 << 20) / 4044 + ((1 << 20) % 4044) / 44)
}

/// A buffer must have room for a byte behind the header.
fn no_room_for_a_byte() -> Verdict {
    let mut sockets = start()?;
    sockets.make_room(0, HEADER)?;
    let packet = own(&sockets, 10);
    sockets.send(&packet, 10, 1)?;
    none(&mut sockets)?;
    let status = read(sockets.slot, register::STATUS);
    equal("DEVICE_NEEDS_RESET", status & NEEDS_RESET, NEEDS_RESET)
}

fn private_pages() -> Verdict {
    extension::enable(Features::PRIVATE)?;
    let mut sockets = start()?;
    sockets.make_room(0, 4096)?;
    let (packet, page) = (own(&sockets, 10), sockets.buffer(0));
    extension::unshare(page)?;
    let sent = sockets.send(&packet, 10, 1);
    extension::share(page)?;
    sent?;
    let used = sockets.receive.take();
    equal("bytes that were written", used.map_or(!0, |(_, len)| len), 0)
}

/// What has waited is forgotten, and nothing comes before the driver is there.
fn reset() -> Verdict {
    let mut sockets = start()?;
    let packet = own(&sockets, 10);
    sockets.send(&packet, 10, 1)?;
    let mut sockets = start()?;
    sockets.make_room(0, 4096)?;
    none(&mut sockets)?;
    sockets.send(&packet, 10, 2)?;
    holds("a packet has come", sockets.came(0, 2)? == packet)
}
