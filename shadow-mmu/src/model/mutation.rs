//! Each bug that a test of this crate is sure to find, if it is planted, is found by that test.
//!
//! The program of the tests runs itself once for each: a bug is planted for all its threads.

use crate::mutant::{Finder, Mutant};
use std::{
    env, println,
    process::{Command, Stdio},
    string::String,
    sync::{Mutex, PoisonError},
    thread,
    time::Instant,
    vec::Vec,
};

/// The test that is to find `mutant`, if it is one of those that run here.
fn test_for(mutant: Mutant) -> Option<String> {
    match mutant.finder() {
        Finder::Loom(path) if cfg!(loom) => Some(["model::loom::", path].concat()),
        Finder::Model(path) if !cfg!(loom) => Some(path.into()),
        _ => None,
    }
}

/// True if `test` fails with `mutant` planted.
fn finds(test: &str, mutant: Mutant) -> bool {
    let status = Command::new(env::current_exe().unwrap())
        .args(["--exact", test])
        .env("MUTANT", mutant.name())
        // The first failure is enough, and the same each time.
        .env("PROPTEST_RNG_SEED", "1")
        .env("PROPTEST_MAX_SHRINK_ITERS", "0")
        .env("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "1")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    !status.unwrap().success()
}

#[test]
fn every_mutant_is_found() {
    let hunts = Mutant::ALL.iter().filter_map(|&mutant| Some((mutant, test_for(mutant)?)));
    let queue = Mutex::new(hunts);
    let missed = Mutex::new(Vec::new());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let hunt = || {
        while let Some((mutant, test)) = next() {
            let since = Instant::now();
            if finds(&test, mutant) {
                println!("{} {:.1} s {test}", mutant.name(), since.elapsed().as_secs_f32());
            } else {
                missed.lock().unwrap().push(mutant.name());
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(hunt);
        }
    });
    assert!(missed.lock().unwrap().is_empty(), "not found: {missed:?}");
}
