//! Serves RUN (spec section 6.1).
//! Input: guest-controlled: the control area and register groups, copied once; whatever L2 does.

use crate::{
    abi::{
        answer::{Answer, Reply},
        server::Server,
        tables::{MsrAnswer, Policy},
        vm::{Body, Vm},
    },
    backend::{Backend, Controllers, Refused, StopReason, Vcpu as _},
    flaw::{self, Flaw},
    kick::Kick,
};
use pv_abi::l0::{
    ExitReason, Features, Status,
    exit::ExitFlags,
    page::{Args, IO_BYTES, offset},
    regs::Groups,
    run::{Event, NO_DEADLINE, ReplyFlags, RunControl, RunExit, RunFlags, VcpuState},
};
use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    time::{Duration, Instant},
};

/// What L1 asks, checked.
#[derive(Clone, Copy, Debug)]
struct Request {
    deadline: u64,
    flags: RunFlags,
    write: Groups,
    read: Groups,
    event: Option<Event>,
    reply: u64,
    fault: bool,
}

impl Request {
    fn new(control: &RunControl) -> Option<Self> {
        Some(Self {
            deadline: control.deadline,
            flags: RunFlags::from_bits(control.flags)?,
            write: Groups::from_bits(control.write)?,
            read: Groups::from_bits(control.read)?,
            event: Event::decode(control.event, control.event_error).ok()?,
            reply: control.reply,
            fault: ReplyFlags::from_bits(control.reply_flags)?.contains(ReplyFlags::FAULT),
        })
    }
}

/// A RUN under way.
struct Round<'a, B: Backend> {
    server: &'a Server<B>,
    caller: usize,
    vm: &'a Vm<B>,
    kick: &'a Arc<Kick>,
    policy: Arc<Policy>,
    request: Request,
}

impl<B: Backend> Server<B> {
    pub(super) fn run(&self, caller: usize, page: u64, args: &Args) -> Reply {
        let control: RunControl = self.memory.read(page + offset::CONTROL as u64);
        let vm = self.vm(args)?;
        let (mut body, kick, policy, request) = {
            let mut inner = self.alive(&vm)?;
            if inner.controllers == Controllers::L0 && self.is_withdrawn(Features::IN_L0_APIC) {
                return Err(Status::Withdrawn.into());
            }
            let (controllers, policy) = (inner.controllers, Arc::clone(&inner.policy));
            let slot = self.slot(&mut inner, args)?;
            let kick = Arc::clone(&slot.kick);
            let body = slot.body.as_deref_mut().ok_or(Status::Busy)?;
            let request = Request::new(&control).ok_or(Status::BadArg)?;
            self.prepare(body, page, &request, controllers)?;
            body.sealed = true;
            let body = slot.body.take().ok_or(Status::Busy)?;
            inner.sealed = true;
            (body, kick, policy, request)
        };
        let round = Round { server: self, caller, vm: &vm, kick: &kick, policy, request };
        let exit = round.go(&mut body, page);
        let answer = self.store_exit(&mut body, page, exit, request.read);
        if let Some(slot) = vm.lock().vcpus.get_mut(&args.vcpu) {
            slot.body = Some(body);
        }
        answer
    }

    /// Steps 1 to 5 of rule L0-RUN-1.
    fn prepare(
        &self,
        body: &mut Body<B>,
        page: u64,
        request: &Request,
        controllers: Controllers,
    ) -> Result<(), Answer> {
        let both = Groups::GPRS | Groups::SPECIAL;
        let window = request.flags.contains(RunFlags::WINDOW);
        if (body.down && !request.write.contains(both))
            || (body.awaits.is_some() && request.write.intersects(both))
            || (window && controllers == Controllers::L0)
        {
            return Err(Status::BadState.into());
        }
        let always = if flaw::is(Flaw::GroupsAlwaysLoaded) && body.awaits.is_none() {
            Groups::GPRS
        } else {
            Groups::empty()
        };
        self.load_groups(body, page, request.write | always, controllers)?;
        if let Some(event) = request.event {
            let ready = body.vcpu.readiness()?;
            let can = match event {
                Event::Interrupt(_) => ready.interrupt && controllers == Controllers::L1,
                Event::Nmi => true,
                Event::Exception { .. } => ready.exception,
            };
            if !can && !flaw::is(Flaw::NotReadyIgnored) {
                return Err(Status::BadState.into());
            }
        }
        if let Some(exit) = body.awaits {
            self.complete(body, page, &exit, request);
        }
        if let Some(event) = request.event {
            body.vcpu.inject(event)?;
        }
        Ok(())
    }

    /// Gives the answer to the last exit.
    fn complete(&self, body: &mut Body<B>, page: u64, exit: &RunExit, request: &Request) {
        let read = exit.flags & ExitFlags::READ.bits() != 0;
        match ExitReason::from_raw(exit.reason) {
            ExitReason::Io if read => {
                let all: [u8; IO_BYTES] = self.memory.read(page + offset::IO as u64);
                let len = (exit.size as usize * exit.count as usize).min(IO_BYTES);
                body.vcpu.answer_in(&all[..len]);
            }
            ExitReason::Mmio if read => body.vcpu.answer_load(request.reply),
            ExitReason::MsrRead | ExitReason::MsrWrite => {
                let fault = request.fault && !flaw::is(Flaw::FaultIgnored);
                body.vcpu.answer_msr((!fault).then_some(request.reply));
            }
            _ => {}
        }
    }

    /// Writes the exit area and the groups that L1 wants.
    fn store_exit(&self, body: &mut Body<B>, page: u64, mut exit: RunExit, read: Groups) -> Reply {
        let reason = ExitReason::from_raw(exit.reason);
        body.down = matches!(reason, ExitReason::Shutdown | ExitReason::Failed);
        let awaits = matches!(
            reason,
            ExitReason::Io | ExitReason::Mmio | ExitReason::MsrRead | ExitReason::MsrWrite
        );
        self.store_groups(body, page, read)?;
        exit.valid = read.bits();
        let ready = body.vcpu.readiness()?;
        let mut state = VcpuState::empty();
        state.set(VcpuState::INTERRUPTS_ENABLED, ready.interrupts_enabled);
        state.set(VcpuState::INTERRUPT_READY, ready.interrupt);
        state.set(VcpuState::AWAITS_REPLY, awaits);
        state.set(VcpuState::KERNEL, ready.kernel);
        exit.state = state.bits();
        body.awaits = awaits.then_some(exit);
        self.memory.write(page + offset::EXIT as u64, &exit);
        self.counters().entered(exit.reason);
        Ok(Answer::OK)
    }
}

const fn exit(reason: ExitReason) -> RunExit {
    RunExit {
        reason: reason.raw(),
        flags: 0,
        valid: 0,
        state: 0,
        address: 0,
        data: 0,
        size: 0,
        count: 1,
        args: [0; 6],
        reserved: [0; 5],
    }
}

impl<B: Backend> Round<'_, B> {
    /// Runs L2 until something is to be told.
    fn go(&self, body: &mut Body<B>, page: u64) -> RunExit {
        let flag = body.vcpu.exit_request();
        let running = self.kick.enter(flag);
        let result = self.cycle(body, page);
        drop(running);
        if let Some(alarm) = self.alarm() {
            alarm.disarm();
        }
        result
    }

    fn cycle(&self, body: &mut Body<B>, page: u64) -> RunExit {
        let window = self.request.flags.contains(RunFlags::WINDOW);
        let mut unfinished = body.awaits.take().is_some();
        loop {
            // Requests that come after this are seen by KVM, those before it are looked at next.
            self.kick.clear_request();
            let conversions = self.vm.conversions.load(SeqCst);
            let due = match self.due(body, window) {
                Ok(due) => due,
                Err(why) => return failed(why),
            };
            let stop = match due {
                None => body.vcpu.run(window),
                Some(_) if unfinished => body.vcpu.finish(),
                Some(reason) => return self.tell(reason),
            };
            unfinished = false;
            self.server.counters().stops.count();
            match stop {
                StopReason::Interrupted | StopReason::Window => {}
                StopReason::ReadMsr(msr) => match self.policy.read(&body.cells, msr) {
                    MsrAnswer::Exit => {
                        return RunExit { address: msr.into(), ..exit(ExitReason::MsrRead) };
                    }
                    answer => {
                        self.answer_msr(body, answer);
                        unfinished = true;
                    }
                },
                StopReason::WriteMsr(msr, value) => {
                    match self.policy.write(&mut body.cells, msr, value) {
                        MsrAnswer::Exit => {
                            let exit = exit(ExitReason::MsrWrite);
                            return RunExit { address: msr.into(), data: value, ..exit };
                        }
                        answer => {
                            self.answer_msr(body, answer);
                            unfinished = true;
                        }
                    }
                }
                StopReason::Fault => {
                    // A conversion takes pages away for a moment, under the lock.
                    drop(self.vm.lock());
                    if self.vm.conversions.load(SeqCst) == conversions {
                        return exit(ExitReason::Unmapped);
                    }
                }
                other => return self.describe(other, page),
            }
        }
    }

    fn answer_msr(&self, body: &mut Body<B>, answer: MsrAnswer) {
        self.server.counters().msrs.count();
        body.vcpu.answer_msr(match answer {
            MsrAnswer::Done(value) => Some(value),
            MsrAnswer::Fault | MsrAnswer::Exit => None,
        });
    }

    /// What is to be told instead of running on: step 7.
    fn due(&self, body: &Body<B>, window: bool) -> Result<Option<ExitReason>, Refused> {
        if self.request.flags.contains(RunFlags::COMPLETE_ONLY) {
            return Ok(Some(ExitReason::Completed));
        }
        if self.kick.is_kicked() || self.server.resetting.load(SeqCst) {
            return Ok(Some(ExitReason::Kicked));
        }
        if self.request.deadline != NO_DEADLINE && !flaw::is(Flaw::DeadlineIgnored) {
            let now = self.server.backend.l1_tsc();
            let early = if flaw::is(Flaw::DeadlineEarly) {
                u64::from(self.server.info.limits.tsc_khz) / 2
            } else {
                0
            };
            if now + early >= self.request.deadline {
                return Ok(Some(ExitReason::Deadline));
            }
            self.arm((self.request.deadline - now).saturating_sub(early))?;
        }
        if window && body.vcpu.readiness()?.interrupt {
            return Ok(Some(ExitReason::InterruptWindow));
        }
        Ok(None)
    }

    fn alarm(&self) -> Option<&crate::abi::alarm::Alarm> {
        let wanted = self.request.deadline != NO_DEADLINE;
        wanted.then(|| self.server.alarm(self.caller)).flatten()
    }

    fn arm(&self, ticks: u64) -> Result<(), Refused> {
        let alarm = self.alarm().ok_or(Refused::NoMemory)?;
        let khz = u128::from(self.server.info.limits.tsc_khz.max(1));
        // Rounded up: too early would only be looked at again.
        let nanoseconds = u128::from(ticks) * 1_000_000 / khz + 1;
        let far = Duration::from_secs(3600);
        let wait = u64::try_from(nanoseconds).map_or(far, Duration::from_nanos).min(far);
        alarm.arm(Instant::now() + wait, self.kick);
        Ok(())
    }

    fn tell(&self, reason: ExitReason) -> RunExit {
        if reason == ExitReason::Kicked {
            self.kick.take();
        }
        exit(reason)
    }

    fn describe(&self, stop: StopReason, page: u64) -> RunExit {
        let read = ExitFlags::READ.bits();
        match stop {
            StopReason::Out { port, size, data } => {
                let len = data.len().min(IO_BYTES);
                self.server.memory.write(page + offset::IO as u64, &data[..len]);
                let (size, address) = (u32::from(size.max(1)), port.into());
                RunExit { address, size, count: len as u32 / size, ..exit(ExitReason::Io) }
            }
            StopReason::In { port, size, count } => RunExit {
                address: port.into(),
                flags: read,
                size: size.into(),
                count: count.min((IO_BYTES / usize::from(size.max(1))) as u32),
                ..exit(ExitReason::Io)
            },
            StopReason::Store { gpa, size, data } => {
                RunExit { address: gpa, size: size.into(), data, ..exit(ExitReason::Mmio) }
            }
            StopReason::Load { gpa, size } => {
                RunExit { address: gpa, size: size.into(), flags: read, ..exit(ExitReason::Mmio) }
            }
            StopReason::Hlt => exit(ExitReason::Hlt),
            StopReason::Shutdown => exit(ExitReason::Shutdown),
            StopReason::Tpr(tpr) => RunExit { data: tpr.into(), ..exit(ExitReason::Tpr) },
            StopReason::Failed(code) => RunExit { data: code, ..exit(ExitReason::Failed) },
            // Looked at before.
            StopReason::Interrupted
            | StopReason::Window
            | StopReason::Fault
            | StopReason::ReadMsr(_)
            | StopReason::WriteMsr(..) => exit(ExitReason::Kicked),
        }
    }
}

fn failed(why: Refused) -> RunExit {
    let code = match why {
        Refused::Failed(code) => u64::from(code.unsigned_abs()),
        _ => 0,
    };
    RunExit { data: code, ..exit(ExitReason::Failed) }
}
