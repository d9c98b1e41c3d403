//! The command people use: runs guests, checks the machine, builds initial ramdisks.
#![forbid(unsafe_code)]

mod accel;
mod bundle;
mod check;
mod cli;
mod config;
mod control;
mod core_file;
mod cpio;
mod device;
mod disk;
mod dump;
mod elf;
mod files;
mod folder;
mod grub;
mod host_cpu;
mod image;
mod images;
mod initrd;
mod install;
mod kernel;
mod live;
mod log;
mod memory;
mod mmu_stress;
mod net;
mod network;
mod outcome;
mod partition;
mod plan;
mod preflight;
mod process;
mod progress;
mod qemu;
mod qmp;
mod run;
#[cfg(test)]
mod sample_elf;
mod stats;
mod terminal;
mod watch;

use clap::Parser;
use cli::{Cli, Command};
use std::process::ExitCode;

/// Exit status for anything wrong before a guest starts.
const BAD_INPUT: u8 = 2;

fn main() -> ExitCode {
    let status = match Cli::parse().command {
        Command::Run(args) if args.pack.is_some() => run::pack(&args).map(|()| 0),
        Command::Run(args) => run::run(&args).map(|outcome| outcome.status()),
        Command::Check(args) => check::check(&args).map(u8::from),
        Command::Image(args) => image::write(&args),
        Command::Install(args) => install::install(&args).map(|()| 0),
        Command::Initrd(args) => initrd::write(&args).map(|()| 0),
        Command::MmuStress(args) => mmu_stress::run(&args).map(u8::from),
    };
    ExitCode::from(status.unwrap_or_else(|why| {
        eprintln!("roost: {why:#}");
        BAD_INPUT
    }))
}
