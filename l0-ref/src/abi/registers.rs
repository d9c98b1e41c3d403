//! Serves GET and SET of registers, XSAVE areas, MSRs and local APICs (spec sections 6.3, 6.6, 7.2).
//! Input: guest-controlled values; the hypervisor refuses what a CPU would.

use crate::{
    abi::{
        answer::{Answer, Reply},
        lists::Held,
        server::Server,
        vm::{Body, Inner},
    },
    backend::{Backend, Controllers, Refused, Vcpu as _},
};
use pv_abi::l0::{
    Op, Status,
    list::{LAPIC_BYTES, MsrValue},
    page::{Args, offset},
    regs::{EventFlags, Events, Groups, MpState},
    run::Event,
};

/// The XSAVE area's legacy part and header.
const LEAST_XSAVE: u32 = 576;
/// Places in it.
const MXCSR: usize = 24;
const HEADER: usize = 512;

impl<B: Backend> Server<B> {
    pub(super) fn registers(&self, op: Op, page: u64, args: &Args) -> Reply {
        let groups = match op {
            Op::GetRegs | Op::SetRegs => Groups::from_bits(args.flags).ok_or(Status::BadArg)?,
            _ => Groups::empty(),
        };
        let vm = self.vm(args)?;
        let mut inner = self.alive(&vm)?;
        let controllers = inner.controllers;
        let policy = std::sync::Arc::clone(&inner.policy);
        let body = body(self, &mut inner, args)?;
        match op {
            Op::GetRegs => {
                self.store_groups(body, page, groups)?;
                Ok(Answer::OK)
            }
            Op::SetRegs => {
                if body.awaits.is_some() && groups.intersects(Groups::GPRS | Groups::SPECIAL) {
                    return Err(Status::BadState.into());
                }
                self.load_groups(body, page, groups, controllers)?;
                Ok(Answer::OK)
            }
            Op::GetXsave => self.get_xsave(body, args),
            Op::SetXsave => self.set_xsave(body, args),
            Op::GetLapic | Op::SetLapic if controllers == Controllers::L1 => {
                Err(Status::BadState.into())
            }
            Op::GetLapic => {
                let buffer = self.lapic_buffer(args)?;
                buffer.write(body.vcpu.lapic()?.as_slice());
                Ok(Answer::OK)
            }
            Op::SetLapic => {
                let registers = self.lapic_buffer(args)?.bytes();
                body.vcpu.set_lapic(&registers)?;
                Ok(Answer::OK)
            }
            _ => {
                let held =
                    |msr| crate::abi::vm::holds_always(controllers, msr) || policy.passes(msr);
                match op {
                    Op::GetMsrs => self.get_msrs(body, args, held),
                    _ => self.set_msrs(body, args, held),
                }
            }
        }
    }

    /// Stores groups into the page.
    pub(super) fn store_groups(
        &self,
        body: &Body<B>,
        page: u64,
        groups: Groups,
    ) -> Result<(), Answer> {
        let at = |offset: usize| page + offset as u64;
        if groups.contains(Groups::GPRS) {
            self.memory.write(at(offset::GPRS), &body.vcpu.gprs()?);
        }
        if groups.contains(Groups::SPECIAL) {
            self.memory.write(at(offset::SPECIAL), &body.vcpu.special()?);
        }
        if groups.contains(Groups::DEBUG) {
            self.memory.write(at(offset::DEBUG), &body.vcpu.debug()?);
        }
        if groups.contains(Groups::EVENTS) {
            self.memory.write(at(offset::EVENTS), &body.vcpu.events()?);
        }
        Ok(())
    }

    /// Loads groups from the page, each from one copy.
    pub(super) fn load_groups(
        &self,
        body: &mut Body<B>,
        page: u64,
        groups: Groups,
        controllers: Controllers,
    ) -> Result<(), Answer> {
        let at = |offset: usize| page + offset as u64;
        for group in groups.iter() {
            let loaded = match group {
                Groups::GPRS => body.vcpu.set_gprs(&self.memory.read(at(offset::GPRS))),
                Groups::SPECIAL => body.vcpu.set_special(&self.memory.read(at(offset::SPECIAL))),
                Groups::DEBUG => body.vcpu.set_debug(&self.memory.read(at(offset::DEBUG))),
                _ => {
                    let events = self.memory.read(at(offset::EVENTS));
                    match check_events(&events, controllers) {
                        true => body.vcpu.set_events(&events),
                        false => Err(Refused::BadValue),
                    }
                }
            };
            loaded.map_err(|why| Answer::from(why).at(group.bits().trailing_zeros()))?;
        }
        if groups.contains(Groups::GPRS | Groups::SPECIAL) {
            body.down = false;
        }
        Ok(())
    }

    fn get_xsave(&self, body: &Body<B>, args: &Args) -> Reply {
        let bytes = self.info.limits.xsave_bytes;
        if args.count < bytes {
            return Err(Status::BadArg.into());
        }
        let buffer = self.buffer(args, bytes.into())?;
        let (xcr0, mut area) = body.vcpu.xsave()?;
        area.resize(bytes as usize, 0);
        buffer.write(area.as_slice());
        Ok(Answer::value(xcr0))
    }

    fn set_xsave(&self, body: &mut Body<B>, args: &Args) -> Reply {
        if !(LEAST_XSAVE..=self.info.limits.xsave_bytes).contains(&args.count) {
            return Err(Status::BadArg.into());
        }
        let (xcr0, area) = (args.arg[0], self.buffer(args, args.count.into())?.bytes());
        if !check_xsave(xcr0, &area) {
            return Err(Status::BadArg.into());
        }
        body.vcpu.set_xsave(xcr0, &area)?;
        Ok(Answer::OK)
    }

    fn lapic_buffer(&self, args: &Args) -> Result<Held<'_>, Answer> {
        if (args.count as usize) < LAPIC_BYTES {
            return Err(Status::BadArg.into());
        }
        self.buffer(args, LAPIC_BYTES as u64)
    }

    fn get_msrs(&self, body: &Body<B>, args: &Args, held: impl Fn(u32) -> bool) -> Reply {
        let mut entries = self.list::<MsrValue>(args, self.info.limits.entries)?;
        let mut reply = Ok(Answer::OK.at(args.count));
        for (index, entry) in (0..).zip(&mut entries) {
            match well_formed(entry).and_then(|()| get_msr(body, entry.index, &held)) {
                Ok(value) => entry.value = value,
                Err(answer) => {
                    reply = Err(answer.at(index));
                    break;
                }
            }
        }
        let done = reply.unwrap_or_else(|answer| answer).index;
        let list = self.buffer(args, u64::from(done) * size_of::<MsrValue>() as u64)?;
        list.write(&entries[..done as usize]);
        reply
    }

    fn set_msrs(&self, body: &mut Body<B>, args: &Args, held: impl Fn(u32) -> bool) -> Reply {
        let entries = self.list::<MsrValue>(args, self.info.limits.entries)?;
        for (index, entry) in (0..).zip(&entries) {
            let done = well_formed(entry).and_then(|()| set_msr(body, entry, &held));
            done.map_err(|answer| answer.at(index))?;
        }
        Ok(Answer::OK.at(args.count))
    }
}

fn well_formed(entry: &MsrValue) -> Result<(), Answer> {
    if entry.reserved == 0 { Ok(()) } else { Err(Status::BadArg.into()) }
}

fn get_msr<B: Backend>(
    body: &Body<B>,
    msr: u32,
    held: impl Fn(u32) -> bool,
) -> Result<u64, Answer> {
    match body.cells.get(msr) {
        Some(value) => Ok(value),
        None if held(msr) => Ok(body.vcpu.msr(msr)?),
        None => Err(Status::NoSuch.into()),
    }
}

fn set_msr<B: Backend>(
    body: &mut Body<B>,
    entry: &MsrValue,
    held: impl Fn(u32) -> bool,
) -> Result<(), Answer> {
    if body.cells.set(entry.index, entry.value) {
        return Ok(());
    }
    if !held(entry.index) {
        return Err(Status::NoSuch.into());
    }
    Ok(body.vcpu.set_msr(entry.index, entry.value)?)
}

/// The vCPU that a call names, unless it is in RUN.
fn body<'a, B: Backend>(
    server: &Server<B>,
    inner: &'a mut Inner<B>,
    args: &Args,
) -> Result<&'a mut Body<B>, Answer> {
    Ok(server.slot(inner, args)?.body.as_deref_mut().ok_or(Status::Busy)?)
}

/// Rule L0-REGS-8.
fn check_events(events: &Events, controllers: Controllers) -> bool {
    let state = MpState::from_raw(events.mp_state);
    let state_fits = match controllers {
        Controllers::L0 => !matches!(state, MpState::Unknown(_)),
        Controllers::L1 => state == MpState::Runnable,
    };
    Event::decode(events.injected, events.error).is_ok()
        && EventFlags::from_bits(events.flags).is_some()
        && state_fits
        && events.sipi_vector <= 0xff
        && events.reserved == [0; 11]
}

/// Rule L0-REGS-6: standard form, nothing but what XCR0 enables, a good MXCSR.
fn check_xsave(xcr0: u64, area: &[u8]) -> bool {
    let word = |at: usize| {
        area.get(at..at + 8)
            .and_then(|bytes| bytes.try_into().ok())
            .map_or(u64::MAX, u64::from_le_bytes)
    };
    let mxcsr = word(MXCSR) as u32;
    let compacted_or_reserved = area[HEADER + 8..HEADER + 64].iter().any(|byte| *byte != 0);
    xcr0 & 1 == 1 && word(HEADER) & !xcr0 == 0 && !compacted_or_reserved && mxcsr >> 16 == 0
}
