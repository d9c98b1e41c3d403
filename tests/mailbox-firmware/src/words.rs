//! Reads the command line.
//! May: panic. Context: boot. Input: trusted.

use crate::mailbox::MAILBOX;

/// What it says, or what is usual.
#[derive(Clone, Copy, Debug)]
pub struct Words {
    /// Where L1's module starts in ours, in bytes.
    pub bundle: usize,
    /// APIC id of the processor that takes no command.
    pub deaf: Option<u32>,
    /// APIC id of the one that goes late.
    pub late: Option<u32>,
    /// Length of the structure in the MADT.
    pub length: u8,
    /// Address of the mailbox that it says.
    pub address: u64,
    /// Whether the low megabyte is RAM to L1.
    pub low: bool,
}

impl Words {
    /// The words of `line`.
    pub fn of(line: &str) -> Self {
        let number = |name: &str| {
            let mut words = line.split(' ').filter_map(|word| word.split_once('='));
            let (_, number) = words.find(|word| word.0 == name)?;
            Some(number.parse::<u64>().expect("a number"))
        };
        Self {
            bundle: number("bundle").expect("`bundle=` is missing") as usize,
            deaf: number("deaf").map(|id| id as u32),
            late: number("late").map(|id| id as u32),
            length: number("length").map_or(16, |length| length as u8),
            address: number("address").unwrap_or(&raw const MAILBOX as u64),
            low: number("low").is_some(),
        }
    }
}
