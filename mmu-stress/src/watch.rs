//! Watches the threads of a round, and tells one that hangs.

use crate::{
    api::ShadowMmu,
    guest::Addresses,
    run::{Options, Shared},
    vcpu::Vcpu,
    vm::Vm,
};
use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

/// A vCPU that has done nothing for so long does nothing any more.
const HUNG: Duration = Duration::from_secs(10);

/// Watches the threads of a round.
pub(crate) struct Watch<M: ShadowMmu> {
    beats: Vec<(u64, Instant)>,
    /// Threads that have ended.
    pub(crate) ended: Vec<bool>,
    /// Their vCPUs, by thread.
    pub(crate) vcpus: Vec<(usize, Vcpu<M>)>,
}

impl<M: ShadowMmu> Watch<M> {
    pub(crate) fn new(shared: &Shared) -> Self {
        Self {
            beats: vec![(0, Instant::now()); shared.beats.len()],
            ended: vec![false; shared.beats.len()],
            vcpus: Vec::new(),
        }
    }

    /// Steps of threads that have not ended: the others are counted already.
    pub(crate) fn running(&self, shared: &Shared) -> u64 {
        let steps = shared.beats.iter().map(|beat| beat.load(Relaxed));
        steps.zip(&self.ended).filter_map(|(steps, ended)| (!ended).then_some(steps)).sum()
    }

    /// What each thread that has not ended does.
    pub(crate) fn under_way(
        &self,
        shared: &Shared,
        options: &Options,
        vms: &[Arc<Vm<M>>],
    ) -> Vec<String> {
        let addresses = Addresses::new();
        let threads = (0..self.ended.len()).filter(|&thread| !self.ended[thread]);
        threads
            .map(|thread| {
                let (vm, vcpu) = (thread % options.vms, thread / options.vms);
                let done = shared.beats[thread].load(Relaxed);
                let step = vms[vm].plan.program(vcpu).nth(done as usize);
                let step = step.map_or_else(String::new, |step| step.describe(&addresses));
                format!("VM {vm}, vCPU {vcpu} is at step {}: {step}", done + 1)
            })
            .collect()
    }

    /// A thread that does nothing any more.
    pub(crate) fn hung(&mut self, shared: &Shared) -> Option<usize> {
        let now = Instant::now();
        for (thread, beat) in shared.beats.iter().enumerate() {
            let count = beat.load(Relaxed);
            if self.beats[thread].0 != count {
                self.beats[thread] = (count, now);
            }
        }
        (0..self.beats.len())
            .find(|&thread| !self.ended[thread] && now - self.beats[thread].1 > HUNG)
    }
}
