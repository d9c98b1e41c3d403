//! A vCPU of an L2.
//! Input: guest-controlled values, which KVM judges where `registers` does not.

use super::{
    Xsetbv,
    registers::{
        debug_from, debug_to, efer_is_good, events_from, events_to, gprs_from, gprs_to,
        inject_into, special_from, special_to,
    },
};
use crate::{
    backend::{Controllers, Readiness, Refused, StopReason, Vcpu},
    run_area::{self, ExitFlag},
};
use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED,
    KVM_MP_STATE_RUNNABLE, Msrs, kvm_cpuid_entry2, kvm_lapic_state, kvm_mp_state, kvm_msr_entry,
    kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcr, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{SyncReg, VcpuExit, VcpuFd};
use pv_abi::l0::{
    list::{CpuidLeaf, LAPIC_BYTES, LeafFlags},
    regs::{Debug, Events, Gprs, MpState, Special},
    run::Event,
};

/// RFLAGS.IF.
const INTERRUPTS: u64 = 1 << 9;
/// Codes for the log of L1, beside the system's error numbers.
const INTERNAL: u64 = 0x1_0000;
const ENTRY: u64 = 0x2_0000;
/// What L2 must never see, whatever its table says: VMX, SVM.
const VMX: (u32, u32) = (1, 1 << 5);
const SVM: (u32, u32) = (0x8000_0001, 1 << 2);

/// A vCPU of KVM.
#[derive(Debug)]
pub struct KvmVcpu {
    fd: VcpuFd,
    flag: ExitFlag,
    controllers: Controllers,
    xsetbv: Xsetbv,
    /// KVM leaves the registers in the run area after each run.
    synced: bool,
    /// They have not changed since.
    fresh: bool,
}

fn refused(error: kvm_ioctls::Error) -> Refused {
    match std::io::Error::from_raw_os_error(error.errno()).kind() {
        std::io::ErrorKind::OutOfMemory => Refused::NoMemory,
        std::io::ErrorKind::InvalidInput => Refused::BadValue,
        _ => Refused::Failed(error.errno()),
    }
}

impl KvmVcpu {
    /// Takes over a new vCPU; `synced`: KVM can leave registers in the run area.
    #[must_use]
    pub fn new(mut fd: VcpuFd, controllers: Controllers, xsetbv: Xsetbv, synced: bool) -> Self {
        if synced {
            for group in [SyncReg::Register, SyncReg::SystemRegister, SyncReg::VcpuEvents] {
                fd.set_sync_valid_reg(group);
            }
        }
        let flag = ExitFlag::of(&mut fd);
        Self { fd, flag, controllers, xsetbv, synced, fresh: false }
    }

    fn regs(&self) -> Result<kvm_regs, Refused> {
        if self.fresh { Ok(self.fd.sync_regs().regs) } else { self.fd.get_regs().map_err(refused) }
    }

    fn sregs(&self) -> Result<kvm_sregs, Refused> {
        if self.fresh {
            Ok(self.fd.sync_regs().sregs)
        } else {
            self.fd.get_sregs().map_err(refused)
        }
    }

    fn vcpu_events(&self) -> Result<kvm_vcpu_events, Refused> {
        if self.fresh {
            Ok(self.fd.sync_regs().events)
        } else {
            self.fd.get_vcpu_events().map_err(refused)
        }
    }

    fn enter(&mut self) -> StopReason {
        self.fresh = false;
        let stop = match self.fd.run() {
            Ok(VcpuExit::IoOut(port, data)) => {
                let data = data.to_vec();
                StopReason::Out { port, size: run_area::io_size(&mut self.fd), data }
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                let bytes = data.len();
                let size = run_area::io_size(&mut self.fd);
                StopReason::In { port, size, count: (bytes / usize::from(size.max(1))) as u32 }
            }
            Ok(VcpuExit::MmioRead(gpa, data)) => StopReason::Load { gpa, size: data.len() as u8 },
            Ok(VcpuExit::MmioWrite(gpa, data)) => {
                let mut all = [0; 8];
                let size = data.len().min(8);
                all[..size].copy_from_slice(&data[..size]);
                StopReason::Store { gpa, size: size as u8, data: u64::from_le_bytes(all) }
            }
            Ok(VcpuExit::Hlt) => StopReason::Hlt,
            Ok(VcpuExit::X86Rdmsr(access)) => StopReason::ReadMsr(access.index),
            Ok(VcpuExit::X86Wrmsr(access)) => StopReason::WriteMsr(access.index, access.data),
            Ok(VcpuExit::IrqWindowOpen) => StopReason::Window,
            Ok(VcpuExit::Shutdown) => StopReason::Shutdown,
            Ok(VcpuExit::MemoryFault { .. }) => StopReason::Fault,
            Ok(VcpuExit::SetTpr) => StopReason::Tpr((self.fd.get_kvm_run().cr8 & 0xf) as u8),
            Ok(VcpuExit::Intr | VcpuExit::IoapicEoi(_)) => StopReason::Interrupted,
            Ok(VcpuExit::InternalError) => StopReason::Failed(INTERNAL),
            Ok(VcpuExit::FailEntry(reason, _)) => StopReason::Failed(ENTRY | reason),
            Ok(_) => StopReason::Failed(INTERNAL | 1),
            Err(error) => return failed_run(error),
        };
        self.fresh = self.synced;
        stop
    }
}

/// Before KVM has left registers: they are where they were.
fn failed_run(error: kvm_ioctls::Error) -> StopReason {
    let error = std::io::Error::from_raw_os_error(error.errno());
    match error.kind() {
        std::io::ErrorKind::Interrupted | std::io::ErrorKind::WouldBlock => StopReason::Interrupted,
        _ if error.raw_os_error() == Some(nix::libc::EFAULT) => StopReason::Fault,
        _ => StopReason::Failed(error.raw_os_error().unwrap_or(0).unsigned_abs().into()),
    }
}

impl Vcpu for KvmVcpu {
    fn exit_request(&mut self) -> ExitFlag {
        self.flag.clone()
    }

    fn gprs(&self) -> Result<Gprs, Refused> {
        Ok(gprs_from(&self.regs()?))
    }

    fn set_gprs(&mut self, value: &Gprs) -> Result<(), Refused> {
        let regs = gprs_to(value)?;
        self.fresh = false;
        self.fd.set_regs(&regs).map_err(refused)
    }

    fn special(&self) -> Result<Special, Refused> {
        Ok(special_from(&self.sregs()?))
    }

    fn set_special(&mut self, value: &Special) -> Result<(), Refused> {
        let sregs = special_to(value)?;
        self.fresh = false;
        self.fd.set_sregs(&sregs).map_err(refused)?;
        // KVM takes CR8 from here at each run, where it has no APIC.
        self.fd.get_kvm_run().cr8 = value.cr8;
        Ok(())
    }

    fn debug(&self) -> Result<Debug, Refused> {
        Ok(debug_from(&self.fd.get_debug_regs().map_err(refused)?))
    }

    fn set_debug(&mut self, value: &Debug) -> Result<(), Refused> {
        self.fd.set_debug_regs(&debug_to(value)?).map_err(refused)
    }

    fn events(&self) -> Result<Events, Refused> {
        let mp_state = match self.controllers {
            Controllers::L1 => MpState::Runnable,
            Controllers::L0 => match self.fd.get_mp_state().map_err(refused)?.mp_state {
                KVM_MP_STATE_RUNNABLE => MpState::Runnable,
                KVM_MP_STATE_HALTED => MpState::Halted,
                _ => MpState::WaitForSipi,
            },
        };
        Ok(events_from(&self.vcpu_events()?, mp_state.raw()))
    }

    fn set_events(&mut self, value: &Events) -> Result<(), Refused> {
        let events = events_to(value)?;
        self.fresh = false;
        self.fd.set_vcpu_events(&events).map_err(refused)?;
        if self.controllers == Controllers::L1 {
            return Ok(());
        }
        let mp_state = match MpState::from_raw(value.mp_state) {
            MpState::Runnable => KVM_MP_STATE_RUNNABLE,
            MpState::Halted => KVM_MP_STATE_HALTED,
            _ => KVM_MP_STATE_INIT_RECEIVED,
        };
        self.fd.set_mp_state(kvm_mp_state { mp_state }).map_err(refused)
    }

    fn msr(&self, index: u32) -> Result<u64, Refused> {
        let entry = kvm_msr_entry { index, ..Default::default() };
        let mut msrs = Msrs::from_entries(&[entry]).map_err(|_| Refused::NoMemory)?;
        match self.fd.get_msrs(&mut msrs).map_err(refused)? {
            1 => Ok(msrs.as_slice()[0].data),
            _ => Err(Refused::Unknown),
        }
    }

    fn set_msr(&mut self, index: u32, value: u64) -> Result<(), Refused> {
        if index == pv_abi::msr::arch::EFER && !efer_is_good(value) {
            return Err(Refused::BadValue);
        }
        self.fresh = false;
        let entry = kvm_msr_entry { index, data: value, ..Default::default() };
        let msrs = Msrs::from_entries(&[entry]).map_err(|_| Refused::NoMemory)?;
        match self.fd.set_msrs(&msrs).map_err(refused)? {
            1 => Ok(()),
            _ => Err(Refused::BadValue),
        }
    }

    fn xsave(&self) -> Result<(u64, Vec<u8>), Refused> {
        let xcrs = self.fd.get_xcrs().map_err(refused)?;
        let area = self.fd.get_xsave().map_err(refused)?;
        let bytes = area.region.iter().flat_map(|word| word.to_le_bytes()).collect();
        Ok((xcrs.xcrs[0].value, bytes))
    }

    fn set_xsave(&mut self, xcr0: u64, area: &[u8]) -> Result<(), Refused> {
        let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
        xcrs.xcrs[0] = kvm_xcr { xcr: 0, value: xcr0, ..Default::default() };
        self.fd.set_xcrs(&xcrs).map_err(refused)?;
        let mut xsave = kvm_xsave::default();
        for (word, bytes) in xsave.region.iter_mut().zip(area.chunks_exact(4)) {
            *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        run_area::set_xsave(&self.fd, &xsave).map_err(refused)
    }

    fn lapic(&self) -> Result<Vec<u8>, Refused> {
        let state = self.fd.get_lapic().map_err(refused)?;
        Ok(state.regs.iter().map(|byte| byte.cast_unsigned()).collect())
    }

    fn set_lapic(&mut self, registers: &[u8]) -> Result<(), Refused> {
        let mut state = kvm_lapic_state::default();
        for (to, from) in state.regs.iter_mut().zip(&registers[..LAPIC_BYTES]) {
            *to = from.cast_signed();
        }
        self.fresh = false;
        self.fd.set_lapic(&state).map_err(refused)
    }

    fn set_cpuid(&mut self, table: &[CpuidLeaf]) -> Result<(), Refused> {
        let entries: Vec<_> = table.iter().map(entry).collect();
        let cpuid = CpuId::from_entries(&entries).map_err(|_| Refused::NoMemory)?;
        self.fresh = false;
        self.fd.set_cpuid2(&cpuid).map_err(refused)?;
        self.xsetbv.preset(&self.fd, &entries).map_err(refused)
    }

    fn readiness(&self) -> Result<Readiness, Refused> {
        let (flags, events) = (self.regs()?.rflags, self.vcpu_events()?);
        let delivering = events.exception.injected != 0
            || events.exception.pending != 0
            || events.nmi.injected != 0
            || events.interrupt.injected != 0;
        let enabled = flags & INTERRUPTS != 0;
        let with_l1 = self.controllers == Controllers::L1;
        Ok(Readiness {
            interrupts_enabled: enabled,
            interrupt: with_l1 && enabled && events.interrupt.shadow == 0 && !delivering,
            exception: !delivering,
            kernel: self.sregs()?.ss.dpl == 0,
        })
    }

    fn inject(&mut self, event: Event) -> Result<(), Refused> {
        self.fresh = false;
        if event == Event::Nmi {
            return self.fd.nmi().map_err(refused);
        }
        let mut events = self.fd.get_vcpu_events().map_err(refused)?;
        inject_into(&mut events, event);
        self.fd.set_vcpu_events(&events).map_err(refused)
    }

    fn answer_in(&mut self, data: &[u8]) {
        run_area::answer_in(&mut self.fd, data);
    }

    fn answer_load(&mut self, data: u64) {
        run_area::answer_load(&mut self.fd, data);
    }

    fn answer_msr(&mut self, value: Option<u64>) {
        run_area::answer_msr(&mut self.fd, value);
    }

    fn run(&mut self, window: bool) -> StopReason {
        self.fd.get_kvm_run().request_interrupt_window = window.into();
        self.enter()
    }

    fn finish(&mut self) -> StopReason {
        self.flag.set(true);
        let stop = self.enter();
        self.flag.set(false);
        stop
    }
}

fn entry(leaf: &CpuidLeaf) -> kvm_cpuid_entry2 {
    let [eax, ebx, mut ecx, edx] = leaf.answer;
    for (function, bit) in [VMX, SVM] {
        if leaf.leaf == function {
            ecx &= !bit;
        }
    }
    let one_subleaf = leaf.flags & LeafFlags::SUBLEAF.bits() != 0;
    let flags = if one_subleaf { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 };
    kvm_cpuid_entry2 {
        function: leaf.leaf,
        index: leaf.subleaf,
        flags,
        eax,
        ebx,
        ecx,
        edx,
        ..Default::default()
    }
}
