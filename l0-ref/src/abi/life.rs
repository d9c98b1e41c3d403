//! Makes and destroys VMs and vCPUs (spec sections 5.1, 5.2).
//! Input: guest-controlled ids and regions, copied.

use crate::{
    abi::{
        answer::{Answer, Reply},
        server::{Server, lock},
        vm::{Body, Slot, Vm},
    },
    backend::{Backend, Controllers, Place, Vm as _},
    flaw::{self, Flaw},
    host_memory::Alias,
};
use pv_abi::l0::{
    Features, Status,
    list::{RESERVED_GPA, Region},
    op::flags,
    page::Args,
};
use std::{ops::Range, sync::Arc};

/// Pages of all regions of a VM together: what KVM keeps for each page of a slot is bounded.
const MOST_PAGES: u64 = 1 << 28;

impl<B: Backend> Server<B> {
    pub(super) fn create_vm(&self, args: &Args) -> Reply {
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
        let regions = self.list::<Region>(args, self.info.limits.regions)?;
        self.check_regions(&regions)?;
        let places = self.reserve(&regions)?;
        let vm = self.backend.create_vm(controllers, &places)?;
        state.vms.insert(args.vm, Arc::new(Vm::new(vm, places, controllers)));
        Ok(Answer::OK.at(args.count))
    }

    pub(super) fn check_regions(&self, regions: &[Region]) -> Result<(), Answer> {
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

    pub(super) fn reserve(&self, regions: &[Region]) -> Result<Vec<Place>, Answer> {
        let file = self.memory.ram().file();
        let place = |region: &Region| {
            let alias = Alias::reserve(region.gpa, region.pages, Arc::clone(file));
            let alias = alias.map_err(|_| Answer::from(Status::NoMemory))?;
            Ok(Place { region: *region, alias: Arc::new(alias) })
        };
        regions.iter().map(place).collect()
    }

    pub(super) fn destroy_vm(&self, args: &Args) -> Reply {
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

    pub(super) fn create_vcpu(&self, args: &Args) -> Reply {
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
}
