//! Chooses who runs a guest: L1 with shadow tables, or L0.
//! May: take-frame, alloc. Context: boot.

use crate::{
    assisted::{self, Machine, Refusal},
    hw::percpu::Cpu,
    log,
    stats::{ExitStats, Timing},
    vcpu::{self, Vcpu, stop::Stop},
    vm::{
        Vm,
        build::{self, Context},
        console::Console,
        roots,
    },
};
use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::fmt;
use pv_abi::bundle::{Backend as Wanted, Guest};

/// A guest that is ready to run, whoever runs it.
pub trait Backend {
    /// Its console.
    fn console(&self) -> Arc<Console>;
    /// Runs it on `cpu` until it ends.
    fn run(&mut self, cpu: &Cpu) -> Stop;
    /// Tells the user what the registers were in the end.
    fn report_registers(&self);
    /// Entries of its page tables that should not be there; L1 has failed if there is one.
    fn violations(&self) -> u64;
    /// Its exits to L1's switcher.
    fn exits(&self) -> &ExitStats;
    /// What else was counted, by name.
    fn counters(&self, cpu: &Cpu) -> Vec<(&'static str, u64)>;
}

/// Why a guest cannot be run.
#[derive(Debug)]
pub enum Error {
    /// Not by L1.
    Shadow(build::Error),
    /// Not by L0, which the user insists on.
    Assisted(Refusal),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shadow(error) => error.fmt(f),
            Self::Assisted(refusal) => refusal.fmt(f),
        }
    }
}

/// Builds `guest` for the backend that it wants, or for L0 if that will have it and L1 otherwise.
///
/// # Errors
/// [`Error`] says what is missing.
pub fn build(
    guest: &Guest,
    context: &Context<'_>,
    cpu: &'static Cpu,
    timing: Timing,
) -> Result<Box<dyn Backend>, Error> {
    if guest.backend != Wanted::Shadow {
        match assisted::build(guest, context) {
            Ok(machine) => {
                log!("guest '{}' is run by L0", guest.name);
                return Ok(Box::new(Assisted { machine, exits: ExitStats::new(Timing::Off) }));
            }
            Err(refusal) if guest.backend == Wanted::Assisted => {
                return Err(Error::Assisted(refusal));
            }
            Err(Refusal::Absent) => {}
            Err(refusal) => log!("guest '{}' is run by L1, for {refusal}", guest.name),
        }
    }
    let (vm, start) = build::build(guest, context).map_err(Error::Shadow)?;
    vm.window.show_in(context.window);
    let vcpu = Vcpu::new(cpu, vm.clone(), 0, start, timing);
    Ok(Box::new(Shadow { vm, vcpu }))
}

/// Run by L1.
struct Shadow {
    vm: Arc<Vm>,
    vcpu: Vcpu,
}

impl Backend for Shadow {
    fn console(&self) -> Arc<Console> {
        self.vm.console.clone()
    }

    fn run(&mut self, cpu: &Cpu) -> Stop {
        vcpu::run(cpu, &mut self.vcpu)
    }

    fn report_registers(&self) {
        self.vcpu.report_registers();
    }

    fn violations(&self) -> u64 {
        roots::check(&self.vm)
    }

    fn exits(&self) -> &ExitStats {
        self.vcpu.exits()
    }

    fn counters(&self, cpu: &Cpu) -> Vec<(&'static str, u64)> {
        self.vcpu.counters(cpu)
    }
}

/// Run by L0: the switcher has no part in it.
struct Assisted {
    machine: Machine,
    exits: ExitStats,
}

impl Backend for Assisted {
    fn console(&self) -> Arc<Console> {
        self.machine.console.clone()
    }

    fn run(&mut self, cpu: &Cpu) -> Stop {
        self.machine.run(cpu)
    }

    fn report_registers(&self) {}

    fn violations(&self) -> u64 {
        0
    }

    fn exits(&self) -> &ExitStats {
        &self.exits
    }

    fn counters(&self, _: &Cpu) -> Vec<(&'static str, u64)> {
        self.machine.counters()
    }
}
