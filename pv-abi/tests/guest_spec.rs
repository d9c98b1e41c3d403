//! Compares the tables and numbers of `docs/spec/guest.md` with the code.

use core::mem::offset_of;
use pv_abi::{
    cpuid, elf_note, event,
    ext::{
        self, Features, NativeBoot, ShimBoot, call, counter::Reason, devices, msr as extension_msr,
        notes, window,
    },
    hypercall,
    msr::{self, arch},
    pvcs::{self, Pvcs},
    selectors,
};

const SPEC: &str = include_str!("../../docs/spec/guest.md");

/// The text under a heading, up to the next one.
fn section(heading: &str) -> &'static str {
    let start = SPEC.find(heading).unwrap_or_else(|| panic!("there is no section {heading}"));
    let text = &SPEC[start + heading.len()..];
    &text[..text.find("\n#").unwrap_or(text.len())]
}

/// The rows of the table in `text` whose first column has this title; the title's and the rule's
/// not, so that a row starts with what it is about.
fn rows(text: &'static str, title: &str) -> impl Iterator<Item = [&'static str; 3]> {
    let lines = text.lines().skip_while(move |line| {
        let line = line.strip_prefix("| rule ").unwrap_or(line);
        !line.starts_with(title)
    });
    let lines = lines.skip(2).take_while(|line| line.starts_with('|'));
    lines.map(|line| {
        let cells = line.split('|').skip(1).map(str::trim);
        let mut cells = cells.skip_while(|cell| cell.starts_with("**"));
        core::array::from_fn(|_| cells.next().expect("three cells"))
    })
}

fn number(text: &str) -> u64 {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.unwrap_or_else(|_| panic!("`{text}` is no number"))
}

/// The name at the start of a cell.
fn name(cell: &str) -> &str {
    cell.split([':', ',', ' ']).next().expect("a word")
}

/// Judges that `spec` is `code`, in its order.
fn assert_same<'a>(
    what: &str,
    mut spec: impl Iterator<Item = (u64, &'a str)>,
    code: impl IntoIterator<Item = (u64, &'a str)>,
) {
    for row in code {
        assert_eq!(spec.next(), Some(row), "{what}");
    }
    assert_eq!(spec.next(), None, "{what}: not in the code");
}

/// Judges that the section says all of `words`, which the code says too.
fn assert_says(heading: &str, words: &[&str]) {
    let text = section(heading);
    for word in words {
        assert!(text.contains(word), "{heading} does not say {word}");
    }
}

macro_rules! constants {
    ($module:ident: $($name:ident)*) => {
        [$((u64::from($module::$name), stringify!($name))),*]
    };
}

macro_rules! offsets {
    ($of:ty: $($field:ident)*) => { [$((offset_of!($of, $field) as u64, stringify!($field))),*] };
}

#[test]
fn leaves_are_the_specifications() {
    let signature = |leaf: u64, at: [&str; 2], words: [u32; 3]| {
        let bytes: [u8; 12] =
            core::array::from_fn(|index| (words[index / 4] >> (8 * (index % 4))) as u8);
        let text = core::str::from_utf8(&bytes[..4]).expect("letters");
        assert_eq!((leaf, at[1].trim_matches('"')), (number(at[0]), text));
    };
    let mut kvm = rows(section("## 1.1 "), "| leaf | EAX |");
    let [leaf, highest, text] = kvm.next().expect("a row");
    assert_eq!(number(highest), cpuid::KVM_TIMING.into());
    signature(cpuid::KVM_BASE.into(), [leaf, text], cpuid::KVM_SIGNATURE);
    let [leaf, features, _] = kvm.next().expect("a row");
    assert_eq!(number(leaf), u64::from(cpuid::KVM_BASE) + 1);
    assert!(features.starts_with("bits 3 ") && features.contains(" and 24 "));
    assert!(features.contains(" 5 (steal time)"));
    assert_eq!(
        cpuid::KVM_FEATURE_CLOCKSOURCE2 | cpuid::KVM_FEATURE_CLOCKSOURCE_STABLE,
        1 << 3 | 1 << 24
    );
    assert_eq!(cpuid::KVM_FEATURE_STEAL_TIME, 1 << 5);
    let mut roost = rows(section("## 2.1 "), "| leaf | EAX |");
    let [leaf, highest, text] = roost.next().expect("a row");
    assert_eq!(number(highest), cpuid::ROOST_MAX.into());
    signature(cpuid::ROOST_BASE.into(), [leaf, text], cpuid::ROOST_SIGNATURE);
    let [leaf, version, _] = roost.next().expect("a row");
    assert_eq!(number(leaf), u64::from(cpuid::ROOST_BASE) + 1);
    assert!(version.starts_with("version"));
    assert_eq!(ext::VERSION, 0x10000);
    assert_says("## 2.1 ", &["minor: 0x10000"]);
    let [_, vcpus, ring] = roost.next().expect("a row");
    assert_eq!(number(vcpus.trim_start_matches("vCPUs at most: ")), window::MAX_VCPUS as u64);
    assert_eq!(number(ring.trim_start_matches("notes in a ring: ")), notes::ENTRIES as u64);
    assert_eq!(cpuid::SYNTHETIC, [0x0f, 0x01, 0x3c, 0x25, 0x50, 0x56, 0x4d, 0xff, 0x0f, 0xa2]);
    assert_says("## 1.1 ", &["`0f 01 3c 25 50 56 4d ff 0f a2`"]);
}

#[test]
fn msrs_are_the_specifications() {
    let code =
        constants!(msr: PVM_LINEAR_ADDRESS_RANGE PVM_VCPU_STRUCT PVM_EVENT_ENTRY PVM_RETU_RIP
        KVM_WALL_CLOCK_NEW KVM_SYSTEM_TIME_NEW KVM_STEAL_TIME)
        .into_iter()
        .chain(constants!(arch: TSC PLATFORM_ID APIC_BASE FEATURE_CONTROL BIOS_SIGN_ID MTRR_CAP
        SYSENTER_CS MISC_ENABLE DEBUGCTL PAT TSC_DEADLINE EFER STAR LSTAR CSTAR FS_BASE GS_BASE
        KERNEL_GS_BASE TSC_AUX));
    let spec = rows(section("## 1.2 "), "| index | name | read |");
    // Rows of several registers count by their first.
    let spec = spec.map(|[index, names, _]| (number(name(index)), name(names)));
    assert_same("1.2", spec.filter(|(_, name)| !matches!(*name, "unused" | "x2APIC")), code);
    assert_eq!((arch::TSC_ADJUST, arch::MTRR_DEF_TYPE, arch::SFMASK), (0x3b, 0x2ff, 0xc000_0084));
    assert_eq!((arch::SYSENTER_ESP, arch::SYSENTER_EIP), (0x175, 0x176));
    assert_eq!((msr::x2apic::FIRST, msr::x2apic::LAST), (0x800, 0x8ff));
    assert_eq!((msr::PVM_WINDOW, msr::EVENT_ENTRY_SUPERVISOR), (0x4b56_4df0..=0x4b56_4df7, 512));
    use msr::steal::{RESERVED, SIZE, TIME, VERSION};
    assert_eq!((TIME, VERSION, SIZE, RESERVED), (0, 8, 64, 0x3e));
    assert_says("## 1.2 ", &["gets 64 bytes", "did not run (u64), a version (u32)", "bits 5:1"]);
    let extension = rows(section("## 2.2 "), "| index | name |");
    let extension = extension.map(|[index, name, _]| (number(index), name));
    assert_same(
        "2.2",
        extension,
        constants!(extension_msr: RETU_PREFAULT_RIP REFLECT_START REFLECT_END),
    );
}

#[test]
fn hypercalls_are_the_specifications() {
    let spec = rows(section("## 1.6 "), "| number | name |");
    let spec = spec.map(|[number_cell, name, _]| (number(number_cell), name));
    let code = constants!(hypercall: LOAD_PGTBL IRQ_WIN IRQ_HALT TLB_FLUSH TLB_FLUSH_CURRENT
        TLB_INVLPG LOAD_GS RDMSR WRMSR LOAD_TLS);
    assert_same("1.6", spec, code);
    let spec = rows(section("## 2.3 "), "| number 0x526f0000 + |");
    let spec = spec.map(|[offset, name, _]| (call::BASE + number(offset), name));
    let code = constants!(call: ENABLE CONSOLE_WRITE CONSOLE_READ CONSOLE_VECTOR SHUTDOWN LOG PIN_ROOT
        UNPIN_ROOT UNPIN_TABLE LOAD_LDT SET_CPUNODE READ_COUNTER CHECK_ROOTS TAKE_IRQ SHARE UNSHARE
        VCPU_START VCPU_STOP VCPU_STATE SEND_IPI FLUSH_VCPUS YIELD WAIT_IRQ DEVICE_READ
        DEVICE_WRITE DOORBELL DEVICE_VECTOR QUEUE_VECTOR);
    assert_same("2.3", spec, code);
    assert_eq!((call::BASE, call::LAST), (0x526f_0000, call::QUEUE_VECTOR));
    assert_eq!(call::FLUSH_ALL, u64::MAX);
    let errors = [hypercall::EPERM, hypercall::EIO, hypercall::ENOSYS].map(|error| error as i64);
    assert_eq!(errors, [-1, -5, -38]);
    assert_says("## 1.6 ", &["ENOSYS (-38)"]);
    assert_says("## 1.2 ", &["EIO (-5)"]);
    assert_says("## 2.1 ", &["EPERM (-1)"]);
    assert_eq!((hypercall::LOAD_PGTBL_FLUSH, call::LOAD_PGTBL_PINNED), (1, 1 << 8));
    assert_eq!((call::CONVERT_MOST, call::CONVERT_ZERO), (8192, 1));
    assert_says("## 2.6 ", &["pages 1 to 8192", "flag bit 0"]);
}

#[test]
fn features_are_the_specifications() {
    let spec = rows(section("## 2.1 "), "| bit | feature |");
    let spec = spec.map(|[bit, feature, _]| (number(bit), feature));
    let code = Features::all();
    let code = code.iter_names();
    assert_same("2.1", spec, code.map(|(name, flag)| (flag.bits().trailing_zeros().into(), name)));
}

#[test]
fn counters_are_the_specifications() {
    let text = section("## 2.3 ");
    let (_, list) = text.split_once("in the order").expect("a list");
    let (list, rest) = list.split_once('.').expect("its end");
    let mut spec = list.split(',').map(str::trim);
    for (reason, (number, name)) in Reason::ALL.iter().enumerate() {
        assert_eq!((*number as usize, spec.next()), (reason, Some(*name)));
    }
    assert_eq!(spec.next(), None);
    assert!(text.contains("0 to 24 are exits") && Reason::ALL.len() == 25);
    let words = "From 0x1000: exits, events, CR3 writes, shadow entries filled, flushes, direct \
                 switches, early faults.";
    assert!(rest.split_whitespace().zip(words.split(' ')).all(|(found, word)| found == word));
    use ext::counter::{CR3_WRITES, DIRECT_SWITCHES, EARLY_FAULTS, EVENTS, EXITS, FILLS, FLUSHES};
    let numbers = [EXITS, EVENTS, CR3_WRITES, FILLS, FLUSHES, DIRECT_SWITCHES, EARLY_FAULTS];
    assert!(numbers.into_iter().eq(0x1000..0x1007));
}

#[test]
fn layouts_are_the_specifications() {
    let spec = rows(section("## 1.3 "), "| offset | size | field |");
    let spec = spec.map(|[offset, _, field]| (number(offset), name(field)));
    let fields = offsets!(Pvcs: event_flags cr2 user_cs user_ss event_errcode event_vector
        user_gsbase eflags pkru rip rcx r11);
    assert_same("1.3", spec.filter(|(_, name)| *name != "reserved"), fields);
    let spec = rows(section("## 1.10 "), "| offset | size | `NativeBoot` |");
    let spec = spec.map(|[offset, _, field]| (number(offset), name(field)));
    let fields = offsets!(NativeBoot: magic version vcpus memory tsc_hz cmdline module);
    assert_same("1.10", spec, fields);
    let spec = rows(section("## 2.5 "), "| offset | size | `ShimBoot` |");
    let spec = spec.map(|[offset, _, field]| (number(offset), name(field)));
    let fields = offsets!(ShimBoot: magic version vcpus ram_pages end_pages tsc_hz wall_ns wall_tsc
        kernel initrd cmdline spare areas);
    assert_same("2.5", spec, fields);
    // Sizes add up: each field ends where the next one starts.
    for (heading, title, end) in [
        ("## 1.3 ", "| offset | size | field |", size_of::<Pvcs>()),
        ("## 1.10 ", "| offset | size | `NativeBoot` |", size_of::<NativeBoot>()),
        ("## 2.5 ", "| offset | size | `ShimBoot` |", size_of::<ShimBoot>()),
    ] {
        let last = rows(section(heading), title).fold(0, |at, [offset, size, field]| {
            assert_eq!(number(offset), at, "{heading}: {field}");
            at + number(size)
        });
        assert_eq!(last, end as u64, "{heading}");
    }
}

#[test]
fn other_numbers_are_the_specifications() {
    assert_eq!((pvcs::flags::IF, pvcs::flags::IP), (1 << 9, 1 << 8));
    let guard = [pvcs::vector::STANDARD, pvcs::vector::NMI, pvcs::vector::MCE];
    assert_eq!(guard, [1 << 8, 1 << 9, 1 << 10]);
    assert_says("## 1.3 ", &["bit 9 IF, bit 8 IP", "bit 8 an event", "NMI, bit 10 MCE"]);
    let fixed =
        [selectors::USER32_CS, selectors::USER_DS, selectors::USER_CS, selectors::VCPU_INDEX];
    assert_eq!(fixed, [0x23, 0x2b, 0x33, 0x83]);
    assert_eq!((selectors::TLS_SLOTS, selectors::CPUNODE_SLOT), (12..15, 15));
    assert_says("## 1.4 ", &["0x23, user data 0x2b, user code 64-bit 0x33", "(0x63, 0x6b, 0x73)"]);
    assert_eq!((event::RFLAGS_ALLOWED, event::RFLAGS_FORCED), (0x25_4dd5, 0x202));
    assert_says("## 1.7 ", &["(0x254dd5)"]);
    assert_says("## 1.5 ", &["RFLAGS = R11 = 0x202", "vector = 0x100 | vector", "INT 0x80"]);
    assert_eq!(event::INT80, 0x80);
    assert_eq!(msr::DEFAULT_UPPER_SLOTS, 472..504);
    assert_says("## 1.8 ", &["slots 472 to 503", "0xff00ff00ff00ff00"]);
    let places = [NativeBoot::GPA, NativeBoot::CMDLINE, NativeBoot::TABLES, NativeBoot::LOWEST];
    assert_eq!(places.map(|gpa| gpa.0), [0x1000, 0x2000, 0x3000, 1 << 20]);
    assert_says(
        "## 1.10 ",
        &["RSI = 0x1000", "is at 0x2000", "GPA 0x3000", "1 MiB", "\"RoostNat\""],
    );
    assert_eq!(NativeBoot::MAGIC.to_le_bytes(), *b"RoostNat");
    assert_eq!((elf_note::NAME, elf_note::ABI_VERSION), ("Roost", 1));
    assert_says("## 1.10 ", &["name \"Roost\", type 1"]);
    use ext::shutdown::{BOOT_FAILED, CRASH, POWEROFF, REBOOT};
    assert_eq!([POWEROFF, REBOOT, CRASH, BOOT_FAILED], [0, 1, 3, 4]);
    assert_says("## 2.1 ", &["delivered as event 0x1f"]);
    assert_eq!(ext::event::SYSCALL, 0x1f);
    assert_eq!((notes::HEAD, notes::TAIL, notes::FIRST, notes::ENTRIES), (0, 64, 2048, 256));
    assert_says("## 2.4 ", &["offset 0, the guest's", "offset 64, L1's", "offset 2048", "256"]);
}

#[test]
fn devices_are_the_specifications() {
    assert_eq!((devices::BASE, devices::STRIDE, devices::LINE), (0xfeb0_0000, 0x1000, 8));
    assert_says("## 1.10 ", &["0xfeb00000 + n * 0x1000", "n is 0 to 15", "line 8 + n"]);
    assert_eq!((devices::SLOTS, devices::QUEUE_MOST), (16, 256));
    assert_eq!(devices::DISK_QUEUES_MOST, 4);
    assert_eq!(devices::CARD_PAIRS_MOST, 4);
    assert_says(
        "## 2.9 ",
        &["has 16 slots", "of up to 256 entries", "the number of vCPUs, 4 at most"],
    );
}

#[test]
fn the_window_is_the_specifications() {
    let spec = rows(section("## 2.5 "), "| address | what |");
    let spec = spec.map(|[address, ..]| number(name(address)));
    let areas = window::VCPU_AREA;
    let code =
        [window::IMAGE, window::BOOT, areas, window::TABLE_BITMAP, window::M2P, window::MEMORY];
    assert!(spec.eq(code), "{code:x?}");
    assert_eq!((window::VCPU_STRIDE, window::FIRST_SLOT, window::LAST_SLOT), (0x20000, 264, 271));
    use window::area::{DATA, NOTES, OWN_PAGES, PVCS, STACK, STACK_TOP, TEXT, TEXT_PAGES};
    let area = [TEXT, TEXT_PAGES, PVCS, DATA, NOTES, STACK, STACK_TOP, OWN_PAGES as u64];
    assert_eq!(area, [0, 2, 0x2000, 0x3000, 0x4000, 0x8000, 0x18000, 19]);
    assert_says(
        "## 2.5 ",
        &["PVCS at 0x2000, data at 0x3000", "stack 0x8000 to 0x18000", "19 a vCPU"],
    );
}

#[cfg(feature = "bundle")]
#[test]
fn exit_values_are_the_specifications() {
    use pv_abi::bundle::exit::{BOOT_FAILED, GUEST_DIED, L1_FAILED, POWEROFF, REBOOT};
    let rows = rows(section("## 1.11 "), "| what | how the tool reports it |");
    let code = [POWEROFF, REBOOT, GUEST_DIED, BOOT_FAILED, GUEST_DIED, GUEST_DIED, L1_FAILED];
    assert!(rows.map(|[.., value]| number(value)).eq(code.map(u64::from)));
}
