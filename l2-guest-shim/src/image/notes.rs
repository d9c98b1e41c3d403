//! Reads what a kernel tells Xen about itself in its ELF notes.
//! May: alloc. Context: boot. Input: guest-controlled.
//!
//! The notes are those of Xen's public interface (elfnote.h): name "Xen", a number or a string
//! each. Notes this shim has no use for are passed over.

use alloc::string::String;
use core::fmt;
use elf::endian::LittleEndian;
use elf::file::Class;
use elf::note::{Note, NoteIterator};

/// Note types.
mod kind {
    pub const ENTRY: u64 = 1;
    pub const HYPERCALL_PAGE: u64 = 2;
    pub const VIRT_BASE: u64 = 3;
    pub const PADDR_OFFSET: u64 = 4;
    pub const GUEST_OS: u64 = 6;
    pub const FEATURES: u64 = 10;
    pub const HV_START_LOW: u64 = 12;
    pub const INIT_P2M: u64 = 15;
    pub const MOD_START_PFN: u64 = 16;
    pub const SUPPORTED_FEATURES: u64 = 17;
}

bitflags::bitflags! {
    /// What guest and hypervisor can agree on (XENFEAT, Xen's features.h). The names are those of
    /// the features string.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Features: u64 {
        /// Page tables may be written directly.
        const WRITABLE_PAGE_TABLES = 1 << 0;
        /// Descriptor tables may be written directly.
        const WRITABLE_DESCRIPTOR_TABLES = 1 << 1;
        /// Physical addresses are translated by the hypervisor.
        const AUTO_TRANSLATED_PHYSMAP = 1 << 2;
        /// The kernel may run in ring 0.
        const SUPERVISOR_MODE_KERNEL = 1 << 3;
        /// The top page table may lie above 4 GiB.
        const PAE_PGDIR_ABOVE_4GB = 1 << 4;
        /// `mmu_update` can preserve accessed and dirty bits.
        const MMU_PT_UPDATE_PRESERVE_AD = 1 << 5;
        /// Hypercalls help with high memory.
        const HIGHMEM_ASSIST = 1 << 6;
        /// Grant mappings keep the available bits of their entries.
        const GNTTAB_MAP_AVAIL_BITS = 1 << 7;
        /// Events come by a vector (HVM).
        const HVM_CALLBACK_VECTOR = 1 << 8;
        /// The PV clock works (HVM).
        const HVM_SAFE_PVCLOCK = 1 << 9;
        /// Event channels replace pins (HVM).
        const HVM_PIRQS = 1 << 10;
        /// The kernel can be the first domain.
        const DOM0 = 1 << 11;
        /// `memory_op` knows virtual NUMA nodes.
        const MEMORY_OP_VNODE_SUPPORTED = 1 << 13;
        /// ACPI's root pointer may lie anywhere.
        const LINUX_RSDP_UNRESTRICTED = 1 << 15;
    }
}

impl Features {
    fn named(name: &str) -> Option<Self> {
        Self::all()
            .iter_names()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, feature)| feature)
    }
}

/// What the notes say. Addresses are virtual unless they say otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XenNotes {
    /// Where the kernel starts; where the ELF header says otherwise. Linux always gives it.
    pub entry: Option<u64>,
    /// Address at which physical address [`paddr_offset`](Self::paddr_offset) is mapped.
    pub virt_base: u64,
    /// What to subtract from the kernel's physical addresses to count from `virt_base`; 0 as a
    /// rule.
    pub paddr_offset: u64,
    /// A page to fill with hypercall stubs; kernels since Xen advisory 466 have none.
    pub hypercall_page: Option<u64>,
    /// Where the kernel wants its physical-to-machine list; after itself otherwise.
    pub init_p2m: Option<u64>,
    /// Lowest address the hypervisor may use.
    pub hv_start_low: Option<u64>,
    /// The ramdisk may be given as a frame number, unmapped.
    pub mod_start_pfn: bool,
    /// The kernel names itself, and not Linux.
    pub foreign: bool,
    /// Features the kernel cannot do without.
    pub required: Features,
    /// Features the kernel can make use of; the required ones are among them.
    pub supported: Features,
}

/// Why a kernel cannot be started as a Xen guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotesError {
    /// No notes for Xen, or none for a paravirtual start.
    NotXen,
    /// The note that gives the virtual base is missing.
    NoVirtBase,
    /// The number in a note of this type has a wrong size.
    Malformed(u64),
    /// The kernel requires a feature that is not offered.
    Required(String),
}

impl fmt::Display for NotesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotXen => f.write_str(
                "kernel was built without CONFIG_XEN_PV: use one built with it, \
                 such as a distribution's standard kernel",
            ),
            Self::NoVirtBase => {
                f.write_str("kernel does not say where it is linked (Xen note 3): use another")
            }
            Self::Malformed(kind) => {
                write!(f, "kernel is damaged (Xen note {kind} has a wrong size): copy it again")
            }
            Self::Required(name) => {
                write!(f, "kernel requires the Xen feature \"{name}\", which is not offered here")
            }
        }
    }
}

impl core::error::Error for NotesError {}

impl XenNotes {
    /// Reads `notes` (`Elf64_Nhdr` records, aligned to 4 bytes) for a kernel that is offered the
    /// features `offered`.
    ///
    /// Linux requires `writable_page_tables` in its string but runs without: count it as offered,
    /// whatever the hypercall that asks for features answers.
    ///
    /// # Errors
    /// [`NotesError`] says why the kernel cannot be started.
    pub fn parse(notes: &[u8], offered: Features) -> Result<Self, NotesError> {
        let mut found = Self::default();
        let mut virt_base = None;
        for (kind, value) in xen_notes(notes) {
            let number = || number(value).ok_or(NotesError::Malformed(kind));
            match kind {
                kind::ENTRY => found.entry = Some(number()?),
                kind::HYPERCALL_PAGE => found.hypercall_page = Some(number()?),
                kind::VIRT_BASE => virt_base = Some(number()?),
                kind::PADDR_OFFSET => found.paddr_offset = number()?,
                kind::HV_START_LOW => found.hv_start_low = Some(number()?),
                kind::INIT_P2M => found.init_p2m = Some(number()?),
                kind::MOD_START_PFN => found.mod_start_pfn = number()? != 0,
                kind::SUPPORTED_FEATURES => {
                    found.supported |= Features::from_bits_truncate(number()?);
                }
                kind::GUEST_OS => {
                    let name = value.split(|&byte| byte == 0).next().unwrap_or_default();
                    found.foreign = !name.eq_ignore_ascii_case(b"linux");
                }
                kind::FEATURES => found.add_features(value, offered)?,
                _ => {}
            }
        }
        // Xen takes a kernel without these two to start at its ELF entry and to be linked at its
        // physical addresses. A Linux without them was built for other ways to start.
        if !found.foreign && found.entry.is_none() {
            return Err(NotesError::NotXen);
        }
        found.virt_base = match virt_base {
            Some(base) => base,
            None if found.foreign => 0,
            None => return Err(NotesError::NoVirtBase),
        };
        Ok(found)
    }

    /// Reads a features string: names separated by `|`, a `!` before those that are required.
    fn add_features(&mut self, string: &[u8], offered: Features) -> Result<(), NotesError> {
        for item in string.split(|&byte| byte == b'|' || byte == 0) {
            let (name, required) = match item.strip_prefix(b"!") {
                Some(name) => (name, true),
                None => (item, false),
            };
            let feature = core::str::from_utf8(name).ok().and_then(Features::named);
            self.supported |= feature.unwrap_or_default();
            if !required {
                continue;
            }
            match feature.filter(|&feature| offered.contains(feature)) {
                Some(feature) => self.required |= feature,
                None => return Err(NotesError::Required(String::from_utf8_lossy(name).into())),
            }
        }
        Ok(())
    }
}

/// Type and content of each Xen note.
fn xen_notes(notes: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    NoteIterator::new(LittleEndian, Class::ELF64, 4, notes).filter_map(|note| match note {
        Note::Unknown(note) if note.name == b"Xen\0" => Some((note.n_type, note.desc)),
        _ => None,
    })
}

/// Kernels use four or eight bytes, as their assembler likes.
fn number(value: &[u8]) -> Option<u64> {
    match value.len() {
        4 => value.first_chunk().map(|bytes| u64::from(u32::from_le_bytes(*bytes))),
        8 => value.first_chunk().map(|bytes| u64::from_le_bytes(*bytes)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::fixture::note;

    const OFFERED: Features = Features::WRITABLE_PAGE_TABLES;

    fn minimal() -> Vec<u8> {
        let mut notes = note("Xen", 1, &0xffff_ffff_8304_e1c0_u64.to_le_bytes());
        notes.extend(note("Xen", 3, &0xffff_ffff_8000_0000_u64.to_le_bytes()));
        notes
    }

    /// The minimal notes and one more.
    fn with(kind: u32, value: &[u8]) -> Result<XenNotes, NotesError> {
        let notes = [note("GNU", 3, &[1; 20]), note("Xen", kind, value), minimal()].concat();
        XenNotes::parse(&notes, OFFERED)
    }

    #[test]
    fn entry_and_base_are_enough() {
        let notes = XenNotes::parse(&minimal(), Features::empty()).unwrap();
        let expected = XenNotes {
            entry: Some(0xffff_ffff_8304_e1c0),
            virt_base: 0xffff_ffff_8000_0000,
            ..XenNotes::default()
        };
        assert_eq!(notes, expected);
    }

    #[test]
    fn each_note_finds_its_field() {
        let eight = 0x80_0000_0000_u64.to_le_bytes();
        assert_eq!(with(2, &eight).unwrap().hypercall_page, Some(0x80_0000_0000));
        assert_eq!(with(4, &eight).unwrap().paddr_offset, 0x80_0000_0000);
        assert_eq!(with(12, &eight).unwrap().hv_start_low, Some(0x80_0000_0000));
        assert_eq!(with(15, &eight).unwrap().init_p2m, Some(0x80_0000_0000));
        assert!(with(16, &1u32.to_le_bytes()).unwrap().mod_start_pfn);
        assert!(!with(16, &0u32.to_le_bytes()).unwrap().mod_start_pfn);
        let supported = with(17, &0x8801_u32.to_le_bytes()).unwrap().supported;
        let expected =
            Features::WRITABLE_PAGE_TABLES | Features::DOM0 | Features::LINUX_RSDP_UNRESTRICTED;
        assert_eq!(supported, expected);
    }

    #[test]
    fn features_are_told_from_requirements() {
        let notes = with(10, b"!writable_page_tables|pae_pgdir_above_4gb").unwrap();
        assert_eq!(notes.required, Features::WRITABLE_PAGE_TABLES);
        let both = Features::WRITABLE_PAGE_TABLES | Features::PAE_PGDIR_ABOVE_4GB;
        assert_eq!(notes.supported, both);
        assert_eq!(with(10, b"pae_pgdir_above_4gb\0").unwrap().required, Features::empty());
        assert_eq!(with(10, b"not_known").unwrap().supported, Features::empty());
    }

    #[test]
    fn what_is_not_offered_cannot_be_required() {
        let refused = |string: &[u8], name: &str| {
            assert_eq!(with(10, string), Err(NotesError::Required(name.into())));
        };
        refused(b"!supervisor_mode_kernel", "supervisor_mode_kernel");
        refused(b"dom0|!not_known", "not_known");
        refused(b"!", "");
    }

    #[test]
    fn kernels_without_a_xen_entry_are_refused() {
        let refused = |notes: &[u8], error| {
            assert_eq!(XenNotes::parse(notes, Features::all()), Err(error));
        };
        let entry = [0; 8];
        refused(b"", NotesError::NotXen);
        refused(&note("Linux", 1, &entry), NotesError::NotXen);
        // Built for PVH only.
        refused(&note("Xen", 18, &entry), NotesError::NotXen);
        refused(&note("Xen", 1, &entry), NotesError::NoVirtBase);
        refused(&note("Xen", 1, &entry[..3]), NotesError::Malformed(1));
        assert!(NotesError::NotXen.to_string().contains("CONFIG_XEN_PV"));
    }

    #[test]
    fn other_kernels_than_linux_need_no_entry() {
        let named = |name: &[u8]| note("Xen", 6, name);
        let notes = XenNotes::parse(&named(b"GRUB\0"), Features::empty()).unwrap();
        assert_eq!((notes.entry, notes.virt_base, notes.foreign), (None, 0, true));
        let linux = XenNotes::parse(&named(b"linux\0"), Features::empty());
        assert_eq!(linux, Err(NotesError::NotXen));
    }

    #[test]
    fn a_cut_hides_notes_and_nothing_else() {
        let notes = minimal();
        for len in 0..notes.len() {
            let result = XenNotes::parse(&notes[..len], Features::empty());
            assert!(matches!(result, Err(NotesError::NotXen | NotesError::NoVirtBase)), "{len}");
        }
    }
}
