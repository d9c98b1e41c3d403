//! Takes calls: finds the page and the operation, checks in the order of the specification (rule
//! L0-OP-1), and answers.
//! Input: guest-controlled: the word, the page, lists.

use crate::{
    abi::{
        alarm::Alarm,
        answer::{Answer, Reply},
        counters::Counters,
        frames::Frames,
        l1_memory::L1Memory,
        pieces::Pieces,
        vm::{Inner, Slot, Vm},
    },
    backend::Backend,
    flaw::{self, Flaw},
    kick,
    ram::Ram,
};
use pv_abi::l0::{
    Features, Info, Op, Status, VERSION,
    op::{Word, decode_word},
    page::{Args, offset},
};
use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, atomic::AtomicBool},
};

const PAGE: u64 = 4096;

/// L0 as one L1 sees it.
#[derive(Debug)]
pub struct Server<B: Backend> {
    pub(super) backend: B,
    pub(super) memory: L1Memory,
    pub(super) info: Info,
    /// Held by calls; RESET waits until it has it alone.
    pub(super) gate: RwLock<()>,
    pub(super) resetting: AtomicBool,
    /// The shared page of each CPU of L1. Locked after a VM and before the frames and the state.
    pub(super) pages: Mutex<Vec<Option<u64>>>,
    pub(super) state: Mutex<State<B>>,
    pub(super) frames: Mutex<Frames>,
    pub(super) pieces: Pieces,
    counters: Counters,
    alarms: Vec<OnceLock<Alarm>>,
}

/// What belongs to the whole L1.
#[derive(Debug)]
pub(super) struct State<B: Backend> {
    pub enabled: Features,
    pub withdrawn: Features,
    pub generation: u32,
    pub vms: BTreeMap<u32, Arc<Vm<B>>>,
}

/// Locks `mutex`, whatever became of its last holder.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<B: Backend> Server<B> {
    /// Serves an L1 with so many CPUs, as `info` says.
    ///
    /// # Errors
    /// The signal of kicks cannot be handled.
    pub fn new(backend: B, ram: Arc<Ram>, info: Info, cpus: usize) -> io::Result<Self> {
        kick::install()?;
        let frames = Frames::new(ram.bytes() / PAGE);
        let state = State {
            enabled: Features::empty(),
            withdrawn: Features::empty(),
            generation: 1,
            vms: BTreeMap::new(),
        };
        Ok(Self {
            backend,
            memory: L1Memory::new(ram),
            info,
            gate: RwLock::new(()),
            resetting: AtomicBool::new(false),
            pages: Mutex::new(vec![None; cpus]),
            state: Mutex::new(state),
            frames: Mutex::new(frames),
            pieces: Pieces::of_this_system(),
            counters: Counters::default(),
            alarms: (0..cpus).map(|_| OnceLock::new()).collect(),
        })
    }

    /// What has been counted.
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Serves the call `word` of L1's CPU `caller`.
    pub fn call(&self, caller: usize, word: u32) {
        match decode_word(word) {
            Word::Setup(page) => self.setup(caller, page.0),
            Word::Teardown => {
                if let Some(page) = lock(&self.pages).get_mut(caller) {
                    *page = None;
                }
            }
            Word::Call(op) => {
                if op == Op::Reset {
                    return self.reset(caller);
                }
                let _open = self.gate.read().unwrap_or_else(PoisonError::into_inner);
                let Some(page) = self.page(caller) else { return };
                let args = self.memory.read(page + offset::ARGS as u64);
                let reply = self.serve(caller, page, op, &args);
                self.answer(page, reply.unwrap_or_else(|answer| answer));
            }
        }
    }

    /// The shared page of a CPU. While the caller has the gate, nothing but the CPU itself takes it away.
    pub(super) fn page(&self, caller: usize) -> Option<u64> {
        lock(&self.pages).get(caller).copied().flatten()
    }

    fn setup(&self, caller: usize, page: u64) {
        let mut pages = lock(&self.pages);
        let Some(frames) = self.memory.frames(page..page + PAGE) else { return };
        if lock(&self.frames).first_private(frames).is_some() || caller >= pages.len() {
            return;
        }
        let args: Args = self.memory.read(page + offset::ARGS as u64);
        let taken =
            |(cpu, registered): (usize, &Option<u64>)| cpu != caller && *registered == Some(page);
        let any = flaw::is(Flaw::AnyVersion);
        let answer = if !any && args.arg[0] >> 16 != u64::from(VERSION >> 16) {
            Status::BadVersion.into()
        } else if pages.iter().enumerate().any(taken) {
            Status::Exists.into()
        } else {
            pages[caller] = Some(page);
            Answer::OK
        };
        self.answer(page, answer);
    }

    /// Writes the header, the status last.
    pub(super) fn answer(&self, page: u64, answer: Answer) {
        self.counters.calls.count();
        let (generation, features) = {
            let state = lock(&self.state);
            (state.generation, state.enabled & !state.withdrawn)
        };
        let at = |offset: usize| page + offset as u64;
        self.memory.write(at(offset::INDEX), &answer.index);
        self.memory.write(at(offset::VALUE), &answer.value);
        self.memory.write(at(offset::GENERATION), &[generation, features.bits(), VERSION]);
        self.memory.publish(at(offset::STATUS), answer.status.raw());
    }

    fn serve(&self, caller: usize, page: u64, op: Op, args: &Args) -> Reply {
        if matches!(op, Op::Unknown(_) | Op::Setup) {
            return Err(Status::UnknownOp.into());
        }
        self.check_feature(op)?;
        match op {
            Op::Query => Ok(Answer::value(self.info.features.bits().into())),
            Op::Enable => self.enable(args),
            Op::CreateVm => self.create_vm(args),
            Op::DestroyVm => self.destroy_vm(args),
            Op::CreateVcpu => self.create_vcpu(args),
            Op::Map | Op::Unmap | Op::Protect | Op::Share | Op::Unshare => {
                self.change_memory(op, args)
            }
            Op::DirtyStart | Op::DirtyStop | Op::DirtyTake => self.dirty_log(op, args),
            Op::Run => self.run(caller, page, args),
            Op::Kick => self.kick(args),
            Op::SetGsi | Op::SendMsi => self.interrupt(op, args),
            Op::SetCpuid => self.set_cpuid(args),
            Op::SetMsrPolicy => self.set_policy(args),
            _ => self.registers(op, page, args),
        }
    }

    /// The VM that the call names.
    pub(super) fn vm(&self, args: &Args) -> Result<Arc<Vm<B>>, Answer> {
        if args.vm >= self.info.limits.vms {
            return Err(Status::Limit.into());
        }
        Ok(lock(&self.state).vms.get(&args.vm).cloned().ok_or(Status::NoSuch)?)
    }

    /// What a VM holds, unless it was destroyed meanwhile.
    pub(super) fn alive<'a>(&self, vm: &'a Vm<B>) -> Result<MutexGuard<'a, Inner<B>>, Answer> {
        let inner = vm.lock();
        if inner.dead { Err(Status::NoSuch.into()) } else { Ok(inner) }
    }

    /// The vCPU that the call names.
    pub(super) fn slot<'a>(
        &self,
        inner: &'a mut Inner<B>,
        args: &Args,
    ) -> Result<&'a mut Slot<B>, Answer> {
        if args.vcpu >= self.info.limits.vcpus {
            return Err(Status::Limit.into());
        }
        Ok(inner.vcpus.get_mut(&args.vcpu).ok_or(Status::NoSuch)?)
    }

    /// The alarm of a CPU of L1.
    pub(super) fn alarm(&self, caller: usize) -> Option<&Alarm> {
        let place = self.alarms.get(caller)?;
        if place.get().is_none() {
            // Without a thread for it, there is no deadline; the RUN fails.
            let _ = place.set(Alarm::new().ok()?);
        }
        place.get()
    }
}
