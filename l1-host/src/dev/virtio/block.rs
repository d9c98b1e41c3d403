//! Makes requests of the chains that a disk's driver sends (virtio 1.2, 5.2).
//! May: guest-memory. Context: run-loop. Input: guest-controlled requests.

use super::{
    DeviceMemory,
    queue::{Broken, Buffer, Chain, MOST},
    registers::Identity,
};
use arrayvec::ArrayVec;
use pv_abi::virtio::{
    block::{
        self, HEADER, NAME, RANGE, SECTOR, UNMAP, answer, config,
        feature::{BLK_SIZE, DISCARD, FLUSH, MQ, RO, SEG_MAX, SIZE_MAX, WRITE_ZEROES},
        request,
    },
    feature::{INDIRECT_DESC, VERSION_1},
};

/// Buffers of data in a request at most, as the driver is told.
pub const SEGMENTS: u32 = 62;
/// Bytes of such a buffer at most.
const SEGMENT: u32 = 1 << 16;
/// Bytes that a request moves at most.
pub const LARGEST: u64 = SEGMENTS as u64 * SEGMENT as u64;

/// Words of the configuration space.
const CONFIG_WORDS: usize = 15;

/// A disk as its guest knows it.
#[derive(Clone, Debug)]
pub struct Geometry {
    /// Its first sector on the machine's disk.
    pub first: u64,
    /// Its sectors, all of which the machine's disk has.
    pub sectors: u64,
    /// Whether it may be written.
    pub access: Access,
    /// Its name, padded with zeros.
    pub name: [u8; NAME],
    /// What it may be asked to throw away.
    pub erase: Erase,
    /// Its queues, 1 or more, if the driver can do with several.
    pub queues: u16,
}

/// What of a disk can be erased.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Erase {
    /// Sectors of a request to discard at most; 0 if there are no such requests.
    pub discard: u32,
    /// Sectors that the disk can only discard together.
    pub alignment: u32,
    /// Sectors of a request to zero at most; 0 if there are no such requests.
    pub zero: u32,
    /// Whether the disk may give up the room of what is zeroed.
    pub may_unmap: bool,
}

/// Whether a disk may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read and written.
    Write,
    /// Read only.
    Read,
}

/// What a transfer does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// From the disk.
    Read,
    /// To the disk.
    Write,
    /// What was written outlives the machine.
    Flush,
    /// What is there is not needed any more.
    Discard,
    /// Zeros are to be read, whose room the disk keeps.
    Zero,
    /// Zeros are to be read, whose room it need not keep.
    ZeroAndUnmap,
}

/// A request to be passed on to the machine's disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// What it does.
    pub kind: Kind,
    /// Where on the machine's disk.
    pub sector: u64,
    /// How much data.
    pub bytes: u64,
    /// How much of the disk, where no data says so.
    pub sectors: u32,
}

/// A request, looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// The machine's disk is to do it.
    Transfer(Transfer),
    /// It is done: the answer, and the bytes of data that were written to guest memory.
    Done(u8, u32),
}

impl Transfer {
    /// Where in guest memory its data is: what [`Geometry::request`] has left of `chain`.
    #[must_use]
    pub fn data<'a>(&self, chain: &'a Chain) -> &'a [Buffer] {
        match self.kind {
            Kind::Read => &chain.writable,
            Kind::Write => &chain.readable,
            Kind::Flush | Kind::Discard | Kind::Zero | Kind::ZeroAndUnmap => &[],
        }
    }
}

impl Geometry {
    /// What the register block says of it.
    #[must_use]
    pub fn identity(&self) -> Identity {
        let mut words = [0; CONFIG_WORDS];
        let mut features = VERSION_1 | INDIRECT_DESC | SIZE_MAX | SEG_MAX | BLK_SIZE | FLUSH;
        let mut put = |offset: u64, value: u32| words[offset as usize / 4] = value;
        put(config::CAPACITY, self.sectors as u32);
        put(config::CAPACITY + 4, (self.sectors >> 32) as u32);
        put(config::SIZE_MAX, SEGMENT);
        put(config::SEG_MAX, SEGMENTS);
        put(config::BLK_SIZE, SECTOR as u32);
        let Erase { discard, alignment, zero, may_unmap } = self.erase;
        if discard > 0 {
            features |= DISCARD;
            put(config::MAX_DISCARD_SECTORS, discard);
            put(config::MAX_DISCARD_SEG, 1);
            put(config::DISCARD_SECTOR_ALIGNMENT, alignment);
        }
        if zero > 0 {
            features |= WRITE_ZEROES;
            put(config::MAX_WRITE_ZEROES_SECTORS, zero);
            put(config::MAX_WRITE_ZEROES_SEG, 1);
            put(config::WRITE_ZEROES_MAY_UNMAP, may_unmap.into());
        }
        if self.access == Access::Read {
            features |= RO;
        }
        let several = self.queues > 1;
        if several {
            features |= MQ;
            // The upper half of its word.
            put(config::NUM_QUEUES, u32::from(self.queues) << 16);
        }
        Identity {
            device: block::DEVICE,
            features,
            queues: if several {
                [(MQ, self.queues.into()), (0, 1)].into()
            } else {
                [(0, 1)].into()
            },
            config: words.into(),
        }
    }

    /// Looks at the request in `chain`, which keeps the request's data alone; with it, where its answer
    /// goes. GET_ID is done at once.
    ///
    /// # Errors
    /// [`Broken::Unanswerable`].
    pub fn request(
        &self,
        memory: &impl DeviceMemory,
        chain: &mut Chain,
    ) -> Result<(Request, u64), Broken> {
        let Chain { readable: to_read, writable: to_write, .. } = chain;
        let last = to_write.last_mut().ok_or(Broken::Unanswerable)?;
        last.len -= 1;
        let answer = last.gpa + u64::from(last.len);
        if last.len == 0 {
            to_write.pop();
        }
        let mut header = [0; HEADER];
        let reached = match take(memory, to_read, &mut header) {
            Taken::All => true,
            Taken::OutOfReach => false,
            Taken::TooShort => return Err(Broken::Unanswerable),
        };
        let word = u128::from_le_bytes(header);
        let (kind, sector) = (word as u32, (word >> 64) as u64);
        let request = match kind {
            _ if !reached => Request::Done(answer::IOERR, 0),
            request::IN => self.transfer(Kind::Read, sector, to_write),
            request::OUT if self.access == Access::Read => Request::Done(answer::IOERR, 0),
            request::OUT => self.transfer(Kind::Write, sector, to_read),
            request::FLUSH => {
                Request::Transfer(Transfer { kind: Kind::Flush, sector: 0, bytes: 0, sectors: 0 })
            }
            request::DISCARD if self.erase.discard > 0 => {
                self.erase(memory, to_read, self.erase.discard, |flags| {
                    (flags == 0).then_some(Kind::Discard)
                })
            }
            request::WRITE_ZEROES if self.erase.zero > 0 => {
                self.erase(memory, to_read, self.erase.zero, |flags| match flags {
                    0 => Some(Kind::Zero),
                    UNMAP => Some(Kind::ZeroAndUnmap),
                    _ => None,
                })
            }
            request::GET_ID => self.tell_name(memory, to_write),
            _ => Request::Done(answer::UNSUPP, 0),
        };
        Ok((request, answer))
    }

    fn transfer(&self, kind: Kind, sector: u64, data: &[Buffer]) -> Request {
        let bytes: u64 = data.iter().map(|buffer| u64::from(buffer.len)).sum();
        let end = sector.checked_add(bytes / SECTOR);
        let fine = bytes.is_multiple_of(SECTOR)
            && bytes <= LARGEST
            && end.is_some_and(|end| end <= self.sectors);
        match (fine, bytes) {
            (false, _) => Request::Done(answer::IOERR, 0),
            (true, 0) => Request::Done(answer::OK, 0),
            (true, _) => {
                let sector = self.first + sector;
                Request::Transfer(Transfer { kind, sector, bytes, sectors: 0 })
            }
        }
    }

    /// A request about the one range in `data`, of `most` sectors; `kind` knows it by its flags.
    fn erase(
        &self,
        memory: &impl DeviceMemory,
        data: &mut ArrayVec<Buffer, MOST>,
        most: u32,
        kind: impl FnOnce(u32) -> Option<Kind>,
    ) -> Request {
        let mut range = [0; RANGE];
        if !matches!(take(memory, data, &mut range), Taken::All) || !data.is_empty() {
            return Request::Done(answer::IOERR, 0);
        }
        let word = u128::from_le_bytes(range);
        let (sector, sectors, flags) = (word as u64, (word >> 64) as u32, (word >> 96) as u32);
        let Some(kind) = kind(flags) else { return Request::Done(answer::UNSUPP, 0) };
        let end = sector.checked_add(sectors.into());
        match (sectors <= most && end.is_some_and(|end| end <= self.sectors), sectors) {
            (false, _) => Request::Done(answer::IOERR, 0),
            (true, 0) => Request::Done(answer::OK, 0),
            (true, _) => {
                let sector = self.first + sector;
                Request::Transfer(Transfer { kind, sector, bytes: 0, sectors })
            }
        }
    }

    fn tell_name(&self, memory: &impl DeviceMemory, to: &[Buffer]) -> Request {
        let mut name = &self.name[..];
        for buffer in to {
            let (piece, rest) = name.split_at(name.len().min(buffer.len as usize));
            if !memory.write(buffer.gpa, piece) {
                return Request::Done(answer::IOERR, 0);
            }
            name = rest;
        }
        Request::Done(answer::OK, (NAME - name.len()) as u32)
    }
}

enum Taken {
    All,
    OutOfReach,
    TooShort,
}

/// Copies `out` from the start of `buffers`, and takes that off them.
fn take(memory: &impl DeviceMemory, buffers: &mut ArrayVec<Buffer, MOST>, out: &mut [u8]) -> Taken {
    let mut done = 0;
    let mut reached = true;
    let mut whole = 0;
    for buffer in buffers.iter_mut() {
        let piece = (out.len() - done).min(buffer.len as usize);
        reached &= piece == 0 || memory.read(buffer.gpa, &mut out[done..done + piece]);
        buffer.gpa += piece as u64;
        buffer.len -= piece as u32;
        done += piece;
        if buffer.len > 0 {
            break;
        }
        whole += 1;
    }
    buffers.drain(..whole);
    match (done == out.len(), reached) {
        (false, _) => Taken::TooShort,
        (true, false) => Taken::OutOfReach,
        (true, true) => Taken::All,
    }
}

#[cfg(test)]
mod tests;
