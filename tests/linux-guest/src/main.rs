//! Checks a Linux guest from inside, as its `/init` or as an ordinary program.
//!
//! Words, on the kernel's command line or as arguments: `check.only=a,b`, `check.skip=a,b`,
//! `check.n=FACTOR` (scales how often things are done), `check.limit=SECONDS` (for one check),
//! `check.oom` (run the out-of-memory check as an ordinary program too), `check.list`.
#![cfg_attr(not(test), no_main)]

mod check;
mod checks;
mod pinning;
mod runner;
mod sys;
mod tap;

use check::{Context, Factor};
use linux_guest::{
    init::{self, Role, finish, say},
    words::Words,
};
use std::time::Duration;

linux_guest::entry!(run, c"true");

/// The words this program knows.
const WORDS: [&str; 6] = ["only", "skip", "n", "limit", "oom", "list"];

/// Seconds that one check may take, by default.
const LIMIT: u64 = 240;

/// Runs the checks; the result is the exit status.
fn run() -> u8 {
    let (role, words) = init::start("check");
    if words.get("list").is_some() {
        checks::ALL.iter().for_each(|check| say(check.name));
        finish(role, 0);
    }
    let status = match plan(role, &words) {
        Ok(context) => runner::run_all(&context, &words),
        Err(reason) => {
            say(&format!("Bail out! {reason}"));
            say("@DONE pass=0 fail=1");
            2
        }
    };
    finish(role, status)
}

fn plan(role: Role, words: &Words) -> Result<Context, String> {
    words.only_known(&WORDS)?;
    for name in words.list("only").iter().chain(&words.list("skip")) {
        if !checks::ALL.iter().any(|check| check.name == *name) {
            return Err(format!("there is no check {name}; check.list names them"));
        }
    }
    Ok(Context {
        role,
        factor: Factor::new(words.number("n", 1.0)?)?,
        limit: Duration::from_secs(words.number("limit", LIMIT)?),
        out_of_memory: role == Role::Init || words.get("oom").is_some(),
        name: "",
    })
}
