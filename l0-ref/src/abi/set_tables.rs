//! Serves SET_CPUID and SET_MSR_POLICY (spec section 7).
//! Input: guest-controlled entries, copied.

use crate::{
    abi::{
        answer::{Answer, Reply},
        server::Server,
        tables::{self, Policy},
        vm::holds_always,
    },
    backend::{Backend, Vcpu as _, Vm as _},
    flaw::{self, Flaw},
};
use pv_abi::l0::{
    Status,
    list::{CpuidLeaf, MsrRange},
    page::Args,
};
use std::sync::Arc;

impl<B: Backend> Server<B> {
    pub(super) fn set_cpuid(&self, args: &Args) -> Reply {
        let vm = self.vm(args)?;
        let mut inner = self.alive(&vm)?;
        // A vCPU in RUN is sealed, or will be if that RUN answers OK.
        let open = flaw::is(Flaw::NothingSealed);
        let body = self.slot(&mut inner, args)?.body.as_mut().filter(|body| open || !body.sealed);
        let body = body.ok_or(Status::Sealed)?;
        let table = self.list::<CpuidLeaf>(args, self.info.limits.cpuid_leaves)?;
        tables::check_cpuid(&table).map_err(|(at, why)| Answer::from(why).at(at as u32))?;
        if !(flaw::is(Flaw::StaleCpuid) && std::mem::replace(&mut body.has_table, true)) {
            body.vcpu.set_cpuid(&table)?;
        }
        Ok(Answer::OK.at(args.count))
    }

    pub(super) fn set_policy(&self, args: &Args) -> Reply {
        let vm = self.vm(args)?;
        let mut inner = self.alive(&vm)?;
        if (inner.sealed && !flaw::is(Flaw::NothingSealed)) || inner.runs() {
            return Err(Status::Sealed.into());
        }
        let rules = self.list::<MsrRange>(args, self.info.limits.msr_ranges)?;
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
}
