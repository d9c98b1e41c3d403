//! Finds what `make` builds and fetches; names the command to run if it is not there.

use std::{
    env,
    path::{Path, PathBuf},
};

/// `scripts/test.sh` does this.
const BUILD_GUEST_CHECKS: &str = "RUSTFLAGS='-C target-feature=+crt-static -C \
    relocation-model=static -C strip=symbols' cargo build --profile tool -p linux-guest \
    --bin guest-checks --target x86_64-unknown-linux-gnu";

/// The tool.
#[must_use]
pub fn tool() -> PathBuf {
    existing(target().join("tool/roost"), "scripts/build.sh")
}

/// The guest that measures exits.
#[must_use]
pub fn exits() -> PathBuf {
    image("exits")
}

/// The conformance suite, a native guest.
#[must_use]
pub fn conformance() -> PathBuf {
    image("conformance")
}

/// The hostile guest.
#[must_use]
pub fn hostile() -> PathBuf {
    image("hostile")
}

/// The example of a native guest.
#[must_use]
pub fn example() -> PathBuf {
    image("example")
}

/// L1.
#[must_use]
pub fn l1() -> PathBuf {
    image("l1")
}

/// Firmware with a mailbox for processors, which starts L1.
#[must_use]
pub fn mailbox_firmware() -> PathBuf {
    image("mailbox-firmware")
}

fn image(name: &str) -> PathBuf {
    let images = env::var_os("ROOST_IMAGES").map_or_else(|| target().join("roost"), PathBuf::from);
    existing(images.join(name), "scripts/build.sh")
}

/// The folder of the images with L1's checks of itself.
#[must_use]
pub fn checks() -> PathBuf {
    existing(target().join("roost/checks"), "scripts/build.sh --checks")
}

/// The folder of the L1 that interrupts its switcher everywhere.
#[must_use]
pub fn traps() -> PathBuf {
    existing(target().join("roost/traps"), "scripts/build.sh --checks")
}

/// The folder of the L1 that breaks rules of the guest ABI.
#[must_use]
pub fn flaws() -> PathBuf {
    existing(target().join("roost/flaws"), "scripts/build.sh --checks")
}

/// The program that checks a Linux guest from inside.
#[must_use]
pub fn guest_checks() -> PathBuf {
    let program = target().join("x86_64-unknown-linux-gnu/tool/guest-checks");
    existing(program, BUILD_GUEST_CHECKS)
}

/// Debian's PV GRUB as it is packaged, and with a menu.
#[must_use]
pub fn grub() -> [PathBuf; 2] {
    let file = |name| existing(root().join("cache/grub-xen").join(name), "scripts/fetch-grub.sh");
    [file("packaged"), file("menu.elf")]
}

/// A file of what a Debian is started from.
#[must_use]
pub fn debian(name: &str) -> PathBuf {
    existing(root().join("cache/debian-bookworm").join(name), "scripts/debian-image.sh")
}

/// What starts Debian from a disk; its image must be there.
#[must_use]
pub fn debian_script() -> PathBuf {
    let _ = debian("root.img");
    root().join("scripts/debian.sh")
}

/// A stock kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// The default: small, for virtual machines.
    Cloud,
    /// For any machine.
    Generic,
    /// A later version.
    Cloud612,
}

impl Kernel {
    const fn kind(self) -> &'static str {
        match self {
            Self::Cloud => "cloud",
            Self::Generic => "generic",
            Self::Cloud612 => "6.12-cloud",
        }
    }

    /// The kernel's file.
    #[must_use]
    pub fn file(self) -> PathBuf {
        let kind = self.kind();
        let file = root().join(format!("cache/kernel-{kind}/vmlinuz"));
        existing(file, &format!("scripts/fetch-kernel.sh --kind {kind}"))
    }

    /// The module that is built from `place` among the sources, such as `drivers/net/dummy`, as it is
    /// packed; `None` if it is built in.
    #[must_use]
    pub fn module(self, place: &str) -> Option<PathBuf> {
        let place = format!("modules/{}/kernel/{place}.ko", self.release());
        let roots = ["root/lib", "root/usr/lib"].map(|lib| self.file().with_file_name(lib));
        let names = roots
            .iter()
            .flat_map(|lib| ["", ".xz", ".zst"].map(|packed| lib.join(format!("{place}{packed}"))));
        names.into_iter().find(|file| file.exists())
    }

    /// What `uname -r` says, from the names in the kernel's package.
    #[must_use]
    pub fn release(self) -> String {
        let boot = self.file().with_file_name("root/boot");
        let names = boot.read_dir().unwrap_or_else(|error| panic!("{}: {error}", boot.display()));
        names
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .find_map(|name| name.strip_prefix("vmlinuz-").map(str::to_owned))
            .unwrap_or_else(|| panic!("no vmlinuz in {}", boot.display()))
    }
}

fn root() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package)
}

fn target() -> PathBuf {
    root().join(env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

fn existing(path: PathBuf, command: &str) -> PathBuf {
    assert!(path.exists(), "{} does not exist: run {command} first", path.display());
    path
}
