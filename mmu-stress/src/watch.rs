//! Watches the threads of a round, and tells one that hangs.

use crate::{
    api::ShadowMmu,
    guest::Addresses,
    run::{Options, Shared},
    vcpu::Vcpu,
    vm::Vm,
};
use nix::time::{ClockId, clock_gettime};
use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

/// A vCPU that has done nothing while its process had so much processor time for each thread does
/// nothing any more. Wall time would accuse whoever is not given a processor.
const HUNG: Duration = Duration::from_secs(10);
/// So does one that has done nothing for so long, and waits for something without a processor.
const LOST: Duration = Duration::from_secs(120);

/// An instant, in wall time and in processor time of this process.
#[derive(Clone, Copy)]
struct Moment {
    wall: Instant,
    processor: Duration,
}

impl Moment {
    fn now() -> Self {
        let processor = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID);
        let processor = processor.expect("a process has such a clock").into();
        Self { wall: Instant::now(), processor }
    }
}

/// Watches the threads of a round.
pub(crate) struct Watch<M: ShadowMmu> {
    /// Steps of each thread, and when it did the last.
    beats: Vec<(u64, Moment)>,
    /// Threads that have ended.
    pub(crate) ended: Vec<bool>,
    /// Their vCPUs, by thread.
    pub(crate) vcpus: Vec<(usize, Vcpu<M>)>,
}

impl<M: ShadowMmu> Watch<M> {
    pub(crate) fn new(shared: &Shared) -> Self {
        Self {
            beats: vec![(0, Moment::now()); shared.beats.len()],
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
        let now = Moment::now();
        for (thread, beat) in shared.beats.iter().enumerate() {
            let count = beat.load(Relaxed);
            if self.beats[thread].0 != count {
                self.beats[thread] = (count, now);
            }
        }
        let running = self.ended.iter().filter(|ended| !**ended).count() as u32;
        (0..self.beats.len()).find(|&thread| {
            let last = self.beats[thread].1;
            let hung = now.processor - last.processor > HUNG * running;
            !self.ended[thread] && (hung || now.wall - last.wall > LOST)
        })
    }
}
