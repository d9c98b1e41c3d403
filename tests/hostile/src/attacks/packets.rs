//! Attacks on what gives random bytes, and on what carries packets between sockets.
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
        virtio::{self, DATA, Descriptor, Device, fuzzed},
    },
};
use core::sync::atomic::Ordering::Relaxed;
use hostile::values;
use pv_abi::virtio::{
    queue::WRITE,
    vsock::{HEADER, RECEIVE, TRANSMIT, kind, op},
};
use suite::{
    holds,
    random::Random,
    verdict::{Case, Verdict},
};

/// What is fuzzed about a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// One flaw.
    Flawed(Flaw),
    /// Buffers of the wrong direction.
    Direction,
    /// It lies where no device may look.
    Outside,
    /// Nothing, as a chain. What is in it is anything.
    Fine,
    /// Any bits anywhere.
    Scrambled,
}

/// What must come of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Stops,
    Used,
    Any,
}

fn kind(random: &mut Random) -> Kind {
    match random.below(16) {
        0..6 => Kind::Flawed(random.pick(&Flaw::ALL)),
        6 => Kind::Direction,
        7 => Kind::Outside,
        8..12 => Kind::Fine,
        _ => Kind::Scrambled,
    }
}

/// Makes a chain of one to four buffers available in `queue`, whose first has `first` bytes; what must
/// come of it.
fn offer(
    random: &mut Random,
    device: &Device,
    queue: usize,
    what: Kind,
    first: Descriptor,
) -> Outcome {
    let turned = if what == Kind::Direction { WRITE } else { 0 };
    let parts: [_; 4] = core::array::from_fn(|index| {
        let mut part = match index {
            0 => first,
            _ => Descriptor::new(buffer(random), 1 + random.below(600) as u32),
        };
        if what == Kind::Outside {
            part.gpa = outside(random);
        }
        Descriptor { flags: first.flags ^ turned, ..part }
    });
    let count = 1 + random.below(4) as usize;
    let mut chain = Chain::new(random, device, &parts[..count]);
    let outcome = match what {
        Kind::Flawed(flaw) => {
            chain.spoil(random, device, flaw);
            Outcome::Stops
        }
        Kind::Direction => Outcome::Stops,
        Kind::Outside | Kind::Fine => Outcome::Used,
        Kind::Scrambled => {
            chain.scramble(random);
            Outcome::Any
        }
    };
    fuzzed(1);
    chain.offer(device, device.ring(queue as u64));
    outcome
}

fn buffer(random: &mut Random) -> u64 {
    memory::frame(DATA + random.below(16))
}

/// Writes a packet's header at `gpa`: a sound one to the guest itself, or one with a word of anything.
fn write_header(random: &mut Random, own: u64, gpa: u64, len: u64, sound: bool) {
    let words =
        [own, own, 5 | 6 << 32, len | u64::from(kind::STREAM) << 32 | u64::from(op::RW) << 48];
    for (at, word) in (0..).zip(words) {
        memory::word(gpa + 8 * at).store(word, Relaxed);
    }
    if !sound {
        fuzzed(1);
        let word = memory::word(gpa + 8 * random.below(4));
        word.store(values::number(random), Relaxed);
    }
}

/// Judges what came of the chain in `queue`.
fn judge(device: &Device, queue: usize, outcome: Outcome, before: u16) -> Verdict {
    let used = device.ring(queue as u64).used() != before;
    match outcome {
        Outcome::Stops => holds!(device.needs_reset() && !used, "the device goes on"),
        Outcome::Used => {
            holds!(!device.needs_reset(), "the device has stopped");
            holds!(used, "the chain was not used");
        }
        Outcome::Any => {}
    }
    Ok(())
}

/// Chains of all kinds for random bytes.
pub fn entropy(rounds: &mut Rounds) -> Verdict {
    let device = virtio::entropy()?;
    shielded(rounds, |rounds| {
        device.start(0)?;
        let (mut stops, mut used) = (0_u64, 0_u64);
        while let Some(round) = rounds.next() {
            let random = &mut rounds.random;
            let what = kind(random);
            let first = Descriptor::new(buffer(random), 1 + random.below(600) as u32).to_write();
            let before = device.ring(0).used();
            let outcome = offer(random, &device, 0, what, first);
            device.ring(0).kick()?;
            judge(&device, 0, outcome, before).case(format_args!("round {round}, {what:?}"))?;
            stops += u64::from(outcome == Outcome::Stops);
            used += u64::from(outcome == Outcome::Used);
            if device.needs_reset() || outcome == Outcome::Any {
                device.start(0)?;
            }
        }
        println!("# devices.entropy: stopped {stops}, used {used}");
        holds!(stops.min(used) > rounds.count / 100, "stopped {stops}, used {used}");
        Ok(())
    })
}

/// Packets of all kinds, and buffers of all kinds for those that come: the guest sends to itself.
pub fn packets(rounds: &mut Rounds) -> Verdict {
    let device = virtio::sockets()?;
    let own = device.config(0);
    shielded(rounds, |rounds| {
        device.start(0)?;
        let (mut stops, mut used) = (0_u64, 0_u64);
        while let Some(round) = rounds.next() {
            let random = &mut rounds.random;
            let (what, queue) = (kind(random), random.pick(&[RECEIVE, TRANSMIT]));
            let before = device.ring(queue as u64).used();
            let (at, len) = (buffer(random), random.below(600));
            let first = Descriptor::new(at, (HEADER as u64 + len) as u32);
            let outcome = if queue == RECEIVE {
                let room = Descriptor { len: first.len + 1, ..first }.to_write();
                let outcome = offer(random, &device, RECEIVE, what, room);
                // Only what there is a packet for is looked at.
                let gpa = device.headers();
                write_header(random, own, gpa, 0, true);
                let ring = device.ring(TRANSMIT as u64);
                virtio::describe(ring.table(), 0, Descriptor::new(gpa, HEADER as u32));
                ring.offer(0);
                ring.kick()?;
                outcome
            } else {
                let sound = random.once_in(2);
                write_header(random, own, at, len, sound);
                let outcome = offer(random, &device, TRANSMIT, what, first);
                device.ring(TRANSMIT as u64).kick()?;
                outcome
            };
            judge(&device, queue, outcome, before)
                .case(format_args!("round {round}, queue {queue}, {what:?}"))?;
            stops += u64::from(outcome == Outcome::Stops);
            used += u64::from(outcome == Outcome::Used);
            // The inbox of one that goes on fills.
            if device.needs_reset() || outcome == Outcome::Any || round % 64 == 0 {
                device.start(0)?;
            }
        }
        println!("# devices.packets: stopped {stops}, used {used}");
        holds!(stops.min(used) > rounds.count / 100, "stopped {stops}, used {used}");
        Ok(())
    })
}
