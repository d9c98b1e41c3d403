//! What several vCPUs do at once, and the alternatives of each part, by number of threads.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use mmu_bench::{
    choices::alternatives,
    report::{DESIGNS, sets::sets},
    threads::Rounds,
};
use std::time::Duration;

/// Threads at most.
const MOST: usize = 16;

fn threads() -> impl Iterator<Item = usize> {
    let cores = std::thread::available_parallelism().map_or(1, Into::into).min(MOST);
    std::iter::successors(Some(1), |n| Some(n * 2)).take_while(move |&n| n < cores).chain([cores])
}

/// Time per operation of all threads together, over `rounds` rounds.
fn time(work: &dyn Rounds, threads: usize, phase: usize, rounds: u64) -> Duration {
    let rates = work.rates(threads, rounds as usize).swap_remove(phase);
    Duration::from_secs_f64(rates.iter().map(|rate| 1.0 / rate).sum())
}

fn designs(criterion: &mut Criterion) {
    let most = threads().last().unwrap_or(1);
    for set in sets() {
        let works = (set.make)(most);
        for (phase, operation) in set.operations.into_iter().enumerate() {
            let mut group = criterion.benchmark_group(format!("{}: {operation}", set.name));
            for (work, design) in works.iter().zip(DESIGNS) {
                for threads in threads() {
                    group.bench_function(BenchmarkId::new(design, threads), |bencher| {
                        bencher.iter_custom(|rounds| time(&**work, threads, phase, rounds));
                    });
                }
            }
        }
    }
}

fn parts(criterion: &mut Criterion) {
    let most = threads().last().unwrap_or(1);
    for alternative in alternatives() {
        let mut group = criterion.benchmark_group(alternative.part);
        let work = (alternative.make)(most);
        for threads in threads() {
            group.bench_function(BenchmarkId::new(alternative.name, threads), |bencher| {
                bencher.iter_custom(|rounds| time(&*work, threads, 0, rounds));
            });
        }
    }
}

fn few() -> Criterion {
    // A round is hundreds of operations already.
    Criterion::default().sample_size(20).measurement_time(Duration::from_secs(2))
}

criterion_group! { name = benches; config = few(); targets = designs, parts }
criterion_main!(benches);
