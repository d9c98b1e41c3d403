//! Attacks on network cards with several pairs of queues: commands, and what frames come by then.
//! May: nothing. Context: any. Input: random.

use super::{devices::shielded, requests::outside};
use crate::{
    judge::Rounds,
    println,
    runtime::{
        memory,
        virtio::{self, DATA, Descriptor, Device, SEVERAL, describe_chain, fuzzed, half, set_half},
    },
};
use pv_abi::virtio::net::{
    HEADER, RECEIVE, TRANSMIT, config,
    control::{ERR, MQ, OK, VQ_PAIRS_SET},
};
use suite::{
    holds,
    random::Random,
    same, skip,
    verdict::{Case, Verdict},
};

/// Where the answer to a command is, behind the command.
const ANSWER: u64 = 2048;
/// Bytes of a frame, without the header before it.
const LENGTH: u64 = 100;
/// First of the frames for what comes.
const BUFFERS: u64 = DATA + 64;
/// Buffers of each pair.
const ROOM: u16 = 100;

/// What is fuzzed about a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Nothing: so many pairs.
    Fine(u16),
    /// It asks for pairs that there are not, or is another, or longer or shorter.
    Wrong,
    /// It lies where no device may look.
    Outside,
    /// There is no room for its answer.
    Unanswerable,
    /// A buffer to read follows the one to write.
    Order,
}

/// The card's queue for commands.
fn control(card: &Device) -> u64 {
    2 * (card.config(config::MAX_VIRTQUEUE_PAIRS) & 0xffff)
}

/// Makes a command of `kind` available.
fn offer(random: &mut Random, card: &Device, kind: Kind) {
    let at = card.headers();
    let mut halves = [u16::from(VQ_PAIRS_SET) << 8 | u16::from(MQ), 1];
    let mut len = 4;
    match kind {
        Kind::Fine(pairs) => halves[1] = pairs,
        Kind::Wrong => match random.below(3) {
            0 => halves[1] = random.pick(&[0, 5, 0x100, 0x101, 0x8001, 0xffff]),
            1 => halves[0] ^= 1 << random.below(16),
            _ => len = random.pick(&[1, 2, 3, 5, 8, 2000]),
        },
        _ => {}
    }
    for (half, value) in (0..).zip(halves) {
        set_half(at + 2 * half, value);
    }
    set_half(at + ANSWER, 0xffff);
    let mut command = Descriptor::new(at, len);
    if kind == Kind::Outside {
        command.gpa = outside(random);
    }
    let answer = Descriptor::new(at + ANSWER, 1).to_write();
    let parts: &[_] = match kind {
        Kind::Unanswerable => &[command],
        Kind::Order => &[answer, command],
        _ => &[command, answer],
    };
    fuzzed(1);
    let ring = card.ring(control(card));
    describe_chain(ring.table(), 0, parts);
    ring.offer(0);
}

/// Makes room for frames in the first two pairs.
fn make_room(card: &Device) {
    for pair in 0..2 {
        let ring = card.ring(2 * pair + RECEIVE as u64);
        for index in 0..ROOM {
            let number = pair * u64::from(ROOM) + u64::from(index);
            let gpa = memory::frame(BUFFERS + number / 2) + number % 2 * 2048;
            ring.offer_room(index, gpa, 2048);
        }
    }
}

/// Sends `to` a packet of anything: of which flow, if it is of one, is left to chance.
fn send(random: &mut Random, from: &Device, to: u64) -> Verdict {
    let at = from.headers();
    for index in 0..(HEADER as u64 + LENGTH) / 2 {
        set_half(at + 2 * index, random.bits() as u16);
    }
    let mac = from.config(0) | (from.config(4) & 0xffff) << 32;
    for index in 0..3 {
        let frame = at + HEADER as u64 + 2 * index;
        set_half(frame, (to >> (16 * index)) as u16);
        set_half(frame + 6, (mac >> (16 * index)) as u16);
        // The header says that nothing is left undone.
        set_half(at + 4 * index, 0);
        set_half(at + 4 * index + 2, 0);
    }
    let kind: [u8; 2] = random.pick(&[[8, 0], [8, 0], [0x86, 0xdd], [0x81, 0]]);
    set_half(at + HEADER as u64 + 12, u16::from_le_bytes(kind));
    // The protocol: TCP, more often than chance has it.
    if random.once_in(2) {
        let place = at + HEADER as u64 + 22;
        set_half(place, half(place) & 0xff | 6 << 8);
    }
    let ring = from.ring(TRANSMIT as u64);
    let len = HEADER as u32 + LENGTH as u32;
    virtio::describe(ring.table(), 0, Descriptor::new(at, len));
    ring.offer(0);
    ring.kick()?;
    ring.settle()
}

/// Commands of all kinds; whatever they say, each frame comes once, by a pair that was asked for.
pub fn pairs(rounds: &mut Rounds) -> Verdict {
    let [from, to] = virtio::cards()?;
    if control(&to) < 4 {
        return skip!("this VM has one vCPU");
    }
    let mac = to.config(0) | (to.config(4) & 0xffff) << 32;
    shielded(rounds, |rounds| {
        from.start(0)?;
        let received = [0, 1].map(|pair| to.ring(2 * pair + RECEIVE as u64));
        let commands = to.ring(control(&to));
        let (mut used, mut stops) = (0, 0_u64);
        let mut came = [0_u64; 2];
        while let Some(round) = rounds.next() {
            let random = &mut rounds.random;
            if used == 0
                || to.needs_reset()
                || received[0].used().max(received[1].used()) >= ROOM - 1
            {
                to.start_with(SEVERAL, control(&to) + 1)?;
                make_room(&to);
                used = 1;
            }
            let kind = match random.below(16) {
                0..6 => Kind::Fine(1 + random.below(2) as u16),
                6..12 => Kind::Wrong,
                12..14 => Kind::Outside,
                14 => Kind::Unanswerable,
                _ => Kind::Order,
            };
            offer(random, &to, kind);
            commands.kick()?;
            let answer = half(to.headers() + ANSWER) as u8;
            match kind {
                Kind::Unanswerable | Kind::Order => {
                    holds!(to.needs_reset(), "round {round}, {kind:?}: the card goes on");
                    stops += 1;
                    continue;
                }
                Kind::Fine(pairs) => {
                    same!(answer, OK, "round {round}, {kind:?}");
                    used = pairs;
                }
                Kind::Wrong | Kind::Outside => same!(answer, ERR, "round {round}, {kind:?}"),
            }
            same!(commands.used(), commands.offered(), "round {round}: commands that were used");
            let before = received.map(|ring| ring.used());
            send(random, &from, mac).case(format_args!("round {round}"))?;
            let now = received.map(|ring| ring.used());
            let [first, second] =
                [0, 1].map(|pair| u64::from(now[pair].wrapping_sub(before[pair])));
            same!(first + second, 1, "round {round}: frames that came");
            holds!(second == 0 || used == 2, "round {round}: it came by a pair that is not used");
            came = [came[0] + first, came[1] + second];
        }
        println!("# devices.pairs: stopped {stops}, came {came:?}");
        let least = stops.min(came[0]).min(came[1]);
        holds!(least > rounds.count / 100, "{stops} stops, {came:?} frames");
        Ok(())
    })
}
