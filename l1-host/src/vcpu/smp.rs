//! The extension's calls for guests with several vCPUs (spec part 2).
//! May: nothing. Context: run-loop. Input: guest-controlled.

use super::{
    Vcpu,
    remote::{Flush, shoot_down},
};
use crate::{
    abi_flaw::{Flaw, planted},
    vm::build::Start,
};
use pv_abi::{
    addr::{Gfn, Gva},
    ext::call,
    hypercall::EINVAL,
};

impl Vcpu {
    /// VCPU_START: (vCPU, entry, argument, root table).
    pub(super) fn start_other(&self, index: u64, entry: u64) -> u64 {
        let (argument, cr3) = (self.context.rdx, self.context.rsi);
        let root = Gfn((cr3 & 0x000f_ffff_ffff_f000) >> 12);
        let start = Start { rip: entry, rsp: 0, rdi: argument, rsi: index, root };
        let fine = Gva(entry).is_canonical() && self.vm.env().ram.host_frame(root).is_some();
        let started =
            fine && usize::try_from(index).is_ok_and(|index| self.vm.start_vcpu(index, start));
        if started || fine && planted(Flaw::StartOfRunning) { 0 } else { EINVAL }
    }

    /// VCPU_STATE: (vCPU).
    pub(super) fn state_of(&self, index: u64) -> u64 {
        match usize::try_from(index) {
            Ok(index) if index < self.vm.vcpus => self.vm.is_on(index).into(),
            _ if planted(Flaw::StateOfNone) => 0,
            _ => EINVAL,
        }
    }

    /// SEND_IPI: (mask, vector).
    pub(super) fn send_ipis(&mut self, mask: u64, vector: u64) -> u64 {
        match u8::try_from(vector) {
            Ok(vector) if vector >= 16 => {
                self.send_to(mask & self.all_vcpus(), vector);
                0
            }
            _ => EINVAL,
        }
    }

    /// FLUSH_VCPUS: (mask, address or [`call::FLUSH_ALL`]).
    pub(super) fn flush_vcpus(&mut self, mask: u64, what: u64) -> u64 {
        let what = if what == call::FLUSH_ALL { Flush::All } else { Flush::Address(Gva(what)) };
        let mask = mask & self.all_vcpus();
        let others = if planted(Flaw::FlushSkipsOthers) { 0 } else { mask & !(1 << self.index) };
        let named = || {
            let remotes = self.vm.remotes().iter().enumerate();
            remotes.filter(|&(index, _)| others & 1 << index != 0).map(|(_, remote)| &**remote)
        };
        named().for_each(|remote| remote.flush(what));
        shoot_down(named());
        if mask & 1 << self.index != 0 {
            match what {
                Flush::All => self.flush_everything(),
                Flush::Address(gva) => self.invlpg(gva),
            }
        }
        0
    }

    fn all_vcpus(&self) -> u64 {
        u64::MAX >> (64 - self.vm.vcpus)
    }
}
