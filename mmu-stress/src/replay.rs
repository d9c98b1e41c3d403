//! Replays a round in one thread, step by step, and shrinks it to the steps that matter.

use crate::{
    api::ShadowMmu,
    guest::Addresses,
    program::Plan,
    run::{self, Options},
    stats::Counts,
    step::Step,
    vcpu::Vcpu,
    violation::{Rule, Violation},
    vm::Vm,
    world::Waiting,
};
use fastrand::Rng;
use serde::Serialize;
use std::{
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

/// Schedules that are tried for a seed.
const SCHEDULES: u64 = 8;
/// Time for shrinking.
const SHRINKING: Duration = Duration::from_secs(20);
/// A replay that takes longer hangs.
const HUNG: Duration = Duration::from_secs(5);

/// A step and the vCPU that takes it.
pub type Scheduled = (usize, Step);

/// What became of a replay.
#[derive(Clone, Debug, Serialize)]
pub struct Replay {
    /// The rule that the replay broke; without one, only threads that really run side by side
    /// break it.
    pub violation: Option<Violation>,
    /// The steps that are enough to break it.
    pub steps: Vec<String>,
    /// How many there were at first.
    pub before: usize,
}

/// The steps of all vCPUs of a round, dealt out by scheduler number `schedule`.
#[must_use]
pub fn schedule(plan: &Plan, steps: u64, schedule: u64) -> Vec<Scheduled> {
    let vcpus = plan.setup.vcpus;
    let mut rng = Rng::with_seed(plan.seed ^ schedule << 56);
    let mut programs: Vec<_> = (0..vcpus).map(|vcpu| plan.program(vcpu)).collect();
    let mut vcpu = 0;
    (0..steps * vcpus as u64)
        .filter_map(|_| {
            if rng.u32(0..3) == 0 {
                vcpu = rng.usize(0..vcpus);
            }
            Some((vcpu, programs[vcpu].next()?))
        })
        .collect()
}

/// Executes `steps` one after the other.
///
/// # Errors
/// [`Violation`], whose step is the number of the step in `steps`, from 0.
pub fn execute<M: ShadowMmu>(plan: &Plan, steps: &[Scheduled]) -> Result<Counts, Box<Violation>> {
    let vm = Arc::new(Vm::<M>::new(plan.clone(), Waiting::ForNobody));
    let vcpus = (0..plan.setup.vcpus).map(|index| Vcpu::new(vm.clone(), index));
    let mut vcpus = vcpus.collect::<Result<Vec<_>, _>>()?;
    for (number, (vcpu, step)) in steps.iter().enumerate() {
        let result = run::caught(&vm, *vcpu, || take(&mut vcpus, *vcpu, step));
        result.map_err(|violation| Box::new(Violation { step: number as u64, ..*violation }))?;
    }
    let mut counts = Counts::default();
    vcpus.iter_mut().for_each(Vcpu::rest);
    for (index, vcpu) in vcpus.iter_mut().enumerate() {
        run::caught(&vm, index, || vcpu.finish())?;
        counts.add(&vcpu.counts);
    }
    run::check(&vm)?;
    Ok(counts)
}

/// vCPU `index` takes `step`. If tables run out, the others pass through L1 first.
fn take<M: ShadowMmu>(
    vcpus: &mut [Vcpu<M>],
    index: usize,
    step: &Step,
) -> Result<(), Box<Violation>> {
    for _ in 0..64 {
        vcpus[index].execute(step)?;
        if !vcpus[index].is_starved() {
            return Ok(());
        }
        for vcpu in &mut *vcpus {
            vcpu.pass_through();
        }
    }
    Err(vcpus[index].violation(Rule::S3, "no tables for ever".into()))
}

/// The same in a thread of its own, given up when it hangs.
fn watched<M: ShadowMmu>(plan: &Plan, steps: &[Scheduled]) -> Option<Box<Violation>> {
    let (sender, receiver) = mpsc::channel();
    let (plan, all) = (plan.clone(), steps.to_vec());
    thread::spawn(move || {
        // Nobody listens if this took too long.
        let _ = sender.send(execute::<M>(&plan, &all).err());
    });
    receiver.recv_timeout(HUNG).unwrap_or_else(|_| {
        let (what, detail) = ("the last step does not return".into(), Vec::new());
        let step = steps.len() as u64;
        Some(Box::new(Violation { rule: Rule::S3, vm: 0, vcpu: 0, step, what, detail }))
    })
}

/// Tries to break the rule of `violation`, or else any, in one thread with the round of `seed`.
pub fn find<M: ShadowMmu>(options: &Options, seed: u64, violation: &Violation) -> Replay {
    let plan = options.plan(seed, violation.vm);
    // The steps until then, and some more: the order is another.
    let steps = options.steps.min(2 * violation.step.max(1000));
    let mut other = None;
    for number in 0..SCHEDULES {
        let steps = schedule(&plan, steps, number);
        let Some(found) = watched::<M>(&plan, &steps) else { continue };
        if found.rule == violation.rule {
            return shrunk::<M>(&plan, steps, *found);
        }
        other.get_or_insert((steps, found));
    }
    // One bug can break several rules.
    if let Some((steps, found)) = other {
        return shrunk::<M>(&plan, steps, *found);
    }
    Replay { violation: None, steps: Vec::new(), before: 0 }
}

/// Replays the round of `seed` in one thread. `None` if it breaks no rule.
pub fn replay<M: ShadowMmu>(options: &Options, seed: u64) -> Option<Replay> {
    for vm in 0..options.vms {
        let plan = options.plan(seed, vm);
        for number in 0..SCHEDULES {
            let steps = schedule(&plan, options.steps, number);
            if let Some(found) = watched::<M>(&plan, &steps) {
                return Some(shrunk::<M>(&plan, steps, *found));
            }
        }
    }
    None
}

fn shrunk<M: ShadowMmu>(plan: &Plan, mut steps: Vec<Scheduled>, found: Violation) -> Replay {
    let before = steps.len();
    if (found.step as usize) < steps.len() && found.rule != Rule::S3 {
        steps.truncate(found.step as usize + 1);
    }
    let deadline = Instant::now() + SHRINKING;
    let mut last = found.clone();
    let steps = shrink(steps, |candidate| {
        if Instant::now() > deadline {
            return false;
        }
        let again = watched::<M>(plan, candidate).filter(|again| again.rule == found.rule);
        again.is_some_and(|again| {
            last = *again;
            true
        })
    });
    let addresses = Addresses::new();
    let lines = steps.iter().enumerate().map(|(number, (vcpu, step))| {
        format!("{:3}. vCPU {vcpu}: {}", number, step.describe(&addresses))
    });
    Replay { violation: Some(last), steps: lines.collect(), before }
}

/// Delta debugging: drops chunks of ever smaller size as long as `fails` holds for the rest.
pub fn shrink<T: Clone>(mut items: Vec<T>, mut fails: impl FnMut(&[T]) -> bool) -> Vec<T> {
    let mut size = items.len().div_ceil(2);
    while size > 0 {
        let mut start = 0;
        let mut dropped = false;
        while start < items.len() {
            let end = (start + size).min(items.len());
            let candidate: Vec<T> = items[..start].iter().chain(&items[end..]).cloned().collect();
            if fails(&candidate) {
                items = candidate;
                dropped = true;
            } else {
                start = end;
            }
        }
        if size == 1 && !dropped {
            break;
        }
        size = if size == 1 { 1 } else { size.div_ceil(2) };
    }
    items
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shrinking_leaves_what_is_needed() {
        let needed = [13, 14, 77];
        let fails = |items: &[i32]| needed.iter().all(|item| items.contains(item));
        assert_eq!(shrink((0..100).collect(), fails), needed);
        assert_eq!(shrink(vec![1, 2], |_| true), [], "nothing is needed");
        assert_eq!(shrink(vec![1, 2], |_| false), [1, 2]);
    }

    #[test]
    fn a_schedule_keeps_each_program_in_order() {
        let plan = Plan::new(5, 0, 3, None);
        let steps = schedule(&plan, 200, 1);
        assert_eq!(steps.len(), 600);
        for vcpu in 0..3 {
            let own: Vec<_> = steps.iter().filter(|(of, _)| *of == vcpu).map(|(_, s)| *s).collect();
            let program: Vec<_> = plan.program(vcpu).take(own.len()).collect();
            assert_eq!(own, program);
        }
    }
}
