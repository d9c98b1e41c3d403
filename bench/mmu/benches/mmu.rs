//! Every operation of one vCPU, on Roost's MMU and both baselines.

use criterion::{Criterion, criterion_group, criterion_main};
use mmu_bench::{
    baselines::{OneMutex, ReaderWriter},
    design::{Design, Roost},
    ops::operations,
};

fn design<M: Design + 'static>(criterion: &mut Criterion)
where
    M::Vcpu: 'static,
{
    for operation in operations::<M>() {
        let mut group = criterion.benchmark_group(operation.name);
        // Built when it is measured: a filter leaves most of them out.
        let mut runner = None;
        group.bench_function(M::NAME, |bencher| {
            let runner = runner.get_or_insert_with(operation.make);
            bencher.iter_custom(runner);
        });
    }
}

fn all(criterion: &mut Criterion) {
    design::<Roost>(criterion);
    design::<OneMutex>(criterion);
    design::<ReaderWriter>(criterion);
}

criterion_group!(benches, all);
criterion_main!(benches);
