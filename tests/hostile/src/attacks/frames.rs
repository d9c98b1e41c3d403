//! Attacks on network cards: what is sent, and the buffers that frames are to be put into.
//! May: nothing. Context: any. Input: random.

use super::{
    chain::{Chain, Flaw},
    devices::shielded,
    requests::outside,
};
use crate::{
    judge::Rounds,
    println,
    runtime::{
        memory,
        virtio::{self, DATA, Descriptor, Device, RUNNING, fuzzed, set_half},
    },
};
use pv_abi::virtio::net::{
    HEADER, RECEIVE, TRANSMIT,
    feature::{CSUM, GUEST_CSUM, HOST_TSO4, MRG_RXBUF},
};
use suite::{
    holds,
    random::Random,
    verdict::{Case, Verdict},
};

/// Bytes of a frame, without the header before it, that anybody takes.
const LENGTH: u32 = 100;
/// More than any packet's length, and Ethernet's around it.
const TOO_LONG: u32 = 1500 + 19;
const ALL: u64 = 0xffff_ffff_ffff;

/// What is fuzzed about a frame that is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    /// One flaw of the chain's.
    Flawed(Flaw),
    /// A buffer to write among those to read.
    Direction,
    /// It lies where no device may look.
    Outside,
    /// It is no frame.
    Short,
    /// It is longer than the network takes.
    Long,
    /// It bears another's address.
    Spoofed,
    /// Its header asks for what was not agreed on, or does not fit.
    Header,
    /// Nothing.
    Fine,
    /// Any bits anywhere.
    Scrambled,
}

/// What must come of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// The sender's card stops.
    Stops,
    /// The frame is used, and lost.
    Lost,
    /// It arrives.
    Arrives,
    /// Any of these.
    Any,
}

fn mac(card: &Device) -> u64 {
    card.config(0) | (card.config(4) & 0xffff) << 32
}

/// Writes a header and a frame to the card's page for such.
fn write_frame(card: &Device, to: u64, from: u64, header: [u16; 6]) {
    let at = card.headers();
    let half = |value: u64, index: u64| (value >> (16 * index)) as u16;
    for index in 0..HEADER as u64 / 2 {
        set_half(at + 2 * index, header[index as usize]);
    }
    let frame = at + HEADER as u64;
    for index in 0..3 {
        set_half(frame + 2 * index, half(to, index));
        set_half(frame + 6 + 2 * index, half(from, index));
    }
    // A type that is nobody's.
    set_half(frame + 12, 0xb588);
}

/// Makes a frame available, of `kind`.
fn send(random: &mut Random, card: &Device, to: u64, kind: Sent) -> Outcome {
    let mut from = mac(card);
    let mut header = [0; 6];
    let mut len = LENGTH;
    let cut = 1 + random.below(u64::from(LENGTH)) as u32;
    let mut outcome = Outcome::Lost;
    fuzzed(1);
    match kind {
        Sent::Flawed(_) | Sent::Direction => outcome = Outcome::Stops,
        Sent::Spoofed => from ^= 1 << random.below(48),
        Sent::Short => len = random.below(14) as u32,
        Sent::Long => len = TOO_LONG,
        Sent::Header => {
            // The checksum's place, far beyond the end; or segments of what is no TCP.
            let gso = random.pick(&[1, 2, 3, 4, 5, 0x81, 0xff]) << 8;
            let sum =
                [1, 0, 0, LENGTH as u16 + random.below(1 << 15) as u16, random.bits() as u16, 0];
            let size = random.bits() as u16;
            header = if random.once_in(2) { sum } else { [1 | gso, 0, size, 0, 0, 0] };
        }
        Sent::Scrambled => {
            header = core::array::from_fn(|_| random.bits() as u16);
            outcome = Outcome::Any;
        }
        Sent::Fine => outcome = Outcome::Arrives,
        Sent::Outside => {}
    }
    write_frame(card, to, from, header);
    let all = HEADER as u32 + len;
    let cut = cut.min(all - 1);
    let at = card.headers();
    let mut parts = [Descriptor::new(at, cut), Descriptor::new(at + u64::from(cut), all - cut)];
    let part = random.below(2) as usize;
    match kind {
        Sent::Direction => parts[part] = parts[part].to_write(),
        Sent::Outside => parts[part].gpa = outside(random),
        _ => {}
    }
    if kind == Sent::Direction {
        // Nothing to read behind it.
        parts[1] = parts[1].to_write();
    }
    let mut chain = Chain::new(random, card, &parts);
    match kind {
        Sent::Flawed(flaw) => chain.spoil(random, card, flaw),
        Sent::Scrambled => chain.scramble(random),
        _ => {}
    }
    chain.offer(card, card.ring(TRANSMIT as u64));
    outcome
}

/// Rings the bell of a card that has one frame to send, and judges what comes of it but for the arrival.
fn ring(card: &Device, outcome: Outcome) -> Verdict {
    let ring = card.ring(TRANSMIT as u64);
    ring.kick()?;
    match outcome {
        Outcome::Stops => holds!(card.needs_reset(), "the card goes on"),
        Outcome::Any => {}
        Outcome::Lost | Outcome::Arrives => {
            ring.settle()?;
            holds!(!card.needs_reset(), "the card has stopped");
        }
    }
    Ok(())
}

/// First of the frames for what comes.
const BUFFERS: u64 = DATA + 64;

/// Gives the card room for `count` frames.
fn make_room(card: &Device, count: u16) {
    let ring = card.ring(RECEIVE as u64);
    for index in 0..count {
        let gpa = memory::frame(BUFFERS + u64::from(index) / 2) + u64::from(index % 2) * 2048;
        ring.offer_room(index, gpa, 2048);
    }
}

/// Frames of all kinds, sent to another card and to all.
pub fn sent(rounds: &mut Rounds) -> Verdict {
    const ROOM: u16 = 200;
    let [from, to] = virtio::cards()?;
    let address = mac(&to);
    shielded(rounds, |rounds| {
        let received = to.ring(RECEIVE as u64);
        from.start(0)?;
        to.start(0)?;
        make_room(&to, ROOM);
        let (mut stops, mut lost, mut arrived) = (0_u64, 0_u64, 0_u64);
        while let Some(round) = rounds.next() {
            let random = &mut rounds.random;
            let kind = match random.below(16) {
                0..5 => Sent::Flawed(random.pick(&Flaw::ALL)),
                5..9 => Sent::Scrambled,
                9 => Sent::Direction,
                10 => Sent::Outside,
                11 => Sent::Short,
                12 => Sent::Long,
                13 => Sent::Spoofed,
                14 => Sent::Header,
                _ => Sent::Fine,
            };
            let before = received.used();
            let destination = random.pick(&[address, ALL]);
            let outcome = send(random, &from, destination, kind);
            ring(&from, outcome).case(format_args!("round {round}, {kind:?}"))?;
            let came = u64::from(received.used().wrapping_sub(before));
            match outcome {
                Outcome::Stops => stops += 1,
                Outcome::Lost => lost += 1,
                Outcome::Arrives => arrived += 1,
                Outcome::Any => {}
            }
            if outcome != Outcome::Any {
                let expected = u64::from(outcome == Outcome::Arrives);
                holds!(came == expected, "round {round}, {kind:?}: {came} frames came");
            }
            if from.needs_reset() || outcome == Outcome::Any {
                let features = random.pick(&[0, CSUM, CSUM | HOST_TSO4]);
                from.start(features)?;
            }
            if received.used() >= ROOM / 2 {
                to.start(random.pick(&[0, GUEST_CSUM, MRG_RXBUF]))?;
                make_room(&to, ROOM);
            }
        }
        println!("# devices.frames: stopped {stops}, lost {lost}, arrived {arrived}");
        let least = stops.min(lost).min(arrived);
        holds!(least > rounds.count / 100, "a kind of frame was sent {least} times");
        Ok(())
    })
}

/// Frames come to a card whose buffers are anything: that is its own affair, and not its sender's.
pub fn received(rounds: &mut Rounds) -> Verdict {
    let [from, to] = virtio::cards()?;
    let address = mac(&to);
    shielded(rounds, |rounds| {
        from.start(0)?;
        let queue = to.ring(RECEIVE as u64);
        let (mut stops, mut empty) = (0_u64, 0_u64);
        while let Some(round) = rounds.next() {
            let random = &mut rounds.random;
            to.start(random.pick(&[0, MRG_RXBUF]))?;
            let parts: [_; 4] = core::array::from_fn(|index| {
                let gpa = memory::frame(BUFFERS + index as u64);
                Descriptor::new(gpa, 1 + random.below(512) as u32).to_write()
            });
            let count = 1 + random.below(4) as usize;
            let mut chain = Chain::new(random, &to, &parts[..count]);
            let flaw = match random.below(8) {
                0..4 => Some(random.pick(&Flaw::ALL)),
                _ => {
                    chain.scramble(random);
                    None
                }
            };
            if let Some(flaw) = flaw {
                chain.spoil(random, &to, flaw);
            }
            fuzzed(1);
            chain.offer(&to, queue);
            let outcome = send(random, &from, address, Sent::Fine);
            match flaw {
                Some(_) => ring(&from, outcome).case(format_args!("round {round}, {flaw:?}"))?,
                None => from.ring(TRANSMIT as u64).kick()?,
            }
            let status = to.status();
            let stopped = to.needs_reset();
            holds!(stopped || status == RUNNING, "round {round}: Status {status:#x}");
            holds!(stopped || flaw.is_none(), "round {round}, {flaw:?}: the receiver goes on");
            if flaw.is_none() {
                // The frame may have come to where this card's rings are.
                from.start(0)?;
            }
            stops += u64::from(stopped);
            empty += u64::from(!stopped && queue.used() == 0);
        }
        println!("# devices.buffers: stopped {stops}, unused {empty}");
        let least = stops.min(empty);
        holds!(least > rounds.count / 100, "{stops} cards stopped, {empty} frames had no room");
        Ok(())
    })
}
