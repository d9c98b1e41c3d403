//! One of two guests that send each other frames, and a guest that talks to the network outside.

use crate::{
    abi,
    card::{Came, Card, HEADER, content},
    clock, extension,
    tap::{self, Verdict, Wrong, equal, holds},
};
use pv_abi::ext::{Features, call, shutdown};
use suite::{println, tally::Tally};

/// The card.
const SLOT: u64 = 0;
/// Everybody.
const ALL: u64 = 0xffff_ffff_ffff;
/// Buffers that are always there for frames to come.
const BUFFERS: u16 = 8;
/// Frames that say who is there; the others are numbered from 1.
const HELLO: u16 = 0;
/// How long another may take, seconds.
const PATIENCE: u64 = 60;

/// Offsets in a frame.
const KIND: u64 = 12;
const PACKET: u64 = 14;

/// Sends `rounds` frames to another guest that does the same, each when the other's last has come.
pub fn talk(rounds: u64) {
    end("talk", &try_talk(rounds));
}

/// Sends `count` frames of the longest, one after another, to nobody in particular.
pub fn flood(count: u64) {
    end("flood", &try_flood(count));
}

fn try_flood(count: u64) -> Verdict {
    let mut card = start()?;
    (0..count).try_for_each(|_| card.send_to(ALL, 1514, HELLO))
}

/// Asks the network outside for its address, and waits for a connection.
pub fn outside() {
    end("outside", &try_outside());
}

fn end(name: &'static str, verdict: &Verdict) {
    let mut tally = Tally::default();
    println!("1..1");
    tap::report(&mut tally, "NET-2", "net", name, verdict);
    abi::shutdown(if verdict.is_ok() { shutdown::POWEROFF } else { shutdown::CRASH })
}

fn start() -> Result<Card, Wrong> {
    extension::enable(Features::DEVICES)?;
    let mut card = Card::start(SLOT, 0)?;
    (0..BUFFERS).for_each(|number| card.make_room(number, 2048));
    Ok(card)
}

/// The next frame that `wanted` takes something from; others are lost.
fn next<T>(card: &mut Card, mut wanted: impl FnMut(&Card, &Came) -> Option<T>) -> Option<T> {
    let number =
        card.receive.take().map(|(number, len)| (number, Came { at: card.buffer(number), len }));
    let Some((number, came)) = number else {
        abi::call(call::YIELD, [0; 4]);
        return None;
    };
    let found = wanted(card, &came);
    card.make_room(number, 2048);
    found
}

/// Waits for it, and calls `meanwhile` every now and then.
fn wait<T>(
    card: &mut Card,
    mut wanted: impl FnMut(&Card, &Came) -> Option<T>,
    mut meanwhile: impl FnMut(&mut Card) -> Verdict,
) -> Result<T, Wrong> {
    let (start, mut last) = (abi::tsc(), abi::tsc());
    loop {
        if let Some(found) = next(card, &mut wanted) {
            return Ok(found);
        }
        holds("somebody answers", abi::tsc() - start < PATIENCE * clock::tsc_hz())?;
        if abi::tsc() - last > clock::tsc_hz() / 10 {
            last = abi::tsc();
            meanwhile(card)?;
        }
    }
}

fn address(came: &Came, at: u64) -> u64 {
    (0..3).map(|half| came.half(HEADER + at + 2 * half) << (16 * half)).sum()
}

fn hash(sum: u64, half: u64) -> u64 {
    (sum ^ half).wrapping_mul(0x0100_0000_01b3)
}

/// Bytes of frame `number`: any length, even.
fn length(number: u64) -> u64 {
    60 + number * 194 % 1454 / 2 * 2
}

fn try_talk(rounds: u64) -> Verdict {
    let mut card = start()?;
    let own = card.mac();
    let (mut sent, mut received) = (0xcbf2_9ce4_8422_2325, 0xcbf2_9ce4_8422_2325);
    let other =
        wait(&mut card, |_, came| Some(address(came, 6)), |card| card.send_to(ALL, 60, HELLO))?;
    // It may have heard nothing yet.
    card.send_to(other, 60, HELLO)?;
    // In the other's name: were it to come through, it would be the first to arrive.
    card.lay_out(other, other, length(1), 0x7777);
    card.send(length(1))?;
    for number in 1..=rounds {
        let (seed, len) = (number as u16, length(number));
        // The two differ in what they send.
        let mine = seed ^ own as u16;
        card.send_to(other, len, mine)?;
        sent = (7..len / 2).fold(sent, |sum, half| hash(sum, content(mine, half).into()));
        let theirs = seed ^ other as u16;
        let sum = wait(
            &mut card,
            |_, came| {
                let hello = came.half(HEADER + PACKET) == u64::from(content(HELLO, 7));
                (!hello).then_some((came.judge(len, theirs).is_ok(), address(came, 6), {
                    (7..len / 2).fold(received, |sum, half| hash(sum, came.half(HEADER + 2 * half)))
                }))
            },
            |_| Ok(()),
        )?;
        holds("it is the other's next", sum.0)?;
        equal("its sender", sum.1, other)?;
        received = sum.2;
    }
    println!("# sent {sent:016x} received {received:016x}");
    Ok(())
}

/// What this guest calls itself, and its gateway: 10.0.2.15 and 10.0.2.2, as halves of a frame.
const OWN_IP: [u16; 2] = [0x000a, 0x0f02];
const GATEWAY: [u16; 2] = [0x000a, 0x0202];
const ARP: u16 = 0x0608;
const IPV4: u16 = 0x0008;
const ASK: u16 = 0x0100;
const TELL: u16 = 0x0200;

/// Sends ARP: `what`, from this guest to `mac` and `ip`.
fn send_arp(card: &mut Card, what: u16, mac: u64, ip: [u16; 2]) -> Verdict {
    let own = card.mac();
    card.lay_out(if what == ASK { ALL } else { mac }, own, 60, 0);
    let halves = |mac: u64| [mac as u16, (mac >> 16) as u16, (mac >> 32) as u16];
    let ([a, b, c], [d, e, f]) = (halves(own), halves(mac));
    let packet =
        [ARP, 0x0100, IPV4, 0x0406, what, a, b, c, OWN_IP[0], OWN_IP[1], d, e, f, ip[0], ip[1]];
    card.set_halves(HEADER + KIND, &packet);
    card.send(60)
}

fn is(came: &Came, at: u64, halves: &[u16]) -> bool {
    halves.iter().enumerate().all(|(n, &half)| came.half(HEADER + at + 2 * n as u64) == half.into())
}

fn try_outside() -> Verdict {
    let mut card = start()?;
    send_arp(&mut card, ASK, 0, GATEWAY)?;
    let gateway = wait(
        &mut card,
        |card, came| {
            let own = card.mac();
            let told = is(came, KIND, &[ARP]) && is(came, 20, &[TELL]) && is(came, 28, &GATEWAY);
            (told && address(came, 0) == own).then(|| address(came, 22))
        },
        |card| send_arp(card, ASK, 0, GATEWAY),
    )?;
    println!("# the gateway is {gateway:012x}");
    println!("# ready");
    // From here on it is asked for its address, and then told of the connection.
    let port = loop {
        let asked = wait(
            &mut card,
            |_, came| {
                let arp = is(came, KIND, &[ARP]) && is(came, 20, &[ASK]) && is(came, 38, &OWN_IP);
                let tcp = is(came, KIND, &[IPV4]) && came.half(HEADER + 22) >> 8 == 6;
                // SYN, without ACK.
                let opens = tcp && came.half(HEADER + 46) >> 8 & 0x12 == 2;
                let port = (came.half(HEADER + 36) as u16).swap_bytes();
                if opens { Some(Ok(port)) } else { arp.then(|| Err(address(came, 22))) }
            },
            |_| Ok(()),
        )?;
        match asked {
            Ok(port) => break port,
            Err(mac) => send_arp(&mut card, TELL, mac, GATEWAY)?,
        }
    };
    println!("# a connection to port {port}");
    Ok(())
}
