//! Boots L1 as a guest of KVM and serves the L0-L1 ABI.
#![forbid(unsafe_code)]

use clap::Parser;
use l0_ref::{cli::Cli, end, machine};
use std::process::ExitCode;

fn main() -> ExitCode {
    match machine::run(&Cli::parse()) {
        Ok(end) => {
            if let Some(message) = end.message() {
                eprintln!("l0-ref: {message}");
            }
            ExitCode::from(end.status())
        }
        Err(why) => {
            eprintln!("l0-ref: {why:#}");
            ExitCode::from(end::BAD_INPUT)
        }
    }
}
