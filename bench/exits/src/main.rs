//! Measures what each kind of exit costs, from inside a native guest, and writes the table of exits.
//!
//! The image (`target/roost/exits`) is the guest. It takes each operation many times and prints one
//! line of JSON: the median and the worst of each in ticks of the TSC, which are instructions in a
//! machine that counts them (`roost run --icount`). A word `rounds=N` on its command line says how
//! often. The same program on the host reads that line from its input and writes `docs/exits.md`.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
mod document;
#[cfg(not(target_os = "none"))]
mod reasons;

#[cfg(target_os = "none")]
mod code;
#[cfg(target_os = "none")]
mod kernel;
#[cfg(target_os = "none")]
mod machine;
#[cfg(target_os = "none")]
mod operations;

#[cfg(not(target_os = "none"))]
fn main() -> std::process::ExitCode {
    let mut input = String::new();
    let read = std::io::Read::read_to_string(&mut std::io::stdin(), &mut input);
    match read.map_err(Into::into).and_then(|_| document::render(&input)) {
        Ok(text) => {
            print!("{text}");
            std::process::ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("exits: {error:#}; its input is what the image printed (scripts/exits.sh)");
            std::process::ExitCode::from(2)
        }
    }
}
