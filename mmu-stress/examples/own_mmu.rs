//! Stresses an MMU that is not part of the crate: here the example with a bug, in place of yours.

use mmu_stress::{
    Access, Mode, NoTables, Options, Outcome, Scope, Setup, ShadowMmu, Simple, Translations, World,
    api::{Gfn, Gva, Hpa},
    stress,
};
use std::{process::ExitCode, sync::Arc};

/// Flushes one address too few: those whose page number ends in 5.
struct Own(Simple);

impl ShadowMmu for Own {
    type Vcpu = <Simple as ShadowMmu>::Vcpu;

    fn create(world: Arc<World>, setup: &Setup) -> Self {
        Self(Simple::create(world, setup))
    }

    fn vcpu(&self, index: usize) -> Self::Vcpu {
        self.0.vcpu(index)
    }

    fn load_root(
        &self,
        vcpu: &mut Self::Vcpu,
        root: Gfn,
        translations: Translations,
    ) -> Result<(), NoTables> {
        self.0.load_root(vcpu, root, translations)
    }

    fn root(&self, vcpu: &Self::Vcpu, mode: Mode) -> Hpa {
        self.0.root(vcpu, mode)
    }

    fn fault(&self, vcpu: &mut Self::Vcpu, gva: Gva, access: Access) -> Outcome {
        self.0.fault(vcpu, gva, access)
    }

    fn flush(&self, vcpu: &mut Self::Vcpu, scope: Scope) {
        self.0.flush(vcpu, scope);
    }

    fn flush_address(&self, vcpu: &mut Self::Vcpu, gva: Gva) {
        if gva.0 >> 12 & 0xf != 5 {
            self.0.flush_address(vcpu, gva);
        }
    }

    fn make_room(&self, vcpu: &mut Self::Vcpu) {
        self.0.make_room(vcpu);
    }
}

fn main() -> ExitCode {
    let report = stress::<Own>(&Options::default(), |_| ());
    let Some(violation) = report.violation else {
        println!("{:.0} steps per second, and no rule broken", report.rate());
        return ExitCode::SUCCESS;
    };
    println!("{violation}");
    for step in report.replay.into_iter().flat_map(|replay| replay.steps) {
        println!("{step}");
    }
    ExitCode::FAILURE
}
