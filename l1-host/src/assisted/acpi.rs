//! Describes the machine of a guest that L0 runs: ACPI tables of a hardware-reduced machine.
//! May: nothing.

use super::layout;
use acpi_tables::{
    Aml,
    aml::{self, Path},
    fadt::{FADTBuilder, Flags},
    gas::{AccessSize, AddressSpace, GAS},
    madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic},
    rsdp::Rsdp,
    sdt::Sdt,
    xsdt::XSDT,
};
use alloc::vec::Vec;

/// Port of the sleep control register; a write of [`OFF`] powers the guest off.
pub const SLEEP: u16 = 0x600;
/// Port of the sleep status register: nothing ever woke this machine.
const SLEEP_STATUS: u16 = 0x601;
/// Sleep type 5 with the enable bit.
pub const OFF: u8 = OFF_TYPE << 2 | 1 << 5;
const OFF_TYPE: u8 = 5;
/// Port of the reset register; a write of [`AGAIN`] asks for a restart.
pub const RESET: u16 = 0x602;
/// What is written there.
pub const AGAIN: u8 = 1;

const OEM: [u8; 6] = *b"ROOST ";
const TABLE: [u8; 8] = *b"ROOSTL2 ";
const LOCAL_APIC: u32 = 0xfee0_0000;
const IO_APIC: u32 = 0xfec0_0000;
/// Neither VGA nor a CMOS clock; no keyboard controller, no other legacy device either.
const BOOT_ARCH: u16 = 1 << 2 | 1 << 5;

/// The tables, to be copied to the start of [`layout::ACPI`], which is where the RSDP is.
#[must_use]
pub fn tables(vcpus: u32, console_line: u32) -> Vec<u8> {
    let mut all = Vec::new();
    // The RSDP comes first, so it is known where the rest is before it is.
    let mut at = layout::ACPI.start + (Rsdp::len() as u64).next_multiple_of(64);
    let mut body = Vec::new();
    let mut place = |table: &dyn Aml| {
        let start = at;
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        bytes.resize(bytes.len().next_multiple_of(64), 0);
        at += bytes.len() as u64;
        body.extend(bytes);
        start
    };
    let dsdt = place(&dsdt(console_line));
    let fadt = place(&fadt(dsdt));
    let madt = place(&madt(vcpus));
    let mut xsdt = XSDT::new(OEM, TABLE, 1);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = place(&xsdt);
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut all);
    all.resize(Rsdp::len().next_multiple_of(64), 0);
    all.extend(body);
    all
}

fn register(port: u16) -> GAS {
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port.into())
}

fn fadt(dsdt: u64) -> impl Aml {
    let mut fadt = FADTBuilder::new(OEM, TABLE, 1)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless);
    fadt.iapc_boot_arch = BOOT_ARCH.into();
    fadt.reset_reg = register(RESET);
    fadt.reset_value = AGAIN;
    fadt.sleep_control_reg = register(SLEEP);
    fadt.sleep_status_reg = register(SLEEP_STATUS);
    fadt.finalize()
}

fn madt(vcpus: u32) -> impl Aml {
    let mut madt = MADT::new(OEM, TABLE, 1, LocalInterruptController::Address(LOCAL_APIC));
    for id in 0..vcpus as u8 {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(vcpus as u8, IO_APIC, 0));
    madt
}

/// The console's UART, and how to power off.
fn dsdt(console_line: u32) -> Sdt {
    let mut bytes = Vec::new();
    aml::Device::new(
        Path::new("_SB_.COM1"),
        [
            &aml::Name::new(Path::new("_HID"), &aml::EISAName::new("PNP0501")) as &dyn Aml,
            &aml::Name::new(Path::new("_UID"), &aml::ZERO),
            &aml::Name::new(
                Path::new("_CRS"),
                &aml::ResourceTemplate::new(
                    [
                        &aml::Interrupt::new(true, true, false, false, console_line) as &dyn Aml,
                        &aml::IO::new(super::UART, super::UART, 0, 8),
                    ]
                    .into(),
                ),
            ),
        ]
        .into(),
    )
    .to_aml_bytes(&mut bytes);
    aml::Name::new(Path::new("_S5_"), &aml::Package::new([&OFF_TYPE as &dyn Aml].into()))
        .to_aml_bytes(&mut bytes);
    let mut dsdt = Sdt::new(*b"DSDT", 36, 6, OEM, TABLE, 1);
    dsdt.append_slice(&bytes);
    dsdt
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Table at guest address `at` in `all`, with its signature and checksum looked at.
    fn table<'a>(all: &'a [u8], at: u64, signature: &[u8]) -> &'a [u8] {
        let bytes = &all[(at - layout::ACPI.start) as usize..];
        assert_eq!(&bytes[..4], signature);
        let len = u32::from_le_bytes(bytes[4..8].try_into().unwrap()) as usize;
        let sum = bytes[..len].iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!(sum, 0, "checksum of {}", core::str::from_utf8(signature).unwrap());
        &bytes[..len]
    }

    #[test]
    fn the_tables_lead_to_each_other() {
        let all = tables(2, 4);
        assert!(all.len() as u64 <= layout::ACPI.end - layout::ACPI.start);
        assert_eq!(&all[..8], b"RSD PTR ");
        let word =
            |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let xsdt = table(&all, word(&all, 24), b"XSDT");
        assert_eq!(xsdt.len(), 36 + 16);
        let fadt = table(&all, word(xsdt, 36), b"FACP");
        let dsdt = table(&all, word(fadt, 140), b"DSDT");
        assert!(dsdt.windows(4).any(|bytes| bytes == b"_S5_"));
        let madt = table(&all, word(xsdt, 44), b"APIC");
        assert_eq!(madt.len(), 44 + 2 * 8 + 12);
    }
}
