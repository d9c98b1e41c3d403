//! Parses memory sizes, and says how much memory L1 needs beside its guest's.

use serde::{Deserialize, Deserializer, de::Error};
use std::{fmt, fs};

/// Bytes in a MiB.
pub const MIB: u64 = 1 << 20;
/// The least memory a guest can have, bytes.
pub const LEAST_GUEST: u64 = 64 * MIB;
/// What L1 itself takes, bytes: its image, heap, per-CPU stacks and first page tables.
const L1_FIXED: u64 = 48 * MIB;
/// Guest memory divided by this is set aside for shadow tables and reverse maps.
const SHADOW_DIVISOR: u64 = 32;

/// Bytes, as given on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl<'de> Deserialize<'de> for Size {
    /// Text as on the command line, or a number of MiB.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl serde::de::Visitor<'_> for Visitor {
            type Value = Size;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as \"512M\" or \"2G\"")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Size, E> {
                parse_size(text).map_err(E::custom)
            }

            fn visit_i64<E: Error>(self, mib: i64) -> Result<Size, E> {
                parse_size(&mib.to_string()).map_err(E::custom)
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

/// Parses `512M`, `2G`, `65536K` (binary units) or a plain number of MiB.
///
/// # Errors
/// Says how a size is written.
pub fn parse_size(text: &str) -> Result<Size, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "k" | "kb" | "kib" => 10,
        "" | "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        _ => return Err("write a size such as 512M or 2G".into()),
    };
    let number: u64 = digits.parse().map_err(|_| "write a size such as 512M or 2G")?;
    let bytes = number.checked_mul(1 << shift).ok_or("that is more than any machine has")?;
    if bytes % MIB == 0 { Ok(Size(bytes)) } else { Err("must be whole MiB".into()) }
}

/// Bytes of memory L1 needs beside the guest's `guest` bytes when started with a bundle of
/// `bundle` bytes. This is the one place that knows; `roost run --verbose` prints the result.
///
/// `48 MiB + bundle + guest/32`, rounded up to whole MiB: the bundle stays in memory while guests
/// are loaded from it, and shadow tables grow with what the guest maps.
#[must_use]
pub fn l1_need(guest: u64, bundle: u64) -> u64 {
    L1_FIXED.saturating_add(bundle).saturating_add(guest / SHADOW_DIVISOR).div_ceil(MIB) * MIB
}

/// Memory of this machine, bytes; `None` where `/proc` does not tell.
#[must_use]
pub fn host_total() -> Option<u64> {
    meminfo_total(&fs::read_to_string("/proc/meminfo").ok()?)
}

fn meminfo_total(meminfo: &str) -> Option<u64> {
    let rest = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = rest.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Bytes as text, in MiB rounded up.
#[must_use]
pub fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(MIB))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_in_every_unit() {
        for (text, mib) in [
            ("512M", 512),
            ("512m", 512),
            ("512MiB", 512),
            ("512MB", 512),
            ("2G", 2048),
            ("65536K", 64),
            ("100", 100),
            ("0", 0),
        ] {
            assert_eq!(parse_size(text), Ok(Size(mib * MIB)), "{text}");
        }
    }

    #[test]
    fn sizes_that_are_none() {
        for text in ["", "M", "-1M", "1.5G", "12T", "12 M", "b", "5b", "1x", "99999999999999999999"]
        {
            assert!(parse_size(text).unwrap_err().contains("512M"), "{text}");
        }
        assert_eq!(parse_size("1025K"), Err("must be whole MiB".into()));
        assert!(parse_size("99999999999999G").unwrap_err().contains("more than any"));
    }

    #[test]
    fn l1_need_is_whole_mib() {
        assert_eq!(l1_need(0, 0), 48 * MIB);
        assert_eq!(l1_need(0, 1), 49 * MIB);
        assert_eq!(l1_need(512 * MIB, 10 * MIB), (48 + 10 + 16) * MIB);
    }

    #[test]
    fn total_from_meminfo() {
        assert_eq!(meminfo_total("MemTotal:   2048 kB\nMemFree: 1 kB\n"), Some(2 * MIB));
        assert_eq!(meminfo_total("MemFree: 1 kB\n"), None);
    }
}
