//! Reads how users name disks of a machine and partitions.
//! Input: words the user typed.

use anyhow::{Context, Result};
use gpt_disk_types::Guid;
use pv_abi::bundle::{MachineDisk, Partition, PciPlace};
use std::{fs::File, io::Read};

/// The longest serial of a disk, bytes.
pub const LONGEST_SERIAL: usize = 20;
/// The longest label of a partition, characters.
const LONGEST_LABEL: usize = 36;

/// A disk of the machine: `serial:NAME`, `pci:BUS:DEVICE.FUNCTION` (bus 0 without the first), `gpt:GUID` or `any`.
///
/// # Errors
/// What to write.
pub fn parse_machine_disk(text: &str) -> Result<MachineDisk, String> {
    let wrong = || {
        format!(
            "`{text}` names no disk: write serial:NAME, pci:BUS:DEVICE.FUNCTION, gpt:GUID or any"
        )
    };
    match text.split_once(':') {
        None if text == "any" => Ok(MachineDisk::Any),
        Some(("serial", name)) if (1..=LONGEST_SERIAL).contains(&name.len()) => {
            Ok(MachineDisk::Serial(name.into()))
        }
        Some(("pci", place)) => {
            let (bus, place) = place.split_once(':').unwrap_or(("0", place));
            let (device, function) = place.split_once('.').ok_or_else(wrong)?;
            let number = |text, most| {
                u8::from_str_radix(text, 16).ok().filter(|number| *number <= most).ok_or_else(wrong)
            };
            let [bus, device, function] = [(bus, u8::MAX), (device, 31), (function, 7)]
                .map(|(text, most)| number(text, most));
            Ok(MachineDisk::Pci(PciPlace { bus: bus?, device: device?, function: function? }))
        }
        Some(("gpt", guid)) => parse_guid(guid).map(MachineDisk::Table).ok_or_else(wrong),
        _ => Err(wrong()),
    }
}

/// A partition: its number, its GUID, or else its label.
///
/// # Errors
/// What to write.
pub fn parse_partition(text: &str) -> Result<Partition, String> {
    if let Ok(number) = text.parse() {
        return if number > 0 {
            Ok(Partition::Number(number))
        } else {
            Err("partitions are counted from 1".into())
        };
    }
    if let Some(guid) = parse_guid(text) {
        return Ok(Partition::Guid(guid));
    }
    if !(1..=LONGEST_LABEL).contains(&text.chars().count()) {
        return Err(format!("a partition's label has 1 to {LONGEST_LABEL} characters"));
    }
    Ok(Partition::Label(text.into()))
}

/// A GUID as text has it, as bytes lie on a disk.
#[must_use]
pub fn parse_guid(text: &str) -> Option<[u8; 16]> {
    text.parse::<Guid>().ok().map(|guid| guid.to_bytes())
}

/// A new GUID, as bytes lie on a disk.
///
/// # Errors
/// The system has no random numbers.
pub fn guid() -> Result<[u8; 16]> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context("cannot read random numbers from /dev/urandom")?;
    Ok(Guid::from_random_bytes(bytes).to_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUID: &str = "01020304-0506-0708-090a-0b0c0d0e0f10";

    #[test]
    fn disks_of_a_machine() {
        let parsed = |text| parse_machine_disk(text).unwrap();
        assert_eq!(parsed("any"), MachineDisk::Any);
        assert_eq!(parsed("serial:a b"), MachineDisk::Serial("a b".into()));
        let place = |bus, device, function| MachineDisk::Pci(PciPlace { bus, device, function });
        assert_eq!(parsed("pci:1f.7"), place(0, 31, 7));
        assert_eq!(parsed("pci:ff:01.0"), place(255, 1, 0));
        let MachineDisk::Table(guid) = parsed(&format!("gpt:{GUID}")) else { panic!("no table") };
        assert_eq!(guid[..6], [4, 3, 2, 1, 6, 5]);
        for bad in [
            "",
            "a",
            "serial:",
            "serial:twenty-one-characters",
            "pci:20.0",
            "pci:1.8",
            "pci:1",
            "pci:100:1.0",
            "pci::1.0",
            "pci:0:1:1.0",
            "gpt:1",
        ] {
            assert!(parse_machine_disk(bad).unwrap_err().contains("serial:NAME"), "{bad}");
        }
    }

    #[test]
    fn partitions() {
        assert_eq!(parse_partition("3"), Ok(Partition::Number(3)));
        assert_eq!(parse_partition("root"), Ok(Partition::Label("root".into())));
        assert!(matches!(parse_partition(GUID), Ok(Partition::Guid(_))));
        assert!(parse_partition("0").is_err());
        assert!(parse_partition("").is_err());
    }

    #[test]
    fn new_identifiers_differ() {
        assert_ne!(guid().unwrap(), guid().unwrap());
    }
}
