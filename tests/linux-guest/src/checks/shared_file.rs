//! Checks that all views of a file agree: two mappings in two processes, reads and writes.

use crate::{
    check::{Context, Verdict},
    sys::{
        child::Child,
        futex::{set_and_wake, wait_while},
        mapping::{Mapping, PAGE, Sharing},
    },
};
use anyhow::{Result, ensure};
use core::sync::atomic::Ordering::SeqCst;
use std::{fs::File, io, os::unix::fs::FileExt};

const PAGES: usize = 16;
const BYTES: usize = PAGES * PAGE;
const WORDS: usize = BYTES / 8;

/// Parent and child write in turn; each finds what the other wrote, in memory and in the file.
pub fn run(context: &Context) -> Result<Verdict> {
    let file = tempfile::tempfile()?;
    file.set_len(BYTES as u64)?;
    let rounds = context.factor.of(1000);
    let turn = Mapping::anonymous(PAGE, Sharing::Shared)?;
    let first = Mapping::of_file(&file, BYTES, Sharing::Shared)?;
    let child = Child::spawn(|| u8::from(!answer(&turn, &file, rounds).unwrap_or(false)))?;
    for round in 0..rounds {
        let place = place(round);
        first.words()[place].store(2 * round + 1, SeqCst);
        set_and_wake(&turn.words()[0], (2 * round + 1) as u32);
        wait_while(&turn.words()[0], (2 * round + 1) as u32);
        let (memory, in_file) = (first.words()[place].load(SeqCst), read(&file, place)?);
        ensure!(
            (memory, in_file) == (2 * round + 2, 2 * round + 2),
            "round {round}: memory holds {memory}, the file {in_file}"
        );
    }
    child.expect_exit(0)?;
    Ok(Verdict::Pass)
}

/// The child maps the file on its own and writes by system call every other time.
fn answer(turn: &Mapping, file: &File, rounds: u64) -> io::Result<bool> {
    let own = Mapping::of_file(file, BYTES, Sharing::Shared)?;
    let mut good = true;
    for round in 0..rounds {
        wait_while(&turn.words()[0], (2 * round) as u32);
        let (place, value) = (place(round), 2 * round + 2);
        good &= own.words()[place].load(SeqCst) == value - 1;
        good &= read(file, place)? == value - 1;
        if round % 2 == 0 {
            own.words()[place].store(value, SeqCst);
        } else {
            file.write_all_at(&value.to_le_bytes(), 8 * place as u64)?;
        }
        set_and_wake(&turn.words()[0], value as u32);
    }
    Ok(good)
}

fn place(round: u64) -> usize {
    (round as usize * 517) % WORDS
}

fn read(file: &File, place: usize) -> io::Result<u64> {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, 8 * place as u64)?;
    Ok(u64::from_le_bytes(bytes))
}
