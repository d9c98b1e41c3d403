//! Gathers what every program that runs as `/init` of a guest needs.
//! Input: trusted (the guest's own kernel and command line).
//!
//! Such a program is alone in its initramfs, so it must be linked statically; a fixed address and
//! no symbols keep it small:
//!
//! ```sh
//! RUSTFLAGS='-C target-feature=+crt-static -C relocation-model=static -C strip=symbols' \
//!     cargo build --profile tool --target x86_64-unknown-linux-gnu -p linux-guest --bin guest-checks
//! ```

pub mod entry;
pub mod init;
pub mod syscall;
pub mod vdso;
pub mod words;
