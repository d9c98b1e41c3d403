//! Takes calls: finds the page and the operation, checks in the order of the specification (rule
//! L0-OP-1), and answers.
//! Input: guest-controlled: the word, the page, lists.

use crate::{
    abi::{
        alarm::Alarm,
        frames::Frames,
        l1_memory::{Buffer, L1Memory},
        tables::{self, Policy},
        vm::{Body, Inner, Slot, Vm, holds_always},
    },
    backend::{Backend, Controllers, Place, Refused, Vcpu as _, Vm as _},
    flaw::{self, Flaw},
    host_memory::Alias,
    kick,
    ram::Ram,
};
use pv_abi::l0::{
    Features, Info, Op, Status, VERSION,
    list::{CpuidLeaf, MsrRange, RESERVED_GPA, Region},
    op::{Word, decode_word, flags},
    page::{Args, offset},
};
use std::{
    collections::BTreeMap,
    io,
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, TryLockError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};
use zerocopy::{FromBytes, IntoBytes};

const PAGE: u64 = 4096;
/// Pages of all regions of a VM together: what KVM keeps for each page of a slot is bounded.
const MOST_PAGES: u64 = 1 << 28;

/// The answer to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// How it ended.
    pub status: Status,
    /// Entries done, or what the operation says.
    pub index: u32,
    /// A result.
    pub value: u64,
}

/// An answer that is good, or one that is not.
pub type Reply = Result<Answer, Answer>;

impl Answer {
    /// Done.
    pub const OK: Self = Self { status: Status::Ok, index: 0, value: 0 };

    /// Done, with a result.
    #[must_use]
    pub const fn value(value: u64) -> Self {
        Self { value, ..Self::OK }
    }

    /// Stopped at an entry.
    #[must_use]
    pub const fn at(self, index: u32) -> Self {
        Self { index, ..self }
    }
}

impl From<Status> for Answer {
    fn from(status: Status) -> Self {
        Self { status, ..Self::OK }
    }
}

impl From<Refused> for Answer {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::NoMemory => Status::NoMemory.into(),
            Refused::BadValue => Status::BadArg.into(),
            Refused::Unknown => Status::NoSuch.into(),
            Refused::Unsupported => Status::NotSupported.into(),
            Refused::Failed(code) => {
                Self { status: Status::Internal, index: 0, value: u64::from(code.unsigned_abs()) }
            }
        }
    }
}

/// L0 as one L1 sees it.
#[derive(Debug)]
pub struct Server<B: Backend> {
    pub(super) backend: B,
    pub(super) memory: L1Memory,
    pub(super) info: Info,
    /// Held by calls; RESET waits until it has it alone.
    gate: RwLock<()>,
    pub(super) resetting: AtomicBool,
    /// The shared page of each CPU of L1. Locked after a VM and before the frames and the state.
    pub(super) pages: Mutex<Vec<Option<u64>>>,
    state: Mutex<State<B>>,
    pub(super) frames: Mutex<Frames>,
    alarms: Vec<OnceLock<Alarm>>,
}

#[derive(Debug)]
struct State<B: Backend> {
    enabled: Features,
    withdrawn: Features,
    generation: u32,
    vms: BTreeMap<u32, Arc<Vm<B>>>,
}

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
            alarms: (0..cpus).map(|_| OnceLock::new()).collect(),
        })
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
                let Some(page) = lock(&self.pages).get(caller).copied().flatten() else { return };
                if op == Op::Reset {
                    self.reset(caller);
                    self.answer(page, Answer::OK);
                    return;
                }
                let _open = self.gate.read().unwrap_or_else(PoisonError::into_inner);
                let args = self.memory.read(page + offset::ARGS as u64);
                let reply = self.serve(caller, page, op, &args);
                self.answer(page, reply.unwrap_or_else(|answer| answer));
            }
        }
    }

    /// Withdraws features (spec section 8.2).
    pub fn withdraw(&self, features: Features) {
        let mut state = lock(&self.state);
        let gone = state.enabled & features & !state.withdrawn;
        if gone.is_empty() {
            return;
        }
        state.withdrawn |= gone;
        state.generation = state.generation.wrapping_add(1);
        drop(state);
        if gone.intersects(Features::ASSIST | Features::IN_L0_APIC) {
            // Rule L0-WD-3: a RUN in progress returns KICKED.
            self.kick_all();
        }
    }

    /// Kicks every vCPU that is in RUN.
    fn kick_all(&self) {
        // A VM is locked before the state.
        let vms: Vec<_> = lock(&self.state).vms.values().cloned().collect();
        for vm in vms {
            let inner = vm.lock();
            let running = inner.vcpus.values().filter(|slot| slot.body.is_none());
            running.for_each(|slot| slot.kick.kick());
        }
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
    fn answer(&self, page: u64, answer: Answer) {
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

    /// Drops everything of this L1 but `keeper`'s page (spec section 8.3).
    fn reset(&self, keeper: usize) {
        self.resetting.store(true, SeqCst);
        let alone = loop {
            self.kick_all();
            match self.gate.try_write() {
                Ok(alone) => break alone,
                Err(TryLockError::Poisoned(poisoned)) => break poisoned.into_inner(),
                // A call that has begun ends soon: every RUN is kicked.
                Err(TryLockError::WouldBlock) => thread::sleep(Duration::from_micros(100)),
            }
        };
        let vms = {
            let mut state = lock(&self.state);
            if flaw::is(Flaw::ResetKeepsVms) {
                BTreeMap::new()
            } else {
                (state.enabled, state.withdrawn) = (Features::empty(), Features::empty());
                std::mem::take(&mut state.vms)
            }
        };
        for vm in vms.values() {
            self.end_mappings(&mut vm.lock());
        }
        drop(vms);
        for (cpu, page) in lock(&self.pages).iter_mut().enumerate() {
            if cpu != keeper && !flaw::is(Flaw::ResetKeepsPages) {
                *page = None;
            }
        }
        self.resetting.store(false, SeqCst);
        drop(alone);
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

    fn check_feature(&self, op: Op) -> Result<(), Answer> {
        let state = lock(&self.state);
        let needs = op.needs();
        if !state.enabled.contains(needs) {
            return Err(Status::NotSupported.into());
        }
        let all = if needs.is_empty() { needs } else { needs | Features::ASSIST };
        if state.withdrawn.intersects(all) && !op.survives_withdrawal() {
            return Err(Status::Withdrawn.into());
        }
        Ok(())
    }

    pub(super) fn is_withdrawn(&self, features: Features) -> bool {
        lock(&self.state).withdrawn.intersects(features)
    }

    fn enable(&self, args: &Args) -> Reply {
        let mut state = lock(&self.state);
        if !state.vms.is_empty() {
            return Err(Status::BadState.into());
        }
        let wanted = u32::try_from(args.arg[0]).ok().and_then(Features::from_bits);
        let Some(wanted) = wanted.filter(|set| {
            let offered = self.info.features & !state.withdrawn;
            offered.contains(*set) && set.consistent()
        }) else {
            return Err(Status::NotSupported.into());
        };
        state.enabled = wanted;
        Ok(Answer::value(wanted.bits().into()))
    }

    fn create_vm(&self, args: &Args) -> Reply {
        let flags = flags::CreateVm::from_bits(args.flags).ok_or(Status::BadArg)?;
        let controllers =
            if flags.contains(flags::CreateVm::APIC) { Controllers::L0 } else { Controllers::L1 };
        let mut state = lock(&self.state);
        if controllers == Controllers::L0 {
            if !state.enabled.contains(Features::IN_L0_APIC) {
                return Err(Status::NotSupported.into());
            }
            if state.withdrawn.contains(Features::IN_L0_APIC) {
                return Err(Status::Withdrawn.into());
            }
        }
        if args.vm >= self.info.limits.vms {
            return Err(Status::Limit.into());
        }
        if state.vms.contains_key(&args.vm) {
            return Err(Status::Exists.into());
        }
        if args.count == 0 {
            return Err(Status::BadArg.into());
        }
        let regions = self.table::<Region>(args, self.info.limits.regions)?;
        self.check_regions(&regions)?;
        let places = self.reserve(&regions)?;
        let vm = self.backend.create_vm(controllers, &places)?;
        state.vms.insert(args.vm, Arc::new(Vm::new(vm, places, controllers)));
        Ok(Answer::OK.at(args.count))
    }

    fn check_regions(&self, regions: &[Region]) -> Result<(), Answer> {
        let limit = 1u64 << self.info.limits.gpa_bits;
        let range = |region: &Region| region.end().map(|end| region.gpa..end);
        let meets = |a: &Range<u64>, b: &Range<u64>| a.start < b.end && b.start < a.end;
        for (index, region) in regions.iter().enumerate() {
            let good = range(region).is_some_and(|this| {
                let others = regions[..index].iter().filter_map(range);
                this.end <= limit
                    && !meets(&this, &RESERVED_GPA)
                    && !others.into_iter().any(|other| meets(&this, &other))
            });
            if !good {
                return Err(Answer::from(Status::BadArg).at(index as u32));
            }
        }
        let pages = regions.iter().map(|region| region.pages).sum::<u64>();
        if pages > MOST_PAGES { Err(Status::NoMemory.into()) } else { Ok(()) }
    }

    fn reserve(&self, regions: &[Region]) -> Result<Vec<Place>, Answer> {
        let file = self.memory.ram().file();
        let place = |region: &Region| {
            let alias = Alias::reserve(region.gpa, region.pages, Arc::clone(file));
            let alias = alias.map_err(|_| Answer::from(Status::NoMemory))?;
            Ok(Place { region: *region, alias: Arc::new(alias) })
        };
        regions.iter().map(place).collect()
    }

    fn destroy_vm(&self, args: &Args) -> Reply {
        let vm = self.vm(args)?;
        {
            let mut inner = self.alive(&vm)?;
            if inner.runs() {
                return Err(Status::Busy.into());
            }
            self.end_mappings(&mut inner);
        }
        let gone = lock(&self.state).vms.remove(&args.vm);
        if flaw::is(Flaw::HandlesLeak) {
            std::mem::forget(gone);
        }
        Ok(Answer::OK)
    }

    fn create_vcpu(&self, args: &Args) -> Reply {
        let vm = self.vm(args)?;
        let mut inner = self.alive(&vm)?;
        if args.vcpu >= self.info.limits.vcpus {
            return Err(Status::Limit.into());
        }
        if inner.vcpus.contains_key(&args.vcpu) {
            return Err(Status::Exists.into());
        }
        let vcpu = inner.vm.create_vcpu(args.vcpu)?;
        let body = Body {
            vcpu,
            cells: inner.policy.cells(),
            awaits: None,
            down: false,
            sealed: false,
            has_table: false,
        };
        let slot = Slot { body: Some(Box::new(body)), kick: Arc::default() };
        inner.vcpus.insert(args.vcpu, slot);
        Ok(Answer::OK)
    }

    fn kick(&self, args: &Args) -> Reply {
        let vm = self.vm(args)?;
        let mut inner = self.alive(&vm)?;
        self.slot(&mut inner, args)?.kick.kick();
        Ok(Answer::OK)
    }

    fn interrupt(&self, op: Op, args: &Args) -> Reply {
        let vm = self.vm(args)?;
        let inner = self.alive(&vm)?;
        if inner.controllers == Controllers::L1 {
            return Err(Status::BadState.into());
        }
        let [first, second, ..] = args.arg;
        if op == Op::SetGsi {
            if first > 23 || second > 1 {
                return Err(Status::BadArg.into());
            }
            inner.vm.set_line(first as u32, second == 1)?;
            return Ok(Answer::value(1));
        }
        let Some(data) = u32::try_from(second).ok().filter(|_| first >> 20 == 0xfee) else {
            return Err(Status::BadArg.into());
        };
        Ok(Answer::value(inner.vm.send_message(first, data)?.into()))
    }

    fn set_cpuid(&self, args: &Args) -> Reply {
        let vm = self.vm(args)?;
        let mut inner = self.alive(&vm)?;
        // A vCPU in RUN is sealed, or will be if that RUN answers OK.
        let open = flaw::is(Flaw::NothingSealed);
        let body = self.slot(&mut inner, args)?.body.as_mut().filter(|body| open || !body.sealed);
        let body = body.ok_or(Status::Sealed)?;
        let table = self.table::<CpuidLeaf>(args, self.info.limits.cpuid_leaves)?;
        tables::check_cpuid(&table).map_err(|(at, why)| Answer::from(why).at(at as u32))?;
        if !(flaw::is(Flaw::StaleCpuid) && std::mem::replace(&mut body.has_table, true)) {
            body.vcpu.set_cpuid(&table)?;
        }
        Ok(Answer::OK.at(args.count))
    }

    fn set_policy(&self, args: &Args) -> Reply {
        let vm = self.vm(args)?;
        let mut inner = self.alive(&vm)?;
        if (inner.sealed && !flaw::is(Flaw::NothingSealed)) || inner.runs() {
            return Err(Status::Sealed.into());
        }
        let rules = self.table::<MsrRange>(args, self.info.limits.msr_ranges)?;
        let controllers = inner.controllers;
        let policy = Policy::new(
            &rules,
            |msr| holds_always(controllers, msr),
            |msr| holds_always(controllers, msr) || self.backend.holds(msr),
            self.info.limits.shadow_msrs,
        );
        let policy = policy.map_err(|(at, why)| Answer::from(why).at(at as u32))?;
        inner.vm.set_policy(&policy)?;
        for body in inner.vcpus.values_mut().filter_map(|slot| slot.body.as_mut()) {
            body.cells = policy.cells();
        }
        inner.policy = Arc::new(policy);
        Ok(Answer::OK.at(args.count))
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

    /// The list that the call names, checked to be L1's.
    pub(super) fn list<T>(&self, args: &Args, limit: u32) -> Result<Buffer, Answer> {
        if args.count > limit {
            return Err(Status::Limit.into());
        }
        let list = self.memory.list::<T>(args.list, args.count)?;
        self.check_owner(list)?;
        Ok(list)
    }

    /// Refuses memory that L1 gave up by UNSHARE.
    pub(super) fn check_owner(&self, buffer: Buffer) -> Result<(), Answer> {
        let range = buffer.range();
        let frames = if range.is_empty() { None } else { self.memory.frames(range) };
        let private = |frames| lock(&self.frames).first_private(frames).is_some();
        if frames.is_some_and(private) { Err(Status::NotYours.into()) } else { Ok(()) }
    }

    fn table<T: FromBytes + IntoBytes>(&self, args: &Args, limit: u32) -> Result<Vec<T>, Answer> {
        let list = self.list::<T>(args, limit)?;
        Ok((0..args.count).map(|index| self.memory.entry(list, index)).collect())
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
