//! Holds what all devices of a VM have: registers, a way to interrupt, and a count of what is under way.
//! May: nothing. Context: run-loop, irq-off. Input: guest-controlled register accesses.

use super::{
    queue::{Broken, Queue},
    registers::{Identity, Registers},
};
use crate::{log, vm::Vm};
use core::fmt::Display;
use pv_abi::virtio::interrupt;

/// A device, as its driver sees it.
#[derive(Debug)]
pub struct Front {
    /// Its register block.
    pub registers: Registers,
    slot: usize,
    route: Route,
    under_way: u32,
    /// Who waits for what is under way; until then nothing new is begun.
    resets: u32,
}

/// Where interrupts go.
#[derive(Clone, Copy, Debug)]
pub enum Route {
    /// To the slot's line of the I/O APIC, if there is one.
    Line,
    /// To a vCPU.
    Vector {
        /// The vector.
        vector: u8,
        /// The vCPU's number.
        vcpu: usize,
    },
    /// Nowhere.
    Nobody,
}

impl Front {
    /// The device in `slot`, just reset.
    #[must_use]
    pub fn new(slot: usize, identity: Identity) -> Self {
        let registers = Registers::new(identity);
        Self { registers, slot, route: Route::Line, under_way: 0, resets: 0 }
    }

    /// Sets where its interrupts go.
    pub fn set_route(&mut self, route: Route) {
        self.route = route;
    }

    /// Forgets what the driver has set. [`Self::end_reset`] must follow, when nothing is under way.
    pub fn begin_reset(&mut self, vm: &Vm) {
        self.registers.reset();
        self.resets += 1;
        self.show_line(vm);
    }

    /// True, once, if nothing is under way any more.
    pub fn end_reset(&mut self) -> bool {
        let ended = self.under_way == 0;
        if ended {
            self.resets -= 1;
        }
        ended
    }

    /// Something is under way that uses the guest's memory: nothing is reset before it has ended.
    pub fn begin(&mut self) {
        self.under_way += 1;
    }

    /// It has ended.
    pub fn end(&mut self) {
        self.under_way -= 1;
    }

    /// How much is under way.
    #[must_use]
    pub const fn under_way(&self) -> u32 {
        self.under_way
    }

    /// Queue `number`, if it is to be served.
    pub fn queue(&mut self, number: usize) -> Option<&mut Queue> {
        if self.resets > 0 { None } else { self.registers.queue(number) }
    }

    /// Interrupts if the driver wants to hear of what was used in `queue`; stops if that could not be
    /// told.
    pub fn used(&mut self, vm: &Vm, queue: usize, result: Result<(), Broken>) {
        let Some(queue) = self.queue(queue) else { return };
        match result.and_then(|()| queue.wants_interrupt(vm)) {
            Ok(true) => self.interrupt(vm, interrupt::USED),
            Ok(false) => {}
            Err(broken) => self.stop(vm, &broken),
        }
    }

    /// The driver has broken the rules: nothing more happens until it resets the device.
    pub fn stop(&mut self, vm: &Vm, why: &dyn Display) {
        log!("guest '{}': the device in slot {} stops: {why}", vm.name, self.slot);
        self.registers.stop();
        self.interrupt(vm, interrupt::CONFIG);
    }

    fn interrupt(&mut self, vm: &Vm, why: u32) {
        self.registers.interrupt(why);
        match self.route {
            Route::Line => self.show_line(vm),
            Route::Vector { vector, vcpu } => vm.post(vcpu, vector),
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
