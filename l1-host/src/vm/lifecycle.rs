//! Starting, waking, parking and ending the vCPUs of a VM, by whoever holds it.
//! May: nothing. Context: irq-off.

use super::Vm;
use crate::{
    abi_flaw::{Flaw, planted},
    sched,
    vcpu::{Vcpu, remote::Place, stop::Stop},
    vm::build::Start,
};
use alloc::{boxed::Box, vec::Vec};
use core::sync::atomic::{
    AtomicBool,
    Ordering::{Acquire, Release},
};
use spin::Mutex;

/// How a VM ends.
#[derive(Debug, Default)]
pub struct End {
    ending: AtomicBool,
    /// Why, and the vCPU that said so.
    why: Mutex<Option<(Stop, usize)>>,
    /// vCPUs that do not run any more.
    retired: Mutex<Vec<Box<Vcpu>>>,
}

impl Vm {
    /// Why the VM has ended, by which vCPU, and its vCPUs.
    pub fn how_it_ended(&self) -> Option<(Stop, usize, Vec<Box<Vcpu>>)> {
        let (stop, index) = self.end.why.lock().take()?;
        Some((stop, index, core::mem::take(&mut *self.end.retired.lock())))
    }

    /// Gives the VM its vCPUs, none of which runs yet.
    pub fn seat(&self, vcpus: impl IntoIterator<Item = Box<Vcpu>>) {
        for vcpu in vcpus {
            let remote = &self.remotes()[vcpu.index];
            *remote.place.lock() = Place::Off(vcpu);
        }
    }

    /// The VM is about to end: its vCPUs are to stop.
    #[inline]
    pub fn is_ending(&self) -> bool {
        self.end.ending.load(Acquire)
    }

    /// Ends the VM, because vCPU `index` says `stop`; the first one who says so counts.
    pub fn end(&self, stop: Stop, index: usize) {
        {
            let mut why = self.end.why.lock();
            if why.is_some() || self.is_ending() {
                return;
            }
            *why = Some((stop, index));
        }
        self.end.ending.store(true, Release);
        for number in 0..self.vcpus {
            if let Some(vcpu) = self.disturb(number, true) {
                sched::retire(vcpu);
            }
        }
    }

    /// A vCPU does not run any more; true if it was the last.
    pub fn retire(&self, vcpu: Box<Vcpu>) -> bool {
        *vcpu.remote().place.lock() = Place::Gone;
        let mut retired = self.end.retired.lock();
        retired.push(vcpu);
        retired.len() == self.vcpus
    }

    /// Requests interrupt `vector` of vCPU `index`, from outside that vCPU.
    // A function of its own: inlined, it costs every write of the virtual APIC registers.
    #[inline(never)]
    pub fn post(&self, index: usize, vector: u8) {
        if vector >= 16
            && let Some(remote) = self.remotes().get(index)
            && remote.request(vector)
        {
            self.rouse(index);
        }
    }

    /// Has vCPU `index` look at what was left for it.
    pub fn kick(&self, index: usize) {
        // It may be about to park.
        self.remotes()[index].have_look();
        self.rouse(index);
    }

    fn rouse(&self, index: usize) {
        if let Some(vcpu) = self.disturb(index, false) {
            sched::wake(vcpu);
        }
    }

    /// Takes vCPU `index` if nobody has it (one that is off only if asked for), or interrupts the CPU
    /// that has.
    fn disturb(&self, index: usize, off: bool) -> Option<Box<Vcpu>> {
        let mut place = self.remotes()[index].place.lock();
        match core::mem::replace(&mut *place, Place::Queued) {
            Place::Parked(vcpu) => Some(vcpu),
            Place::Off(vcpu) if off => Some(vcpu),
            Place::On(cpu) => {
                *place = Place::On(cpu);
                sched::kick(cpu);
                None
            }
            other => {
                *place = other;
                None
            }
        }
    }

    /// Leaves `vcpu` to whoever wakes it; gives it back if somebody has done so already.
    pub fn park(&self, vcpu: Box<Vcpu>) -> Option<Box<Vcpu>> {
        let remote = &self.remotes()[vcpu.index];
        let mut place = remote.place.lock();
        if remote.is_requested() || self.is_ending() {
            return Some(vcpu);
        }
        *place = Place::Parked(vcpu);
        None
    }

    /// Wakes vCPU `index` if it is parked and its deadline has come.
    pub fn wake_if_due(&self, index: usize, now: u64) {
        let mut place = self.remotes()[index].place.lock();
        if matches!(&*place, Place::Parked(vcpu) if vcpu.deadline().is_some_and(|at| at <= now))
            && let Place::Parked(vcpu) = core::mem::replace(&mut *place, Place::Queued)
        {
            drop(place);
            sched::wake(vcpu);
        }
    }

    /// `vcpu` has stopped itself.
    pub fn switched_off(&self, vcpu: Box<Vcpu>) {
        let mut place = self.remotes()[vcpu.index].place.lock();
        if self.is_ending() {
            drop(place);
            sched::retire(vcpu);
        } else {
            *place = Place::Off(vcpu);
        }
    }

    /// Starts vCPU `index`, which is off, at `start`; false if it is not off. Interrupts that were
    /// requested of it until now are dropped.
    pub fn start_vcpu(&self, index: usize, start: Start) -> bool {
        let Some(remote) = self.remotes().get(index) else { return false };
        let mut place = remote.place.lock();
        let Place::Off(_) = &*place else { return false };
        let Place::Off(mut vcpu) = core::mem::replace(&mut *place, Place::Queued) else {
            unreachable!("the lock is held");
        };
        // While nobody can see that it is on: what is requested afterwards must not be lost.
        if !planted(Flaw::OffKeepsRequests) {
            remote.take_requests(|_| {});
        }
        drop(place);
        vcpu.reset(start);
        sched::wake(vcpu);
        true
    }

    /// True if vCPU `index` has been started and has not stopped itself since.
    pub fn is_on(&self, index: usize) -> bool {
        self.remotes()
            .get(index)
            .is_some_and(|remote| !matches!(&*remote.place.lock(), Place::Off(_) | Place::Gone))
    }
}
