//! Runs rounds: fresh VMs, one thread per vCPU, until time is up or a rule is broken.

use crate::{
    api::{ShadowMmu, Tracking},
    jitter,
    program::Plan,
    replay::{self, Replay},
    stats::Counts,
    vcpu::Vcpu,
    violation::{Rule, Violation},
    vm::Vm,
    watch::Watch,
    world::Waiting,
};
use serde::Serialize;
use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Barrier,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

const TICK: Duration = Duration::from_millis(100);

/// What to run.
#[derive(Clone, Debug, Serialize)]
pub struct Options {
    /// Seed of the first round; each further round takes the next number.
    pub seed: u64,
    /// How long.
    pub time: Duration,
    /// vCPUs, each a thread, of all VMs together.
    pub threads: usize,
    /// VMs that run side by side.
    pub vms: usize,
    /// How the MMU learns of stores; without it the seed decides.
    pub tracking: Option<Tracking>,
    /// Steps of each vCPU in a round.
    pub steps: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            seed: 1,
            time: Duration::from_secs(10),
            threads: 2,
            vms: 1,
            tracking: None,
            steps: 10_000,
        }
    }
}

/// vCPUs that one VM may have: as many as the guest ABI allows.
pub const MOST_VCPUS: usize = 32;

impl Options {
    /// Says what is impossible about the options.
    ///
    /// # Errors
    /// The reason, with what to do about it.
    pub fn check(&self) -> Result<(), String> {
        let Self { threads, vms, steps, time, .. } = self;
        if *threads == 0 {
            return Err("0 threads can do nothing: ask for 1 or more".into());
        }
        if *vms == 0 {
            return Err("0 VMs leave nothing to stress: ask for 1 or more".into());
        }
        if vms > threads {
            return Err(format!(
                "{vms} VMs need a thread each, but there are {threads}: ask for more threads or \
                 fewer VMs"
            ));
        }
        let vcpus = threads.div_ceil(*vms);
        if vcpus > MOST_VCPUS {
            return Err(format!(
                "{vcpus} vCPUs in one VM are too many, at most {MOST_VCPUS}: ask for fewer \
                 threads or more VMs"
            ));
        }
        if *steps == 0 {
            return Err("rounds of 0 steps find nothing: ask for 1 or more".into());
        }
        if time.is_zero() {
            return Err("a run of 0 seconds finds nothing: ask for 1 or more".into());
        }
        Ok(())
    }

    /// vCPUs of VM `vm`.
    fn vcpus(&self, vm: usize) -> usize {
        self.threads / self.vms + usize::from(vm < self.threads % self.vms)
    }

    /// The VM `vm` in the round of `seed`.
    #[must_use]
    pub fn plan(&self, seed: u64, vm: usize) -> Plan {
        Plan::new(seed, vm, self.vcpus(vm), self.tracking)
    }
}

/// How far a run has come.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Time since the start.
    pub elapsed: Duration,
    /// Steps done.
    pub steps: u64,
    /// Rounds done.
    pub rounds: u64,
    /// The round that is running.
    pub seed: u64,
}

/// What a run found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// What was asked for.
    pub options: Options,
    /// Rounds that came to an end.
    pub rounds: u64,
    /// How long it took, replaying aside.
    pub elapsed: Duration,
    /// What happened.
    pub counts: Counts,
    /// Features that the MMU does not have.
    pub missing: Vec<&'static str>,
    /// The rule that was broken, if one was.
    pub violation: Option<Violation>,
    /// The seed of that round.
    pub seed: Option<u64>,
    /// What became of replaying it in one thread.
    pub replay: Option<Replay>,
}

impl Report {
    /// Steps per second, of all threads together.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.counts.total() as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

/// What threads of a round share.
pub(crate) struct Shared {
    stop: AtomicBool,
    /// Steps that each has done.
    pub(crate) beats: Vec<AtomicU64>,
}

type Ended<M> = (usize, Result<Vcpu<M>, Box<Violation>>);

/// Stresses `M` until time is up or it breaks a rule, and then tries to break it in one thread.
pub fn stress<M: ShadowMmu>(options: &Options, progress: impl FnMut(&Progress)) -> Report {
    let mut report = search::<M>(options, progress);
    if let (Some(violation), Some(seed)) = (&report.violation, report.seed) {
        report.replay = Some(replay::find::<M>(options, seed, violation));
    }
    report
}

/// Stresses `M` until time is up or it breaks a rule.
pub fn search<M: ShadowMmu>(options: &Options, mut progress: impl FnMut(&Progress)) -> Report {
    let begin = Instant::now();
    let mut report = Report {
        options: options.clone(),
        rounds: 0,
        elapsed: Duration::ZERO,
        counts: Counts::default(),
        missing: Vec::new(),
        violation: None,
        seed: None,
        replay: None,
    };
    while begin.elapsed() < options.time {
        let seed = options.seed.wrapping_add(report.rounds);
        let done = report.counts.total();
        let rounds = report.rounds;
        let result = round::<M>(options, seed, begin + options.time, &mut report, |steps| {
            progress(&Progress { elapsed: begin.elapsed(), steps: done + steps, rounds, seed });
        });
        report.elapsed = begin.elapsed();
        if let Err(violation) = result {
            (report.violation, report.seed) = (Some(*violation), Some(seed));
            break;
        }
        report.rounds += 1;
    }
    report
}

fn round<M: ShadowMmu>(
    options: &Options,
    seed: u64,
    deadline: Instant,
    report: &mut Report,
    mut progress: impl FnMut(u64),
) -> Result<(), Box<Violation>> {
    let vms: Vec<_> = (0..options.vms)
        .map(|vm| Arc::new(Vm::<M>::new(options.plan(seed, vm), Waiting::ForVcpus)))
        .collect();
    let shared = Arc::new(Shared {
        stop: AtomicBool::new(false),
        beats: (0..options.threads).map(|_| AtomicU64::new(0)).collect(),
    });
    let (sender, receiver) = mpsc::channel::<Ended<M>>();
    let start = Arc::new(Barrier::new(options.threads));
    for thread in 0..options.threads {
        let (vm, index) = (vms[thread % options.vms].clone(), thread / options.vms);
        let (shared, sender, start) = (shared.clone(), sender.clone(), start.clone());
        let steps = options.steps;
        thread::spawn(move || {
            // Every third round runs without stops.
            jitter::seed(if seed.is_multiple_of(3) { 0 } else { seed << 8 | thread as u64 | 1 });
            start.wait();
            let ended = caught(&vm.clone(), index, || {
                let mut vcpu = Vcpu::new(vm, index)?;
                let program = vcpu.program();
                for step in program.take(steps as usize) {
                    vcpu.execute(&step)?;
                    if shared.beats[thread].fetch_add(1, Relaxed) & 63 == 0
                        && shared.stop.load(Relaxed)
                    {
                        break;
                    }
                }
                vcpu.rest();
                Ok(vcpu)
            });
            // Nobody listens any more if another thread has hung.
            let _ = sender.send((thread, ended));
        });
    }
    drop(sender);
    let mut ended = Vec::new();
    let mut violation = None;
    let mut watch = Watch::new(&shared);
    while ended.len() < options.threads {
        match receiver.recv_timeout(TICK) {
            Ok((thread, result)) => {
                watch.ended[thread] = true;
                ended.push(thread);
                match result {
                    Ok(vcpu) => {
                        report.counts.add(&vcpu.counts);
                        watch.vcpus.push((thread, vcpu));
                    }
                    Err(found) => {
                        shared.stop.store(true, SeqCst);
                        vms.iter().for_each(|vm| vm.world.end());
                        violation.get_or_insert(found);
                    }
                }
            }
            Err(RecvTimeoutError::Timeout) => progress(watch.running(&shared)),
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if Instant::now() > deadline {
            shared.stop.store(true, SeqCst);
        }
        if let Some(thread) = watch.hung(&shared) {
            let detail = watch.under_way(&shared, options, &vms);
            vms.iter().for_each(|vm| vm.world.end());
            let (vm, vcpu) = (thread % options.vms, thread / options.vms);
            let step = shared.beats[thread].load(Relaxed) + 1;
            let what = "the step does not return".into();
            let hung = Violation { rule: Rule::S3, vm, vcpu, step, what, detail };
            return Err(violation.unwrap_or_else(|| Box::new(hung)));
        }
    }
    if let Some(violation) = violation {
        return Err(violation);
    }
    for (thread, vcpu) in &mut watch.vcpus {
        let vm = vms[*thread % options.vms].clone();
        caught(&vm, *thread / options.vms, || vcpu.finish())?;
    }
    for vm in &vms {
        for feature in vm.features.missing() {
            if !report.missing.contains(&feature) {
                report.missing.push(feature);
            }
        }
        check(vm)?;
    }
    Ok(())
}

/// Checks `vm` while no vCPU runs.
pub(crate) fn check<M: ShadowMmu>(vm: &Vm<M>) -> Result<(), Box<Violation>> {
    caught(vm, 0, || {
        vm.check().map_err(|(rule, what)| {
            let (vm, detail) = (vm.plan.vm, Vec::new());
            Box::new(Violation { rule, vm, vcpu: 0, step: 0, what, detail })
        })
    })
}

/// Runs `body`; a panic is a violation.
pub(crate) fn caught<M: ShadowMmu, T>(
    vm: &Vm<M>,
    vcpu: usize,
    body: impl FnOnce() -> Result<T, Box<Violation>>,
) -> Result<T, Box<Violation>> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|payload| {
        vm.world.end();
        let what = format!("panic: {}", message(&*payload));
        let (vm, detail) = (vm.plan.vm, Vec::new());
        Err(Box::new(Violation { rule: Rule::S5, vm, vcpu, step: 0, what, detail }))
    })
}

fn message(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("of unknown kind")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_options_are_refused_with_a_reason() {
        let refused = |change: fn(&mut Options)| {
            let mut options = Options::default();
            change(&mut options);
            options.check().unwrap_err()
        };
        assert_eq!(Options::default().check(), Ok(()));
        assert!(refused(|o| o.threads = 0).contains("threads"));
        assert!(refused(|o| o.vms = 0).contains("VMs"));
        assert!(refused(|o| o.vms = 3).contains("3 VMs need a thread each"));
        assert!(refused(|o| o.threads = 33).contains("at most 32"));
        assert!(refused(|o| o.steps = 0).contains("steps"));
        assert!(refused(|o| o.time = Duration::ZERO).contains("seconds"));
    }

    #[test]
    fn threads_are_dealt_out_to_vms() {
        let options = Options { threads: 5, vms: 2, ..Options::default() };
        assert_eq!([0, 1].map(|vm| options.vcpus(vm)), [3, 2]);
        for thread in 0..5 {
            assert!(thread / 2 < options.vcpus(thread % 2));
        }
    }
}
