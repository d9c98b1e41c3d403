//! Calls L0.
//! May: port-io. Input: L0, which is what is judged.

pub mod args;
pub mod lists;

use crate::{
    holds,
    runtime::{cpu, ram},
    tap::Verdict,
    wrong,
};
use pv_abi::{
    addr::Hpa,
    l0::{
        Exit, Info, Op, Status, VERSION,
        discover::Transports,
        op,
        page::{Args, Header, offset},
        run::{RunControl, RunExit},
    },
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// The way of calling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// OUT to this port.
    Port(u16),
    /// VMCALL.
    Vmcall,
    /// VMMCALL.
    Vmmcall,
}

impl Transport {
    /// All that L0 offers.
    pub fn offered(info: &Info) -> impl Iterator<Item = Self> {
        let all = [
            (Transports::PORT, Self::Port(info.port)),
            (Transports::VMCALL, Self::Vmcall),
            (Transports::VMMCALL, Self::Vmmcall),
        ];
        let offered = info.transports;
        all.into_iter().filter(move |(bit, _)| offered.contains(*bit)).map(|(_, way)| way)
    }

    /// Executes the instruction.
    pub fn call(self, word: u32) {
        match self {
            Self::Port(port) => cpu::out32(port, word),
            Self::Vmcall => cpu::vmcall(word),
            Self::Vmmcall => cpu::vmmcall(word),
        }
    }
}

/// How L0 answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Status.
    pub status: Status,
    /// Entries done.
    pub index: u32,
    /// Result.
    pub value: u64,
    /// Enabled features.
    pub features: u32,
    /// Generation.
    pub generation: u32,
}

/// A vCPU's shared page and its way of calling. A copy is the same page: calls are for the CPU that
/// registered it.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// Address of the page.
    pub page: u64,
    /// How it calls.
    pub way: Transport,
}

impl Caller {
    /// A caller with a new page, which is not registered.
    pub fn new(way: Transport) -> Self {
        Self { page: ram::pages(1), way }
    }

    /// Registers the page for the CPU that executes this; the status as L0 left it.
    pub fn setup(&self) -> Status {
        self.setup_as(VERSION)
    }

    /// Registers the page, naming `version`.
    pub fn setup_as(&self, version: u32) -> Status {
        ram::fill(self.page, ram::PAGE, 0);
        self.put(offset::ARGS, &Args { arg: [version.into(), 0, 0, 0, 0], ..Args::default() });
        let word = op::setup_word(Hpa(self.page)).unwrap_or_else(|| unreachable!("low memory"));
        self.word(word).status
    }

    /// Gives the page of the CPU that executes this back.
    pub fn teardown(&self) {
        self.way.call(op::TEARDOWN_WORD);
    }

    /// Calls with a word, the arguments being in the page.
    pub fn word(&self, word: u32) -> Answer {
        ram::store32(self.page + offset::STATUS as u64, Status::NotServed.raw());
        ram::fence();
        self.way.call(word);
        ram::fence();
        self.answer()
    }

    /// What the page's header says.
    pub fn answer(&self) -> Answer {
        let header = self.header();
        Answer {
            status: header.status(),
            index: header.index,
            value: header.value,
            features: header.features,
            generation: header.generation,
        }
    }

    /// The page's header.
    pub fn header(&self) -> Header {
        self.get(0)
    }

    /// Calls `op` with `args`.
    pub fn call(&self, op: Op, args: &Args) -> Answer {
        self.put(offset::ARGS, args);
        self.word(op.word())
    }

    /// Calls a list operation to its end: with the rest of the list again whenever L0 says AGAIN.
    pub fn call_list(&self, op: Op, args: &Args, entry_size: u64) -> Answer {
        let mut rest = *args;
        let mut done = 0;
        loop {
            let answer = self.call(op, &rest);
            if answer.status != Status::Again || answer.index == 0 || answer.index > rest.count {
                return Answer { index: answer.index.wrapping_add(done), ..answer };
            }
            done += answer.index;
            rest.count -= answer.index;
            rest.list += u64::from(answer.index) * entry_size;
        }
    }

    /// Calls what must succeed.
    #[track_caller]
    pub fn ok(&self, op: Op, args: &Args) -> Verdict<Answer> {
        self.gives(Status::Ok, op, args)
    }

    /// Calls what must answer `status`.
    #[track_caller]
    pub fn gives(&self, status: Status, op: Op, args: &Args) -> Verdict<Answer> {
        let answer = self.call_list(op, args, entry_size(op));
        if answer.status != status {
            let Answer { status: found, index, value, .. } = answer;
            return wrong!(
                "{op:?} answered {found:?} (index {index}, value {value:#x}), not {status:?}"
            );
        }
        Ok(answer)
    }

    /// Calls what must fail with `status`, having done nothing: index and value are 0.
    #[track_caller]
    pub fn refuses(&self, status: Status, op: Op, args: &Args) -> Verdict {
        let Answer { index, value, .. } = self.gives(status, op, args)?;
        if (index, value) != (0, 0) {
            return wrong!("{op:?}, {status:?}: index {index}, value {value:#x}, not 0");
        }
        Ok(())
    }

    /// Calls a list operation that must fail at entry `index`; returns the value.
    #[track_caller]
    pub fn fails_at(&self, index: u32, status: Status, op: Op, args: &Args) -> Verdict<u64> {
        let answer = self.gives(status, op, args)?;
        if answer.index != index {
            return wrong!("{op:?}, {status:?}: index {}, not {index}", answer.index);
        }
        Ok(answer.value)
    }

    /// RUN; the exit is what the page holds, whatever the status.
    pub fn run(&self, vm: u32, vcpu: u32, control: &RunControl) -> (Status, RunExit) {
        self.put(offset::CONTROL, control);
        let answer = self.call(Op::Run, &args::vcpu(vm, vcpu));
        (answer.status, self.get(offset::EXIT))
    }

    /// RUN that must answer OK.
    #[track_caller]
    pub fn run_ok(&self, vm: u32, vcpu: u32, control: &RunControl) -> Verdict<(Exit, RunExit)> {
        let (status, exit) = self.run(vm, vcpu, control);
        holds!(status == Status::Ok, "RUN answered {status:?}");
        Ok((Exit::decode(&exit), exit))
    }

    /// Reads a part of the page.
    pub fn get<T: FromBytes>(&self, at: usize) -> T {
        ram::read(self.page + at as u64)
    }

    /// Writes a part of the page.
    pub fn put<T: IntoBytes + Immutable>(&self, at: usize, value: &T) {
        ram::write(self.page + at as u64, value);
    }
}

/// Bytes of an entry of the operation's list.
const fn entry_size(op: Op) -> u64 {
    match op {
        Op::GetMsrs | Op::SetMsrs => 16,
        _ => 32,
    }
}
