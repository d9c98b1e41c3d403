//! Stands in for a hypervisor: keeps what it is told, refuses what it finds odd, and stops L2 for
//! random reasons. Memory is as real as with KVM.

use super::tables::Policy;
use crate::{
    backend::{Backend, Controllers, Logging, Place, Readiness, Refused, StopReason, Vcpu, Vm},
    run_area::ExitFlag,
};
use pv_abi::l0::{
    list::CpuidLeaf,
    regs::{Debug, Events, Gprs, Special},
    run::Event,
};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

/// Counts what is alive.
#[derive(Clone, Debug, Default)]
pub struct Stub {
    pub alive: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct Life(Arc<AtomicUsize>);

impl Life {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, SeqCst);
        Self(Arc::clone(count))
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

#[derive(Debug)]
pub struct StubVm {
    life: Life,
    pages: Vec<u64>,
}

#[derive(Debug)]
pub struct StubVcpu {
    _life: Life,
    flag: ExitFlag,
    gprs: Gprs,
    special: Special,
    debug: Debug,
    events: Events,
    turn: u64,
}

impl Backend for Stub {
    type Vm = StubVm;

    fn create_vm(&self, _: Controllers, places: &[Place]) -> Result<StubVm, Refused> {
        let pages = places.iter().map(|place| place.alias.pages()).collect();
        Ok(StubVm { life: Life::new(&self.alive), pages })
    }

    fn l1_tsc(&self) -> u64 {
        1 << 40
    }

    fn holds(&self, msr: u32) -> bool {
        msr == 0x48
    }
}

impl Vm for StubVm {
    type Vcpu = StubVcpu;

    fn create_vcpu(&self, id: u32) -> Result<StubVcpu, Refused> {
        Ok(StubVcpu {
            _life: Life::new(&self.life.0),
            flag: ExitFlag::detached(),
            gprs: Gprs::default(),
            special: Special::default(),
            debug: Debug::default(),
            events: Events::default(),
            turn: id.into(),
        })
    }

    fn set_policy(&self, _: &Policy) -> Result<(), Refused> {
        Ok(())
    }

    fn set_logging(&self, _: Logging) -> Result<(), Refused> {
        Ok(())
    }

    fn take_log(&self, region: usize) -> Result<Vec<u64>, Refused> {
        let pages = self.pages.get(region).ok_or(Refused::Unknown)?;
        Ok(vec![0x5; pages.div_ceil(64) as usize])
    }

    fn set_line(&self, _: u32, _: bool) -> Result<(), Refused> {
        Ok(())
    }

    fn send_message(&self, _: u64, data: u32) -> Result<bool, Refused> {
        Ok(data != 0)
    }
}

impl Vcpu for StubVcpu {
    fn exit_request(&mut self) -> ExitFlag {
        self.flag.clone()
    }

    fn gprs(&self) -> Result<Gprs, Refused> {
        Ok(self.gprs)
    }

    fn set_gprs(&mut self, value: &Gprs) -> Result<(), Refused> {
        self.gprs = *value;
        if value.rip == 0xbad { Err(Refused::BadValue) } else { Ok(()) }
    }

    fn special(&self) -> Result<Special, Refused> {
        Ok(self.special)
    }

    fn set_special(&mut self, value: &Special) -> Result<(), Refused> {
        self.special = *value;
        Ok(())
    }

    fn debug(&self) -> Result<Debug, Refused> {
        Ok(self.debug)
    }

    fn set_debug(&mut self, value: &Debug) -> Result<(), Refused> {
        self.debug = *value;
        Ok(())
    }

    fn events(&self) -> Result<Events, Refused> {
        Ok(self.events)
    }

    fn set_events(&mut self, value: &Events) -> Result<(), Refused> {
        self.events = *value;
        Ok(())
    }

    fn msr(&self, index: u32) -> Result<u64, Refused> {
        Ok(index.into())
    }

    fn set_msr(&mut self, _: u32, value: u64) -> Result<(), Refused> {
        if value >> 63 == 1 { Err(Refused::BadValue) } else { Ok(()) }
    }

    fn xsave(&self) -> Result<(u64, Vec<u8>), Refused> {
        Ok((7, vec![1; 4096]))
    }

    fn set_xsave(&mut self, _: u64, _: &[u8]) -> Result<(), Refused> {
        Ok(())
    }

    fn lapic(&self) -> Result<Vec<u8>, Refused> {
        Ok(vec![2; 1024])
    }

    fn set_lapic(&mut self, _: &[u8]) -> Result<(), Refused> {
        Ok(())
    }

    fn set_cpuid(&mut self, _: &[CpuidLeaf]) -> Result<(), Refused> {
        Ok(())
    }

    fn readiness(&self) -> Result<Readiness, Refused> {
        let ready = self.turn.is_multiple_of(2);
        Ok(Readiness {
            interrupts_enabled: ready,
            interrupt: ready,
            exception: true,
            kernel: ready,
        })
    }

    fn inject(&mut self, _: Event) -> Result<(), Refused> {
        Ok(())
    }

    fn answer_in(&mut self, _: &[u8]) {}
    fn answer_load(&mut self, _: u64) {}
    fn answer_msr(&mut self, _: Option<u64>) {}

    fn run(&mut self, window: bool) -> StopReason {
        if self.flag.is_set() {
            return StopReason::Interrupted;
        }
        self.turn += 1;
        let word = self.turn.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let msr = (word >> 40) as u32 % 0x1000;
        match self.turn % 16 {
            0 => StopReason::Out { port: 0x3f8, size: 1, data: vec![7; word as usize % 2000] },
            1 => StopReason::In { port: 0x60, size: 4, count: (word >> 50) as u32 },
            2 => StopReason::Store { gpa: word, size: 8, data: word },
            3 => StopReason::Load { gpa: word, size: 4 },
            4 => StopReason::Hlt,
            5..=7 => StopReason::ReadMsr(msr),
            8 | 9 => StopReason::WriteMsr(msr, word),
            10 if window => StopReason::Window,
            11 => StopReason::Shutdown,
            12 => StopReason::Fault,
            13 => StopReason::Tpr(3),
            14 => StopReason::Failed(word),
            _ => StopReason::Interrupted,
        }
    }

    fn finish(&mut self) -> StopReason {
        StopReason::Interrupted
    }
}
