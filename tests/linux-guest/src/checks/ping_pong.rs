//! Checks that processes and threads wake each other, and only when they should.

use crate::{
    check::{Context, Verdict},
    sys::{
        child::Child,
        futex::{set_and_wake, wait_while},
        mapping::{Mapping, PAGE, Sharing},
    },
};
use anyhow::{Result, ensure};
use std::{
    io::{self, PipeReader, PipeWriter, Read, Write},
    sync::Mutex,
    thread,
};

/// A message goes there and comes back larger by one.
pub fn pipes(context: &Context) -> Result<Verdict> {
    let rounds = context.factor.of(5000);
    let (mut from_parent, mut to_child) = io::pipe()?;
    let (mut from_child, mut to_parent) = io::pipe()?;
    let child = Child::spawn(|| {
        let echoed = (0..rounds).try_for_each(|_| {
            let number = receive(&mut from_parent)?;
            send(&mut to_parent, number + 1)
        });
        u8::from(echoed.is_err())
    })?;
    for round in 0..rounds {
        send(&mut to_child, round << 20)?;
        let answer = receive(&mut from_child)?;
        ensure!(answer == (round << 20) + 1, "round {round}: {answer:#x} came back");
    }
    child.expect_exit(0)?;
    Ok(Verdict::Pass)
}

fn send(pipe: &mut PipeWriter, number: u64) -> io::Result<()> {
    pipe.write_all(&number.to_le_bytes())
}

fn receive(pipe: &mut PipeReader) -> io::Result<u64> {
    let mut bytes = [0; 8];
    pipe.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

/// Two processes take turns on a futex.
pub fn futexes(context: &Context) -> Result<Verdict> {
    let rounds = context.factor.of(5000);
    let shared = Mapping::anonymous(PAGE, Sharing::Shared)?;
    let word = &shared.words()[0];
    let child = Child::spawn(|| {
        for _ in 0..rounds {
            wait_while(word, 0);
            set_and_wake(word, 0);
        }
        0
    })?;
    for _ in 0..rounds {
        set_and_wake(word, 1);
        wait_while(word, 1);
    }
    child.expect_exit(0)?;
    Ok(Verdict::Pass)
}

/// Four threads count together.
pub fn mutex(context: &Context) -> Result<Verdict> {
    const THREADS: u64 = 4;
    let each = context.factor.of(50_000);
    let counter = Mutex::new(0_u64);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for index in 0..each {
                    let mut count = counter.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                    *count += 1;
                    if index % 1024 == 0 {
                        // Let others find the lock taken.
                        thread::yield_now();
                    }
                }
            });
        }
    });
    let count = counter.into_inner().unwrap_or_default();
    ensure!(count == THREADS * each, "{count} counted, {} expected", THREADS * each);
    Ok(Verdict::Pass)
}
