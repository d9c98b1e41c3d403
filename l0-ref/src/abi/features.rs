//! Serves ENABLE, and withdraws features (spec section 8).
//! Input: guest-controlled sets of features.

use crate::{
    abi::{
        answer::{Answer, Reply},
        server::{Server, lock},
    },
    backend::Backend,
};
use pv_abi::l0::{Features, Op, Status, page::Args};

impl<B: Backend> Server<B> {
    /// Withdraws features (spec section 8.2).
    pub fn withdraw(&self, features: Features) {
        let mut state = lock(&self.state);
        let gone = state.enabled & features & !state.withdrawn;
        if gone.is_empty() {
            return;
        }
        state.withdrawn |= gone;
        state.generation = state.generation.wrapping_add(1);
        drop(state);
        if gone.intersects(Features::ASSIST | Features::IN_L0_APIC) {
            // Rule L0-WD-3: a RUN in progress returns KICKED.
            self.kick_all();
        }
    }

    pub(super) fn check_feature(&self, op: Op) -> Result<(), Answer> {
        let state = lock(&self.state);
        let needs = op.needs();
        if !state.enabled.contains(needs) {
            return Err(Status::NotSupported.into());
        }
        let all = if needs.is_empty() { needs } else { needs | Features::ASSIST };
        if state.withdrawn.intersects(all) && !op.survives_withdrawal() {
            return Err(Status::Withdrawn.into());
        }
        Ok(())
    }

    pub(super) fn is_withdrawn(&self, features: Features) -> bool {
        lock(&self.state).withdrawn.intersects(features)
    }

    pub(super) fn enable(&self, args: &Args) -> Reply {
        let mut state = lock(&self.state);
        if !state.vms.is_empty() {
            return Err(Status::BadState.into());
        }
        let wanted = u32::try_from(args.arg[0]).ok().and_then(Features::from_bits);
        let Some(wanted) = wanted.filter(|set| {
            let offered = self.info.features & !state.withdrawn;
            offered.contains(*set) && set.consistent()
        }) else {
            return Err(Status::NotSupported.into());
        };
        state.enabled = wanted;
        Ok(Answer::value(wanted.bits().into()))
    }
}
