//! Holds what all devices of a VM have: registers, a way to interrupt, and a count of what is under way.
//! May: nothing. Context: run-loop, irq-off. Input: guest-controlled register accesses.

use super::{
    queue::{Broken, Queue},
    registers::{Identity, Registers},
};
use crate::{
    abi_flaw::{Flaw, planted},
    guests,
    vm::Vm,
};
use alloc::boxed::Box;
use pv_abi::virtio::interrupt;

/// A device, as its driver sees it.
#[derive(Debug)]
pub struct Front {
    /// Its register block.
    pub registers: Registers,
    slot: usize,
    route: Route,
    /// Of queues that have one of their own, where what is used in them is told.
    own_routes: Box<[Option<Vector>]>,
    under_way: u32,
    stage: Stage,
    /// vCPUs that wait until it has been reset, by bits.
    waiting: u32,
    /// How often it has stopped, by [`Broken::ALL`].
    stops: [u64; Broken::ALL.len()],
}

/// Whether a device may begin something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// It may.
    Open,
    /// It was reset, and something of before is under way.
    Resetting,
    /// Its guest has ended.
    Ended,
}

/// Where interrupts go.
#[derive(Clone, Copy, Debug)]
pub enum Route {
    /// To the slot's line of the I/O APIC, if there is one.
    Line,
    /// To a vCPU.
    Vector(Vector),
    /// Nowhere.
    Nobody,
}

/// An interrupt of a vCPU.
#[derive(Clone, Copy, Debug)]
pub struct Vector {
    /// The vector.
    pub vector: u8,
    /// The vCPU's number.
    pub vcpu: usize,
}

impl Front {
    /// The device in `slot`, just reset.
    #[must_use]
    pub fn new(slot: usize, identity: Identity) -> Self {
        let own_routes = alloc::vec![None; identity.most_queues()].into();
        let registers = Registers::new(identity);
        let (route, stage) = (Route::Line, Stage::Open);
        let stops = [0; Broken::ALL.len()];
        Self { registers, slot, route, own_routes, under_way: 0, stage, waiting: 0, stops }
    }

    /// Sets where its interrupts go, those of all queues.
    pub fn set_route(&mut self, route: Route) {
        self.route = route;
        self.own_routes.fill(None);
    }

    /// Has what is used in `queue` be told by `vector`, or in the device's way; false if there is no such queue.
    pub fn set_queue_route(&mut self, queue: usize, vector: Option<Vector>) -> bool {
        self.own_routes.get_mut(queue).map(|own| *own = vector).is_some()
    }

    /// Forgets what the driver has set.
    pub fn reset(&mut self, vm: &Vm) {
        self.registers.reset();
        if self.under_way > 0 && self.stage == Stage::Open {
            self.stage = Stage::Resetting;
        }
        self.show_line(vm);
    }

    /// True if it was reset, and uses the guest's memory still.
    #[must_use]
    pub fn is_resetting(&self) -> bool {
        self.stage == Stage::Resetting
    }

    /// vCPU `vcpu` is kicked when the device has been reset.
    pub fn wait(&mut self, vcpu: usize) {
        self.waiting |= 1 << vcpu;
    }

    /// Its guest has ended: it begins nothing any more. True if nothing is under way; if not,
    /// [`guests::look_again`] tells when that is so.
    pub fn close(&mut self) -> bool {
        self.stage = Stage::Ended;
        self.under_way == 0
    }

    /// Something is under way that uses the guest's memory: nothing is reset before it has ended.
    pub fn begin(&mut self) {
        self.under_way += 1;
    }

    /// It has ended, and been told of.
    pub fn end(&mut self, vm: &Vm) {
        self.under_way -= 1;
        match self.stage {
            Stage::Resetting if self.under_way == 0 => {
                self.stage = Stage::Open;
                let waiting = core::mem::take(&mut self.waiting);
                (0..vm.vcpus)
                    .filter(|vcpu| waiting & 1 << vcpu != 0)
                    .for_each(|vcpu| vm.kick(vcpu));
            }
            Stage::Ended if self.under_way == 0 => guests::look_again(),
            _ => {}
        }
    }

    /// How much is under way.
    #[must_use]
    pub const fn under_way(&self) -> u32 {
        self.under_way
    }

    /// Queue `number`, if it is to be served.
    pub fn queue(&mut self, number: usize) -> Option<&mut Queue> {
        if self.stage == Stage::Open { self.registers.queue(number) } else { None }
    }

    /// Interrupts if the driver wants to hear of what was used in `queue`; stops if that could not be
    /// told.
    pub fn used(&mut self, vm: &Vm, number: usize, result: Result<(), Broken>) {
        let Some(queue) = self.queue(number) else { return };
        let wanted = result.and_then(|()| queue.wants_interrupt(vm));
        let own = self.own_routes.get(number).copied().flatten();
        match (wanted, own.filter(|_| !planted(Flaw::QueueVectorIgnored))) {
            (Ok(true), Some(Vector { vector, vcpu })) => vm.post(vcpu, vector),
            (Ok(true), None) => self.interrupt(vm, interrupt::USED),
            (Ok(false), _) => {}
            (Err(broken), _) => self.stop(vm, broken),
        }
    }

    /// The driver has broken the rules: nothing more happens until it resets the device.
    pub fn stop(&mut self, vm: &Vm, why: Broken) {
        self.stops[why as usize] += 1;
        vm.log(format_args!("guest '{}': the device in slot {} stops: {why}", vm.name, self.slot));
        self.registers.stop();
        self.interrupt(vm, interrupt::CONFIG);
    }

    /// How often it has stopped, by reasons that there were.
    pub fn stops(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let counted = Broken::ALL.iter().map(|&(why, name)| (name, self.stops[why as usize]));
        counted.filter(|(_, count)| *count > 0)
    }

    fn interrupt(&mut self, vm: &Vm, why: u32) {
        self.registers.interrupt(why);
        match self.route {
            Route::Line => self.show_line(vm),
            Route::Vector(Vector { vector, vcpu }) => vm.post(vcpu, vector),
            Route::Nobody => {}
        }
    }

    /// Sets the slot's line as InterruptStatus says.
    pub fn show_line(&self, vm: &Vm) {
        let active = self.registers.is_interrupting() && matches!(self.route, Route::Line);
        let raised = vm.bus.lock().set_device_line(self.slot, active);
        for vector in raised {
            vm.post(0, vector);
        }
    }
}
