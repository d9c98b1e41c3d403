//! Declares what the assembly shares with Rust: a CPU's block and a vCPU's registers.
//! May: nothing. Context: entry.

use core::sync::atomic::{AtomicU32, AtomicU64};

/// Values and bits of [`CpuBlock::mode`], the one word that the direct switch tests.
///
/// [`USER`] and [`SUPERVISOR`] alone permit it; every other bit is an inhibitor and makes the next
/// SYSCALL a full exit. A condition kept outside this word would be ignored by the direct switch.
///
/// [`USER`]: mode::USER
/// [`SUPERVISOR`]: mode::SUPERVISOR
pub mod mode {
    /// The guest is in user mode and nothing inhibits.
    pub const USER: u32 = 0;
    /// The guest is in supervisor mode.
    pub const SUPERVISOR: u32 = 1;
    /// No PVCS is registered.
    pub const NO_PVCS: u32 = 1 << 8;
    /// The root of the other mode is unknown.
    pub const NO_OTHER_ROOT: u32 = 1 << 9;
    /// An interrupt waits for the virtual interrupt flag: ERETU must exit.
    pub const IRQ_WINDOW: u32 = 1 << 10;
    /// Everything but the mode itself.
    pub const INHIBITORS: u32 = !SUPERVISOR;
}

/// No page of [`CpuBlock::absent_page`].
pub const NO_PAGE: u64 = u64::MAX;

/// A CPU's block: one page of the switcher window, mapped in L1's root and every guest's.
///
/// It holds nothing that another guest may not see: addresses, and the scratch words of the vCPU
/// that ran last, which [`CpuBlock::scrub`] clears when the CPU changes VM.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct CpuBlock {
    /// L1's CR3.
    pub l1_cr3: AtomicU64,
    /// L1's stack pointer while a guest runs: where [`Context`] was entered from.
    pub l1_rsp: AtomicU64,
    /// L1 address of the running vCPU's [`Context`].
    pub context: AtomicU64,
    /// See [`mode`].
    pub mode: AtomicU32,
    reserved: u32,
    /// Window address of the running vCPU's PVCS.
    pub pvcs: AtomicU64,
    /// CR3 for supervisor mode, as the direct switch loads it.
    pub smod_cr3: AtomicU64,
    /// CR3 for user mode, as the direct switch loads it.
    pub umod_cr3: AtomicU64,
    /// Return address of the ERETU SYSCALL: RETU_RIP + 2.
    pub retu_return: AtomicU64,
    /// The guest's LSTAR. Canonical.
    pub lstar: AtomicU64,
    /// GS base of supervisor mode. Canonical.
    pub smod_gsbase: AtomicU64,
    /// The guest's entry for events of user mode. Canonical.
    pub event_entry: AtomicU64,
    /// Number of the page that the guest's tables have as absent, so that a fault of user mode there is
    /// the guest's own; [`NO_PAGE`] if L1 knows of none. A fault there takes it away.
    pub absent_page: AtomicU64,
    /// Address and error code of the fault that never entered L1; the code is 0 if there was none.
    pub early_fault: [AtomicU64; 2],
    /// Registers parked for a few instructions.
    pub scratch: [AtomicU64; 2],
    /// Direct switches to supervisor mode (SYSCALL).
    pub direct_to_smod: AtomicU64,
    /// Direct switches to user mode (ERETU).
    pub direct_to_umod: AtomicU64,
    /// Faults that never entered L1.
    pub early_faults: AtomicU64,
    /// L1 function for exceptions and interrupts that interrupt L1: see [`L1Trap`].
    pub l1_trap: AtomicU64,
    /// Tops of the L1-private stacks on which the IST vectors run after their first stage.
    pub ist_private: [AtomicU64; 4],
}

impl CpuBlock {
    /// A block that lets nothing through: inhibited until the first vCPU is loaded.
    #[must_use]
    pub const fn new() -> Self {
        const fn zero<const N: usize>() -> [AtomicU64; N] {
            [const { AtomicU64::new(0) }; N]
        }
        const fn word() -> AtomicU64 {
            AtomicU64::new(0)
        }
        Self {
            l1_cr3: word(),
            l1_rsp: word(),
            context: word(),
            mode: AtomicU32::new(mode::NO_PVCS | mode::NO_OTHER_ROOT),
            reserved: 0,
            pvcs: word(),
            smod_cr3: word(),
            umod_cr3: word(),
            retu_return: word(),
            lstar: word(),
            smod_gsbase: word(),
            event_entry: word(),
            absent_page: AtomicU64::new(NO_PAGE),
            early_fault: zero(),
            scratch: zero(),
            direct_to_smod: word(),
            direct_to_umod: word(),
            early_faults: word(),
            l1_trap: word(),
            ist_private: zero(),
        }
    }

    /// Clears what the last vCPU left behind.
    pub fn scrub(&self) {
        use core::sync::atomic::Ordering::Relaxed;
        for word in [&self.pvcs, &self.smod_cr3, &self.umod_cr3, &self.retu_return, &self.lstar] {
            word.store(0, Relaxed);
        }
        for word in [&self.smod_gsbase, &self.event_entry, &self.scratch[0], &self.scratch[1]] {
            word.store(0, Relaxed);
        }
        for word in &self.early_fault {
            word.store(0, Relaxed);
        }
        self.absent_page.store(NO_PAGE, Relaxed);
        self.mode.store(mode::NO_PVCS | mode::NO_OTHER_ROOT, Relaxed);
    }
}

impl Default for CpuBlock {
    fn default() -> Self {
        Self::new()
    }
}

/// A vCPU's registers while it is not running. L1-private memory.
///
/// The first fifteen words are the general registers, the next seven are in the order in which
/// an exception pushes them; `entry.S` relies on it.
#[derive(Clone, Debug, Default)]
#[repr(C)]
#[expect(missing_docs, reason = "registers")]
pub struct Context {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    /// Why the guest was left: see [`crate::exit`].
    pub reason: u64,
    pub error: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
    /// CR3 to enter with.
    pub cr3: u64,
    /// Nonzero: leave L1 by SYSRETQ, which takes RIP from RCX and RFLAGS from R11.
    pub sysret: u64,
}

/// Registers of interrupted L1 code, as `entry.S` pushes them, lowest address first.
#[derive(Clone, Debug)]
#[repr(C)]
#[expect(missing_docs, reason = "registers")]
pub struct L1Trap {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rbp: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rbx: u64,
    pub rax: u64,
    pub vector: u64,
    pub error: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

/// L1's handler for [`L1Trap`]s. What it changes in the frame takes effect.
///
/// The second argument is the address of the CPU's area.
pub type L1TrapFn = extern "C" fn(&mut L1Trap, u64);

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<CpuBlock>() == 4096);
    assert!(offset_of!(Context, reason) == 15 * 8);
    assert!(offset_of!(Context, ss) == 21 * 8);
    assert!(offset_of!(L1Trap, vector) == 15 * 8);
};
