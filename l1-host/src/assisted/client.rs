//! L1's side of the L0<=>L1 ABI (docs/spec/l0-l1.md): the shared page of one vCPU and the calls.
//! May: take-frame. Context: boot, run-loop. Input: what L0 writes; a broken L0 must not make L1
//! panic.

use crate::{
    hw::{
        l0::Transport,
        physmap::{copy_from_frame, copy_to_frame},
    },
    memory,
};
use core::fmt;
use pv_abi::{
    addr::Hpa,
    l0::{
        Features, Info, Op, Status,
        op::setup_word,
        page::{Args, Header, offset},
    },
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Why a call did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// What was asked.
    pub op: Op,
    /// What L0 said.
    pub status: Status,
    /// Entries of the list that were done.
    pub index: u32,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "L0 answered {:?} to {:?} (entry {})", self.status, self.op, self.index)
    }
}

/// The connection of one vCPU to L0.
#[derive(Debug)]
pub struct Client {
    transport: Transport,
    page: Hpa,
    /// A frame for lists.
    list: Hpa,
    /// What L0 has said of itself.
    pub info: Info,
}

/// Pages below this can be named by SETUP.
const REACH: u64 = 1 << 32;

impl Client {
    /// Registers a page with L0 and enables `features`. `None` if L1 lacks memory where L0 can be
    /// told of it.
    ///
    /// # Errors
    /// [`Refused`]: L0 does not keep to what its leaves say.
    pub fn connect(info: Info, features: Features) -> Option<Result<Self, Refused>> {
        let transport = Transport::choose(info.transports, info.port)?;
        let page = memory::take_zeroed().filter(|page| page.0 < REACH)?;
        let list = memory::take_zeroed()?;
        let client = Self { transport, page, list, info };
        let word = setup_word(page)?;
        Some(client.setup(word, features).map(|()| client))
    }

    fn setup(&self, word: u32, features: Features) -> Result<(), Refused> {
        // The version that L1 speaks.
        let args = Args { arg: [pv_abi::l0::VERSION.into(), 0, 0, 0, 0], ..Args::default() };
        self.call_word(Op::Setup, word, &args)?;
        let args = Args { arg: [features.bits().into(), 0, 0, 0, 0], ..Args::default() };
        self.call(Op::Enable, &args).map(|_| ())
    }

    /// Reads the part of the shared page at `at`.
    pub fn read<T: FromBytes + IntoBytes>(&self, at: usize) -> T {
        let mut value = T::new_zeroed();
        copy_from_frame(self.page, at, value.as_mut_bytes());
        value
    }

    /// Reads bytes of the shared page from `at` on.
    pub fn read_bytes(&self, at: usize, bytes: &mut [u8]) {
        copy_from_frame(self.page, at, bytes);
    }

    /// Writes the part of the shared page at `at`.
    pub fn write<T: IntoBytes + Immutable + ?Sized>(&self, at: usize, value: &T) {
        copy_to_frame(self.page, at, value.as_bytes());
    }

    /// Asks for `op`; the result's value.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn call(&self, op: Op, args: &Args) -> Result<u64, Refused> {
        self.call_word(op, op.word(), args)
    }

    fn call_word(&self, op: Op, word: u32, args: &Args) -> Result<u64, Refused> {
        self.write(offset::STATUS, &Status::NotServed.raw());
        self.write(offset::ARGS, args);
        self.transport.call(word);
        let header: Header = self.read(0);
        match header.status().ok() {
            Ok(()) => Ok(header.value),
            Err(status) => Err(Refused { op, status, index: header.index }),
        }
    }

    /// Asks for `op` on a list, in as many calls as it takes.
    ///
    /// # Errors
    /// [`Refused`], with the index in the whole list.
    pub fn call_list<T: IntoBytes + Immutable>(
        &self,
        op: Op,
        args: &Args,
        entries: &[T],
        most: u32,
    ) -> Result<(), Refused> {
        let fits = (4096 / size_of::<T>()).min(most.max(1) as usize);
        let mut done = 0;
        while done < entries.len() {
            let part = &entries[done..entries.len().min(done + fits)];
            copy_to_frame(self.list, 0, part.as_bytes());
            let args = Args { list: self.list.0, count: part.len() as u32, ..*args };
            match self.call(op, &args) {
                Ok(_) => done += part.len(),
                // To bound its time; the rest is asked for again.
                Err(refused) if refused.status == Status::Again && refused.index > 0 => {
                    done += part.len().min(refused.index as usize);
                }
                Err(refused) => {
                    let index = refused.index.saturating_add(done as u32);
                    return Err(Refused { index, ..refused });
                }
            }
        }
        Ok(())
    }

    /// Asks for `op` on a list that is one table: it cannot be split.
    ///
    /// # Errors
    /// [`Refused`]; LIMIT if L1 cannot hold the list.
    pub fn call_table<T: IntoBytes + Immutable>(
        &self,
        op: Op,
        args: &Args,
        entries: &[T],
    ) -> Result<(), Refused> {
        if size_of_val(entries) > 4096 {
            return Err(Refused { op, status: Status::Limit, index: 0 });
        }
        copy_to_frame(self.list, 0, entries.as_bytes());
        let args = Args { list: self.list.0, count: entries.len() as u32, ..*args };
        self.call(op, &args).map(|_| ())
    }
}
