//! Takes frames out of the chains that a network card's driver sends, and puts frames into those that it
//! has for them (virtio 1.2, 5.1).
//! May: guest-memory. Context: run-loop, irq-off. Input: guest-controlled chains, headers and frames.

use super::{
    DeviceMemory,
    queue::{Broken, Buffer, Chain, Queue},
    registers::Identity,
};
use crate::dev::switch::{
    LONGEST, Mac,
    counts::Lost,
    frame::{Offload, Partial},
    segment::{Division, Version},
};
use arrayvec::ArrayVec;
use pv_abi::virtio::{
    feature::{INDIRECT_DESC, VERSION_1},
    net::{
        self, HEADER, RECEIVE, TRANSMIT,
        feature::{
            CSUM, CTRL_VQ, GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, HOST_TSO4, HOST_TSO6, MAC, MQ,
            MRG_RXBUF, MTU, SPACER, STATUS,
        },
        header,
    },
};

/// Bytes of a frame with its header at most.
pub const SCRATCH: usize = HEADER + LONGEST;
/// Chains that a frame is put into at most.
const CHAINS: usize = 64;
/// Pieces of memory that a frame is put into at most: who sends it must not pay for how its receiver
/// scatters it.
const PIECES: usize = 96;
/// The most that is copied at once.
const PIECE: usize = 4096;

/// A card as its guest knows it.
#[derive(Clone, Debug)]
pub struct Address {
    /// Its address.
    pub mac: Mac,
    /// Bytes of the longest packet in a frame.
    pub mtu: u16,
    /// Its pairs of queues, 1 or more, if the driver can do with several.
    pub pairs: u16,
}

/// What a queue is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Frames to come.
    Receive,
    /// Frames to send, of the pair with this number.
    Transmit(usize),
    /// Commands.
    Control,
}

impl Address {
    /// What the register block says of it.
    #[must_use]
    pub fn identity(&self) -> Identity {
        let Self { mac: [a, b, c, d, e, f], mtu, pairs } = *self;
        let ([mtu_low, mtu_high], [low, high]) = (mtu.to_le_bytes(), pairs.to_le_bytes());
        // Address, link up, pairs of queues, MTU.
        let bytes = [[a, b, c, d], [e, f, 1, 0], [low, high, mtu_low, mtu_high]];
        let several = pairs > 1;
        let queues = [(CTRL_VQ | MQ, 2 * usize::from(pairs) + 1), (CTRL_VQ, 3), (0, 2)];
        Identity {
            device: net::DEVICE,
            features: VERSION_1 | INDIRECT_DESC | OWN | if several { CTRL_VQ | MQ } else { 0 },
            queues: if several { queues.into() } else { [(0, 2)].into() },
            config: bytes.map(u32::from_le_bytes).into(),
        }
    }

    /// The control queue of a driver that has accepted `features`: it is behind the pairs.
    #[must_use]
    pub fn control_queue(&self, features: u64) -> Option<usize> {
        (features & CTRL_VQ != 0).then(|| 2 * self.most_pairs(features))
    }

    /// Pairs that a driver that has accepted `features` may use.
    #[must_use]
    pub fn most_pairs(&self, features: u64) -> usize {
        let several = features & (CTRL_VQ | MQ) == CTRL_VQ | MQ;
        if several { self.pairs.into() } else { 1 }
    }

    /// What queue `number` is for, if the driver has accepted `features`.
    #[must_use]
    pub fn role(&self, number: usize, features: u64) -> Role {
        if self.control_queue(features) == Some(number) {
            Role::Control
        } else if number % 2 == TRANSMIT {
            Role::Transmit(number / 2)
        } else {
            Role::Receive
        }
    }
}

/// The queue for frames to come of pair `pair`, and the one for frames to send.
#[must_use]
pub const fn receive_queue(pair: usize) -> usize {
    2 * pair + RECEIVE
}

/// See [`receive_queue`].
#[must_use]
pub const fn transmit_queue(pair: usize) -> usize {
    2 * pair + TRANSMIT
}

/// Features of cards.
const OWN: u64 = MAC
    | MTU
    | STATUS
    | CSUM
    | GUEST_CSUM
    | MRG_RXBUF
    | HOST_TSO4
    | HOST_TSO6
    | GUEST_TSO4
    | GUEST_TSO6
    | SPACER;

/// A header, as bytes.
pub type Header = [u8; HEADER];

/// Copies the frame in `chain` to `out`, [`SCRATCH`] bytes, its header first; the length of both, or
/// nothing if the chain is no frame.
///
/// # Errors
/// [`Broken::Direction`].
pub fn take(
    memory: &impl DeviceMemory,
    chain: &Chain,
    out: &mut [u8],
) -> Result<Option<usize>, Broken> {
    if !chain.writable.is_empty() {
        return Err(Broken::Direction);
    }
    let mut done = 0;
    for &Buffer { gpa, len } in &chain.readable {
        let Some(to) = out[done..].get_mut(..len as usize) else { return Ok(None) };
        for (number, piece) in to.chunks_mut(PIECE).enumerate() {
            if !memory.read(gpa + (number * PIECE) as u64, piece) {
                return Ok(None);
            }
        }
        done += len as usize;
    }
    Ok((done > HEADER).then_some(done))
}

/// What `bytes` say of the frame behind them; `None` if a driver that has accepted `features` must not say
/// so.
#[must_use]
pub fn parse(bytes: &Header, features: u64) -> Option<Offload> {
    let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let partial = bytes[header::FLAGS] & header::NEEDS_CSUM != 0;
    let (version, feature) = match bytes[header::GSO_TYPE] {
        header::GSO_NONE => (None, 0),
        header::GSO_TCPV4 => (Some(Version::V4), HOST_TSO4),
        header::GSO_TCPV6 => (Some(Version::V6), HOST_TSO6),
        _ => return None,
    };
    let needed = feature | if partial { CSUM } else { 0 };
    let allowed = features & needed == needed;
    let checksum = Partial { start: word(header::CSUM_START), offset: word(header::CSUM_OFFSET) };
    allowed.then_some(Offload {
        checksum: partial.then_some(checksum),
        division: version.map(|version| Division { version, size: word(header::GSO_SIZE) }),
    })
}

/// True if a driver that has accepted `features` takes a frame with this undone.
#[must_use]
pub fn takes(offload: &Offload, features: u64) -> bool {
    let of_sum = offload.checksum.map_or(0, |_| GUEST_CSUM);
    let of_division = offload.division.map_or(0, |division| for_long(division.version));
    let needed = of_sum | of_division;
    features & needed == needed
}

/// Features that a driver has accepted if it takes long TCP packets of `version`.
#[must_use]
pub const fn for_long(version: Version) -> u64 {
    match version {
        Version::V4 => GUEST_CSUM | GUEST_TSO4,
        Version::V6 => GUEST_CSUM | GUEST_TSO6,
    }
}

/// The header of a frame of which this is left undone.
#[must_use]
pub fn describe(offload: &Offload) -> Header {
    let mut bytes = [0; HEADER];
    let mut put = |at: usize, word: u16| bytes[at..at + 2].copy_from_slice(&word.to_le_bytes());
    put(header::NUM_BUFFERS, 1);
    if let Some(Partial { start, offset }) = offload.checksum {
        put(header::CSUM_START, start);
        put(header::CSUM_OFFSET, offset);
        bytes[header::FLAGS] = header::NEEDS_CSUM;
    }
    if let Some(Division { version, size }) = offload.division {
        bytes[header::GSO_SIZE..header::GSO_SIZE + 2].copy_from_slice(&size.to_le_bytes());
        bytes[header::GSO_TYPE] = match version {
            Version::V4 => header::GSO_TCPV4,
            Version::V6 => header::GSO_TCPV6,
        };
    }
    bytes
}

/// Whether a frame may be put into several chains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// It goes into one, or nowhere.
    OneChain,
    /// It may.
    Chains,
    /// It may, and the second stays empty.
    Spaced,
}

impl Spread {
    /// How a driver that has accepted `features` has a frame of which this is left undone.
    #[must_use]
    pub const fn of(offload: &Offload, features: u64) -> Self {
        if features & MRG_RXBUF == 0 {
            Self::OneChain
        } else if features & SPACER != 0 && offload.division.is_some() {
            Self::Spaced
        } else {
            Self::Chains
        }
    }
}

/// Puts a frame into the next chains of `queue`, and gives them back.
///
/// # Errors
/// [`Broken`]: the queue cannot be used any more. Within: the frame is lost, and nothing else has
/// happened, unless a buffer is no device's to write: it is given back, empty.
pub fn put(
    memory: &impl DeviceMemory,
    queue: &mut Queue,
    spread: Spread,
    header: &Header,
    frame: &[u8],
) -> Result<Result<(), Lost>, Broken> {
    // The chains are taken if all goes well.
    let mut trial = *queue;
    let mut writer = Writer { header, frame, done: 0, pieces: 0, count_at: [0; 2] };
    let mut used = ArrayVec::<(u16, u32), CHAINS>::new();
    let mut reached = true;
    let mut chain = Chain::default();
    while writer.left() > 0 || (spread == Spread::Spaced && used.len() == 1) {
        let room = (used.is_empty() || spread != Spread::OneChain) && !used.is_full();
        if !room || !trial.pop_into(memory, &mut chain)? {
            return Ok(Err(Lost::NoBuffer));
        }
        if !chain.readable.is_empty() {
            return Err(Broken::Direction);
        }
        let before = writer.done;
        if spread != Spread::Spaced || used.len() != 1 {
            for buffer in &chain.writable {
                reached &= writer.fill(memory, *buffer);
            }
        }
        if writer.pieces > PIECES {
            return Ok(Err(Lost::NoBuffer));
        }
        used.push((chain.head, (writer.done - before) as u32));
    }
    let chains = (used.len() as u16).to_le_bytes();
    let told = used.len() == 1
        || writer.count_at.iter().zip(chains).all(|(&gpa, byte)| memory.write(gpa, &[byte]));
    *queue = trial;
    if !(reached && told) {
        used.iter_mut().for_each(|(_, written)| *written = 0);
        queue.push_all(memory, &used)?;
        return Ok(Err(Lost::NoBuffer));
    }
    queue.push_all(memory, &used)?;
    Ok(Ok(()))
}

/// Writes a frame, header first, into one buffer after the other.
struct Writer<'a> {
    header: &'a Header,
    frame: &'a [u8],
    done: usize,
    /// Pieces it was written in.
    pieces: usize,
    /// Where the header's number of chains is, byte by byte.
    count_at: [u64; 2],
}

impl Writer<'_> {
    fn left(&self) -> usize {
        HEADER + self.frame.len() - self.done
    }

    /// Fills `buffer`; false if it cannot be written.
    fn fill(&mut self, memory: &impl DeviceMemory, buffer: Buffer) -> bool {
        let Buffer { mut gpa, len } = buffer;
        let end = gpa + u64::from(len);
        let mut reached = true;
        while gpa < end && self.left() > 0 && self.pieces <= PIECES {
            let rest = match self.done {
                done @ 0..HEADER => &self.header[done..],
                done => &self.frame[done - HEADER..],
            };
            let piece = &rest[..rest.len().min((end - gpa) as usize).min(PIECE)];
            for (byte, at) in self.count_at.iter_mut().enumerate() {
                let field = header::NUM_BUFFERS + byte;
                if (self.done..self.done + piece.len()).contains(&field) {
                    *at = gpa + (field - self.done) as u64;
                }
            }
            reached &= memory.write(gpa, piece);
            gpa += piece.len() as u64;
            self.done += piece.len();
            self.pieces += 1;
        }
        reached
    }
}

#[cfg(test)]
mod tests;
