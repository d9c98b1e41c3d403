//! Assembles `entry.S` and calls into it.
//! May: unsafe, asm, cr3. Context: entry.
#![expect(unsafe_code, reason = "the switcher's assembly is called from here and nowhere else")]

use crate::{
    Context, CpuBlock,
    block::{NO_PAGE, mode},
    direct, exit, layout, tables,
};
use core::{arch::global_asm, mem::offset_of};
use pv_abi::{event, msr, pvcs, selectors};

/// Distance of a block field from the start of the CPU's area, where the text lies.
macro_rules! in_block {
    ($field:ident) => {
        layout::area::BLOCK as usize + offset_of!(CpuBlock, $field)
    };
}

global_asm!(
    include_str!("entry.S"),
    L1_CR3 = const in_block!(l1_cr3),
    L1_RSP = const in_block!(l1_rsp),
    CONTEXT = const in_block!(context),
    MODE = const in_block!(mode),
    PVCS = const in_block!(pvcs),
    SMOD_CR3 = const in_block!(smod_cr3),
    UMOD_CR3 = const in_block!(umod_cr3),
    RETU_RETURN = const in_block!(retu_return),
    LSTAR = const in_block!(lstar),
    SMOD_GSBASE = const in_block!(smod_gsbase),
    EVENT_ENTRY = const in_block!(event_entry),
    ABSENT_PAGE = const in_block!(absent_page),
    EARLY_FAULT = const in_block!(early_fault),
    NO_PAGE = const NO_PAGE as i64,
    SCRATCH0 = const in_block!(scratch),
    SCRATCH1 = const in_block!(scratch) + 8,
    DIRECT_TO_SMOD = const in_block!(direct_to_smod),
    DIRECT_TO_UMOD = const in_block!(direct_to_umod),
    EARLY_FAULTS = const in_block!(early_faults),
    L1_TRAP = const in_block!(l1_trap),
    IST_PRIVATE = const in_block!(ist_private),
    ENTRY_TOP = const layout::area::ENTRY_STACK_TOP,
    RAX = const offset_of!(Context, rax),
    RBX = const offset_of!(Context, rbx),
    RCX = const offset_of!(Context, rcx),
    RDX = const offset_of!(Context, rdx),
    RSI = const offset_of!(Context, rsi),
    RDI = const offset_of!(Context, rdi),
    RBP = const offset_of!(Context, rbp),
    R8 = const offset_of!(Context, r8),
    R9 = const offset_of!(Context, r9),
    R10 = const offset_of!(Context, r10),
    R11 = const offset_of!(Context, r11),
    R12 = const offset_of!(Context, r12),
    R13 = const offset_of!(Context, r13),
    R14 = const offset_of!(Context, r14),
    R15 = const offset_of!(Context, r15),
    REASON = const offset_of!(Context, reason),
    ERROR = const offset_of!(Context, error),
    RIP = const offset_of!(Context, rip),
    CS = const offset_of!(Context, cs),
    RFLAGS = const offset_of!(Context, rflags),
    RSP = const offset_of!(Context, rsp),
    SS = const offset_of!(Context, ss),
    CR3 = const offset_of!(Context, cr3),
    SYSRET = const offset_of!(Context, sysret),
    PVCS_RIP = const pvcs::offset::RIP,
    PVCS_RCX = const pvcs::offset::RCX,
    PVCS_R11 = const pvcs::offset::R11,
    PVCS_EFLAGS = const pvcs::offset::EFLAGS,
    PVCS_CR2 = const pvcs::offset::CR2,
    PVCS_ERROR = const pvcs::offset::EVENT_ERRCODE,
    PVCS_USER_CS = const pvcs::offset::USER_CS,
    PVCS_USER_GSBASE = const pvcs::offset::USER_GSBASE,
    PVCS_EVENT_VECTOR = const pvcs::offset::EVENT_VECTOR,
    VECTOR_STANDARD = const pvcs::vector::STANDARD,
    VECTOR_PAGE_FAULT = const pvcs::vector::STANDARD | event::PF as u16,
    PAGE_FAULT = const event::PF,
    PF_WRITE = const event::pf::WRITE,
    PF_USER = const event::pf::USER,
    PF_FETCH = const event::pf::FETCH,
    USER_CS_SS = const selectors::USER_CS_SS,
    USER_CS = const selectors::USER_CS,
    USER32_CS = const selectors::USER32_CS,
    USER_SS = const selectors::USER_DS,
    L1_DS = const tables::L1_DS,
    MODE_USER = const mode::USER,
    MODE_SUPERVISOR = const mode::SUPERVISOR,
    MSR_GS_BASE = const msr::arch::GS_BASE,
    RFLAGS_ALLOWED = const event::RFLAGS_ALLOWED,
    RFLAGS_FORCED = const event::RFLAGS_FORCED,
    RFLAGS_STEPPING = const event::RFLAGS_TF | event::RFLAGS_RF,
    SYSRET_LIMIT = const direct::SYSRET_LIMIT,
    EXIT_SYSCALL = const exit::SYSCALL,
    EXIT_SYSCALL32 = const exit::SYSCALL32,
    EXIT_FAILED = const exit::FAILED_ENTRY,
    EXIT_VIRTUAL_8086 = const exit::VIRTUAL_8086,
    EXIT_LOST = const exit::LOST,
    RFLAGS_NEVER = const event::RFLAGS_NEVER as i32,
    RFLAGS_VM_BYTE = const tables::RFLAGS_VM >> 16,
);

unsafe extern "C" {
    static switcher_text: u8;
    static switcher_text_end: u8;
    static switcher_stubs: u8;
    static switcher_enter: u8;
    static switcher_enter_clear: u8;
    static switcher_syscall: u8;
    static switcher_syscall_msr: u8;
    static switcher_syscall32: u8;
    static switcher_virtual_8086: u8;
    static switcher_no_clac: u8;
    static switcher_cr3_loads: u32;
    static switcher_cr3_loads_end: u32;
}

/// Where the labels of the text lie, as offsets into an area.
#[derive(Clone, Copy, Debug)]
pub struct Text {
    /// L1 address of the linked copy; page-aligned.
    pub linked: u64,
    /// Bytes, a multiple of the page size.
    pub len: u64,
    /// First of the 256 stubs.
    pub stubs: u64,
    /// SYSCALL entry, with FSGSBASE.
    pub syscall: u64,
    /// SYSCALL entry, without.
    pub syscall_msr: u64,
    /// SYSCALL entry from 32-bit code.
    pub syscall32: u64,
    /// Exit from virtual-8086 mode, which no CPU takes.
    pub virtual_8086: u64,
    /// Where [`CLAC`] belongs if SMAP is on.
    pub no_clac: u64,
    /// Entry of a guest.
    pub enter: u64,
    /// The same, clearing buffers.
    pub enter_clear: u64,
}

impl Text {
    /// The text as it was linked into this image.
    #[must_use]
    pub fn linked() -> Self {
        let base = &raw const switcher_text as u64;
        let offset = |label: *const u8| label as u64 - base;
        Self {
            linked: base,
            len: offset(&raw const switcher_text_end),
            stubs: offset(&raw const switcher_stubs),
            syscall: offset(&raw const switcher_syscall),
            syscall_msr: offset(&raw const switcher_syscall_msr),
            syscall32: offset(&raw const switcher_syscall32),
            virtual_8086: offset(&raw const switcher_virtual_8086),
            no_clac: offset(&raw const switcher_no_clac),
            enter: offset(&raw const switcher_enter),
            enter_clear: offset(&raw const switcher_enter_clear),
        }
    }
}

/// CLAC: a guest may have set AC, which turns SMAP off for L1. It stands at [`Text::no_clac`] on CPUs that have it; on
/// others it is not there to be executed.
pub const CLAC: [u8; 3] = [0x0f, 0x01, 0xca];

/// What stands in the text in place of a load of CR3 if L1 stays on the guest's root: a NOP of as many
/// bytes.
pub const NO_LOAD: [u8; 3] = [0x0f, 0x1f, 0x00];

/// The loads of CR3 on the way into a guest and out of it, as offsets into the text. The direct switch's are
/// not among them.
#[must_use]
pub fn cr3_loads() -> &'static [u32] {
    let (start, end) = (&raw const switcher_cr3_loads, &raw const switcher_cr3_loads_end);
    // SAFETY: `entry.S` puts words of 32 bits between the two labels, and the linker keeps them together.
    unsafe { core::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }
}

/// What happens to the CPU's buffers when a guest is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buffers {
    /// Nothing.
    Keep,
    /// They are cleared: guests of this CPU could read them.
    Clear,
}

/// `switcher_enter` in the area of one CPU.
#[derive(Clone, Copy, Debug)]
pub struct Enter(extern "C" fn(&mut Context));

impl Enter {
    /// The entry of CPU `cpu`.
    ///
    /// # Safety
    /// The CPU's area is mapped in L1's root, for good.
    #[must_use]
    pub unsafe fn of(cpu: usize, buffers: Buffers) -> Self {
        let text = Text::linked();
        let offset = match buffers {
            Buffers::Keep => text.enter,
            Buffers::Clear => text.enter_clear,
        };
        let address = layout::area_base(cpu) + offset;
        // SAFETY: by the caller's promise the alias of switcher_enter is at that address; it has
        // this signature.
        Self(unsafe { core::mem::transmute::<u64, extern "C" fn(&mut Context)>(address) })
    }

    /// Another way in, by a function of L1's.
    ///
    /// # Safety
    /// It enters by a CPU's own door, under the promises of [`enter`], or it does not and sets
    /// `context.reason` to an interrupt's.
    #[must_use]
    pub const unsafe fn by(function: extern "C" fn(&mut Context)) -> Self {
        Self(function)
    }
}

/// Enters the guest and returns when it is left. Interrupts must be off, and are off on return.
///
/// # Safety
/// 1. The caller runs on the CPU that `door` is of, and its block names this L1's CR3 and trap
///    handler; TSS, IDT, STAR, LSTAR, CSTAR and SFMASK are this CPU's.
/// 2. `context.cr3` is a root that maps the switcher window exactly as L1's root does; so do `smod_cr3`
///    and `umod_cr3` of the block unless `mode` inhibits them. They map nothing else of L1, unless there is
///    [`NO_LOAD`] at all of [`cr3_loads`]: then they map all of L1, and CR3 is `context.cr3`.
/// 3. If `context.sysret` is set, RCX == RIP is canonical and R11 == RFLAGS.
/// 4. RFLAGS holds IF and no IOPL or VM; the selectors have RPL 3.
#[inline]
pub unsafe fn enter(door: Enter, context: &mut Context) {
    door.0(context);
}
