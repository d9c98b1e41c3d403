//! Delivers events of supervisor mode to the kernel's handler, and keeps the virtual interrupt flag.
//! May: unsafe. Context: any. Input: written by the hypervisor, trusted.
#![expect(unsafe_code, reason = "the handler, set once at the start")]

use crate::{hypercall, local::local, pvcs::shared, user::Registers};
use core::{
    cell::UnsafeCell,
    sync::atomic::Ordering::{AcqRel, Acquire, Relaxed},
};
use pv_abi::{
    event::{INT80, RFLAGS_IF},
    hypercall as number,
    msr::x2apic,
    pvcs::flags,
};

/// An exception or an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// The architecture's for exceptions: see [`pv_abi::event`].
    pub vector: u8,
    /// 0 if the vector has none.
    pub error_code: u16,
    /// Page faults: the address.
    pub address: u64,
    /// Where it happened.
    pub rip: u64,
    /// Flags of the interrupted code, with the virtual interrupt flag.
    pub rflags: u64,
}

impl Event {
    /// Copies the event out of the PVCS and leaves the fields to the next one (EVT-3).
    pub(crate) fn take() -> Self {
        let page = shared();
        let event = Self {
            vector: 0,
            error_code: page.event_errcode.load(Relaxed),
            address: page.cr2.load(Relaxed),
            rip: page.rip.load(Relaxed),
            rflags: page.eflags.load(Relaxed).into(),
        };
        Self { vector: page.take_vector() as u8, ..event }
    }

    /// The vector, if this is an interrupt of the local APIC and no exception.
    #[must_use]
    pub const fn interrupt(&self) -> Option<u8> {
        if self.vector >= 32 && self.vector != INT80 { Some(self.vector) } else { None }
    }
}

/// What the entry for events of supervisor mode has put on the stack: what IRETQ takes is last.
#[repr(C)]
pub(crate) struct Frame {
    registers: [u64; size_of::<Registers>() / 8 - 1],
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

struct Handler(UnsafeCell<fn(&Event)>);

// SAFETY: written once, before the first event.
unsafe impl Sync for Handler {}

static HANDLER: Handler = Handler(UnsafeCell::new(|_| {}));

/// Sets the kernel's handler.
///
/// # Safety
/// Called before the first event can come.
pub(crate) unsafe fn set_handler(handler: fn(&Event)) {
    // SAFETY: nobody reads it yet.
    unsafe { *HANDLER.0.get() = handler };
}

/// First Rust code of an event of supervisor mode.
pub(crate) extern "C" fn enter(frame: &mut Frame) {
    let event = Event::take();
    // The flag that counts is virtual: it is restored below.
    frame.rflags = event.rflags & !RFLAGS_IF;
    // SAFETY: set at the start, and never again.
    let handler = unsafe { *HANDLER.0.get() };
    handler(&event);
    if event.rflags & RFLAGS_IF != 0 {
        enable();
    }
}

/// Sets the virtual interrupt flag and lets in what is waiting (EVT-9).
///
/// What is let in ends by calling this, too. It does not let in more, but leaves that to the loop
/// that it came from, so that interrupts that come faster than they are handled do not pile up on
/// the stack.
pub fn enable() {
    let local = local();
    let flags = &local.pvcs.event_flags;
    flags.fetch_or(flags::IF, AcqRel);
    let waiting = || flags.load(Acquire) & flags::IP != 0;
    // The test after the loop is for what came when the flag was still set.
    while waiting() && !local.letting_in.swap(true, Relaxed) {
        while waiting() {
            hypercall::plain(number::IRQ_WIN);
        }
        local.letting_in.store(false, Relaxed);
    }
}

/// Clears the virtual interrupt flag; returns whether it was set.
pub fn disable() -> bool {
    shared().event_flags.fetch_and(!flags::IF, AcqRel) & flags::IF != 0
}

/// Sets the virtual interrupt flag and waits for an interrupt, as one step.
pub fn wait() {
    hypercall::plain(number::IRQ_HALT);
}

/// Ends the interrupt that is in service, so that others of its priority can come.
pub fn end_of_interrupt() {
    // SAFETY: touches the local APIC alone.
    let done = unsafe { hypercall::wrmsr(x2apic::EOI, 0) };
    done.expect("the local APIC has this register");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interrupts_are_told_from_exceptions() {
        let event = |vector| Event { vector, error_code: 0, address: 0, rip: 0, rflags: 0 };
        for vector in [0, 14, 31, 0x80] {
            assert_eq!(event(vector).interrupt(), None);
        }
        assert_eq!([32, 255].map(|vector| event(vector).interrupt()), [Some(32), Some(255)]);
    }
}
