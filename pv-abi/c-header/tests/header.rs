//! The header is what pv-abi says, and compilers take it.

use std::{fs, path::PathBuf, process::Command};

fn committed() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../include/roost.h")
}

#[test]
fn it_is_up_to_date() {
    let text = fs::read_to_string(committed()).unwrap_or_default();
    assert!(
        text == c_header::header(),
        "pv-abi has changed: run `cargo run -p c-header >pv-abi/include/roost.h`"
    );
}

/// Its assertions about sizes and offsets hold, and it needs no C library.
#[test]
fn a_c_compiler_takes_it() {
    for standard in ["c11", "gnu2x"] {
        let mut command = Command::new("cc");
        command.args(["-ffreestanding", "-nostdinc", "-fsyntax-only", "-x", "c"]);
        command.args(["-Wall", "-Wextra", "-Wpedantic", "-Werror", &format!("-std={standard}")]);
        // -nostdinc takes the compiler's own headers away, too.
        let own = Command::new("cc").arg("-print-file-name=include").output().expect("cc runs");
        let own = String::from_utf8(own.stdout).expect("a path");
        command.args(["-isystem", own.trim()]).arg(committed());
        let done = command.output().expect("cc runs");
        assert!(done.status.success(), "{standard}: {}", String::from_utf8_lossy(&done.stderr));
    }
}
