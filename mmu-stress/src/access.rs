//! Guest accesses and stores, from the instruction to the judgement.

use crate::{
    api::{Access, Gfn, Gva, Kind, Mode, Outcome, ShadowMmu},
    cpu::{Broken, Request, Source, Translation},
    guest::{FRAMES, ROOTS},
    history::{Change, Telling, Time},
    judge::Claim,
    oracle::Found,
    step::{At, Writer},
    vcpu::{FAULTS, Note, Vcpu},
    violation::{Rule, Violation},
};
use std::sync::atomic::Ordering::Relaxed;

impl<M: ShadowMmu> Vcpu<M> {
    pub(crate) fn entry(&self, at: At) -> u64 {
        self.vm.world.table(at.gfn).map_or(0, |table| table.0[at.slot].load(Relaxed))
    }

    pub(crate) fn store(
        &mut self,
        at: At,
        change: Change,
        by: Writer,
    ) -> Result<(), Box<Violation>> {
        if by == Writer::Kernel {
            let address = self.addresses.direct(at.gfn);
            let access = Access { kind: Kind::Write, mode: Mode::Supervisor };
            return self.access(address, access, at.slot, change);
        }
        self.enter();
        let vm = self.vm.clone();
        // A root that is not pinned is nobody's promise (N4).
        let pin = ROOTS.iter().position(|&root| root == at.gfn).filter(|_| at.slot < 256);
        let unpinned = pin.and_then(|root| vm.pinned(root)).filter(|pinned| !**pinned);
        let telling = |old: u64| {
            let present = old & crate::bits::P != 0;
            match &unpinned {
                Some(_) => Telling::Silent,
                None if present && vm.world.is_shown(at.gfn) => Telling::Note,
                None => Telling::Direct,
            }
        };
        let mut noted = false;
        let stored = vm.oracle.store(at.gfn, at.slot, change, |old| {
            let telling = telling(old);
            noted = telling == Telling::Note;
            telling
        });
        let stored = stored.map_err(|tampered| self.tampered(at, tampered))?;
        if let Some(stored) = stored.filter(|_| noted) {
            let at = at.gfn.gpa().offset(8 * at.slot as u64);
            self.ring.push(Note { at, serial: stored.serial });
        }
        self.counts.stores += 1;
        Ok(())
    }

    #[cold]
    fn tampered(&self, at: At, tampered: crate::history::Tampered) -> Box<Violation> {
        self.violation(Rule::I5, format!("{at} {tampered}"))
    }

    pub(crate) fn request(&self, address: usize, access: Access) -> Request {
        let Access { kind, mode } = access;
        let table = self.vm.mmu.root(&self.mmu, mode);
        Request { root: self.root, table, mode, kind, address }
    }

    pub(crate) fn explain(&self, gva: Gva) -> Vec<String> {
        self.vm.mmu.explain(&self.mmu, gva)
    }

    #[cold]
    pub(crate) fn broken(&self, broken: Broken) -> Box<Violation> {
        self.violation(broken.rule, broken.what)
    }

    /// Executes an access, and its store if it is a write.
    pub(crate) fn access(
        &mut self,
        address: usize,
        access: Access,
        slot: usize,
        change: Change,
    ) -> Result<(), Box<Violation>> {
        for tries in 0..FAULTS {
            self.enter();
            let begin = self.vm.oracle.clock.now();
            let request = self.request(address, access);
            let found = self.cpu.access(&self.vm.world, request);
            if let Some((found, source)) = found.map_err(|broken| self.broken(broken))? {
                return self.reached(address, access, (found, source), begin, (slot, change));
            }
            if self.fault(address, access)? {
                return Ok(());
            }
            if tries > 64 {
                std::thread::yield_now();
            }
            if self.vm.world.is_over() {
                return Ok(());
            }
        }
        let gva = self.addresses.gva(address).0;
        let what = format!("{} {gva:#x} faults for ever", crate::step::words(access));
        Err(self.violation(Rule::S3, what))
    }

    /// The access succeeded. It and its store are one instruction: nothing that happens outside
    /// the guest comes between.
    #[inline]
    fn reached(
        &mut self,
        address: usize,
        access: Access,
        (found, source): (Translation, Source),
        begin: Time,
        (slot, change): (usize, Change),
    ) -> Result<(), Box<Violation>> {
        match source {
            Source::Tlb => self.counts.tlb += 1,
            Source::Link | Source::Walk => self.counts.walks += 1,
        }
        let gfn = self.vm.world.guest_frame(found.hpa).unwrap_or(Gfn(FRAMES));
        let dead = self.vm.moves.forbids(gfn, self.vm.world.bank_of(found.hpa), begin);
        let claim = Claim::access(gfn, access);
        let now = self.vm.oracle.clock.now();
        if access.kind == Kind::Write {
            let stored = self.vm.oracle.store(gfn, slot, change, |_| Telling::Direct);
            stored.map_err(|tampered| self.tampered(At { gfn, slot }, tampered))?;
            self.vm.writes.record(gfn, begin, &self.vm.oracle.clock);
            self.counts.stores += 1;
        }
        if dead {
            let what = format!("host frame {:#x} of frame {:#x} is gone", found.hpa.0, gfn.0);
            return Err(self.violation(Rule::H1, what));
        }
        self.judge(address, claim, source, now)
    }

    /// The access faulted. True if that was all: it was refused, or is a device's.
    fn fault(&mut self, address: usize, access: Access) -> Result<bool, Box<Violation>> {
        self.counts.faults += 1;
        let gva = self.addresses.gva(address);
        let start = self.now_outside();
        let mut tries = 0;
        let outcome = loop {
            let outcome = self.vm.mmu.fault(&mut self.mmu, gva, access);
            if outcome != Outcome::NoTables {
                break outcome;
            }
            self.make_room(&mut tries, || format!("mapping {:#x}", gva.0))?;
            if self.starved || self.vm.world.is_over() {
                return Ok(true);
            }
        };
        match outcome {
            Outcome::Mapped | Outcome::NoTables => return Ok(false),
            Outcome::Reflect(code) => {
                self.counts.reflected += 1;
                self.judge_refusal(address, access, code, start)?;
            }
            Outcome::Mmio(gpa) => {
                self.counts.devices += 1;
                self.judge_device(address, access, gpa, start)?;
            }
        }
        Ok(true)
    }

    pub(crate) fn count(&mut self, found: Found) {
        self.counts.judged += 1;
        self.counts.unjudged += u64::from(found == Found::Unknown);
    }
}
