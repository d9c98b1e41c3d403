//! Executes instructions that fault and says what the kernel reported.
//!
//! A handler for all fault signals notes what the kernel says and lets the program go on behind
//! the instruction. It belongs to one thread: checks that use it have no other.
#![expect(unsafe_code, reason = "faulting instructions and the handler that survives them")]

use anyhow::{Result, ensure};
use core::{
    ffi::c_void,
    mem, ptr,
    sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering::Relaxed},
};
use std::io;

/// `si_code` of a fault without further detail.
pub const SI_KERNEL: i32 = 0x80;
/// Page-fault error code: the page is present.
pub const PRESENT: u64 = 1 << 0;
/// Page-fault error code: the access was a write.
pub const WRITE: u64 = 1 << 1;
/// Page-fault error code: the access came from user mode.
pub const USER: u64 = 1 << 2;
/// Page-fault error code: the access fetched an instruction.
pub const FETCH: u64 = 1 << 4;
/// An address that four-level paging cannot translate.
pub const NON_CANONICAL: u64 = 0x4000_0000_0000_0000;
/// RFLAGS.TF.
const TRAP_FLAG: i64 = 1 << 8;

/// Signals that an instruction can raise.
const FAULTS: [i32; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP];

/// Where the instruction under test starts; written by the test just before it.
pub(super) static SITE: AtomicU64 = AtomicU64::new(0);
/// Where the program goes on after a fault; 0 when none is expected.
pub(super) static RESUME: AtomicU64 = AtomicU64::new(0);

static CAUGHT: AtomicBool = AtomicBool::new(false);
static SIGNAL: AtomicI32 = AtomicI32::new(0);
static CODE: AtomicI32 = AtomicI32::new(0);
static ADDRESS: AtomicU64 = AtomicU64::new(0);
static RIP: AtomicU64 = AtomicU64::new(0);
static ERROR: AtomicU64 = AtomicU64::new(0);
static VECTOR: AtomicU64 = AtomicU64::new(0);
static STACK: AtomicU64 = AtomicU64::new(0);

/// What the kernel reported about one fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trap {
    /// Signal number.
    pub signal: i32,
    /// `si_code`.
    pub code: i32,
    /// `si_addr`.
    pub address: u64,
    /// RIP in the signal frame.
    pub rip: u64,
    /// Address of the instruction under test.
    pub site: u64,
    /// Error code in the signal frame.
    pub error: u64,
    /// Exception vector in the signal frame.
    pub vector: u64,
    /// An address on the stack that the handler ran on.
    pub stack: u64,
}

impl Trap {
    /// Demands signal and code.
    ///
    /// # Errors
    /// They differ.
    pub fn expect(self, signal: i32, code: i32) -> Result<Self> {
        let found = (self.signal, self.code);
        ensure!(
            found == (signal, code),
            "got signal {} code {}, expected signal {signal} code {code} ({self:x?})",
            found.0,
            found.1
        );
        Ok(self)
    }

    /// Demands that RIP stands `bytes` behind the start of the instruction.
    ///
    /// # Errors
    /// It stands elsewhere.
    pub fn expect_rip_after(self, bytes: u64) -> Result<Self> {
        ensure!(
            self.rip == self.site + bytes,
            "RIP is {:#x}, expected {:#x}+{bytes}",
            self.rip,
            self.site
        );
        Ok(self)
    }

    /// Demands the fault address.
    ///
    /// # Errors
    /// It is another.
    pub fn expect_address(self, address: u64) -> Result<Self> {
        ensure!(self.address == address, "si_addr is {:#x}, expected {address:#x}", self.address);
        Ok(self)
    }

    /// Demands that these bits of the error code are set.
    ///
    /// # Errors
    /// One is not.
    pub fn expect_error(self, bits: u64) -> Result<Self> {
        ensure!(self.error & bits == bits, "error code {:#x} lacks bits {bits:#x}", self.error);
        Ok(self)
    }
}

/// Catches fault signals of this process from now on.
///
/// # Errors
/// The kernel refuses the handler.
pub fn catch_faults() -> io::Result<()> {
    // SAFETY: an all-zero sigaction is valid: default action, empty mask.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    action.sa_sigaction = on_fault as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER | libc::SA_ONSTACK;
    for signal in FAULTS {
        // SAFETY: the handler keeps to what the signal frame allows.
        if unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

extern "C" fn on_fault(signal: i32, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes valid pointers to a handler installed with SA_SIGINFO.
    let (code, address, frame) = unsafe {
        let frame = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        ((*info).si_code, (*info).si_addr() as u64, frame)
    };
    let resume = RESUME.swap(0, Relaxed);
    if resume == 0 {
        // Not ours: the next occurrence kills the process and the check reports the signal.
        // SAFETY: restores the default action.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    }
    SIGNAL.store(signal, Relaxed);
    CODE.store(code, Relaxed);
    ADDRESS.store(address, Relaxed);
    RIP.store(frame[libc::REG_RIP as usize] as u64, Relaxed);
    ERROR.store(frame[libc::REG_ERR as usize] as u64, Relaxed);
    VECTOR.store(frame[libc::REG_TRAPNO as usize] as u64, Relaxed);
    STACK.store((&raw const code) as u64, Relaxed);
    CAUGHT.store(true, Relaxed);
    frame[libc::REG_RIP as usize] = resume as i64;
    frame[libc::REG_EFL as usize] &= !TRAP_FLAG;
}

/// The fault that happened since the last call, if any.
pub(super) fn taken() -> Option<Trap> {
    RESUME.store(0, Relaxed);
    CAUGHT.swap(false, Relaxed).then(|| Trap {
        signal: SIGNAL.load(Relaxed),
        code: CODE.load(Relaxed),
        address: ADDRESS.load(Relaxed),
        rip: RIP.load(Relaxed),
        site: SITE.load(Relaxed),
        error: ERROR.load(Relaxed),
        vector: VECTOR.load(Relaxed),
        stack: STACK.load(Relaxed),
    })
}

/// Executes `$instruction` with its address and the point to resume at noted; `$before` comes
/// ahead, `$after` in any case behind. All are assembly text. R11 is used.
macro_rules! attempt {
    ($instruction:literal; $($operands:tt)*) => {
        $crate::sys::trap::attempt!([] $instruction []; $($operands)*)
    };
    ([$($before:literal),*] $instruction:literal [$($after:literal),*]; $($operands:tt)*) => {{
        // SAFETY: the text names what it changes; a fault resumes at label 3 with every register
        // as it was, except the trap flag.
        unsafe {
            ::core::arch::asm!(
                "lea r11, [rip + 2f]",
                "mov [rip + {site}], r11",
                "lea r11, [rip + 3f]",
                "mov [rip + {resume}], r11",
                $($before,)*
                "2:",
                $instruction,
                "3:",
                $($after,)*
                site = sym $crate::sys::trap::SITE,
                resume = sym $crate::sys::trap::RESUME,
                out("r11") _,
                $($operands)*
            );
        }
        $crate::sys::trap::taken()
    }};
}
pub(super) use attempt;

macro_rules! instructions {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
        $(
            $(#[$doc])*
            pub fn $name() -> Option<Trap> {
                attempt!($text; inout("rax") 0_u64 => _, inout("rcx") 0_u64 => _,
                    inout("rdx") 0_u64 => _)
            }
        )*
    };
}

instructions! {
    /// Breakpoint, one byte.
    int3 = "int3";
    /// Divides 0 by 0 (two bytes).
    divide_by_zero = "div ecx";
    /// The instruction that is undefined for ever.
    ud2 = "ud2";
    /// Halt.
    hlt = "hlt";
    /// Clear the interrupt flag.
    cli = "cli";
    /// Set the interrupt flag.
    sti = "sti";
    /// Read a port.
    port_in = "in al, 0x80";
    /// Write a port.
    port_out = "out 0x80, al";
    /// Read CR0.
    read_cr0 = "mov rax, cr0";
    /// Write CR3.
    write_cr3 = "mov cr3, rax";
    /// Read a debug register.
    read_dr7 = "mov rax, dr7";
    /// Read an MSR.
    rdmsr = "rdmsr";
    /// Write an MSR.
    wrmsr = "wrmsr";
    /// Invalidate a TLB entry.
    invlpg = "invlpg [rax]";
    /// Invalidate a TLB entry at an address that a hypervisor might give a meaning.
    invlpg_high = "invlpg [0xffffffffff4d5650]";
    /// Clear CR0.TS.
    clts = "clts";
    /// Swap GS bases.
    swapgs = "swapgs";
    /// Load the task register.
    ltr = "ltr ax";
    /// Load the LDT register.
    lldt = "lldt ax";
    /// Return from a system call.
    sysretq = "sysretq";
    /// A software interrupt whose gate user mode may not use.
    int_32 = "int 0x20";
    /// Load a selector that lies behind the end of the GDT.
    bad_selector = "mov eax, 0xfff8; mov ds, eax";
}

/// Executes one instruction with the trap flag set by the program itself. The trap comes behind
/// the one-byte instruction under test.
pub fn trap_flag() -> Option<Trap> {
    attempt!(
        ["pushfq", "or qword ptr [rsp], 0x100", "popfq"] "nop" ["nop"];
    )
}

/// Reads 8 bytes.
///
/// # Errors
/// The access faulted.
pub fn load(address: u64) -> Result<u64, Trap> {
    let value: u64;
    match attempt!("mov {value}, [{address}]"; address = in(reg) address,
        value = inout(reg) 0_u64 => value)
    {
        Some(trap) => Err(trap),
        None => Ok(value),
    }
}

/// Writes 8 bytes.
///
/// # Errors
/// The access faulted.
///
/// # Safety
/// Nothing of the program lives at `address`: it faults, or belongs to the caller.
pub unsafe fn store(address: u64, value: u64) -> Result<(), Trap> {
    attempt!("mov [{address}], {value}"; address = in(reg) address, value = in(reg) value)
        .map_or(Ok(()), Err)
}

/// Jumps to an address where nothing can be.
pub fn jump_to_non_canonical() -> Option<Trap> {
    // SAFETY: no memory of the program is there.
    unsafe { jump(NON_CANONICAL) }
}

/// Jumps to code.
///
/// # Safety
/// The code there faults at once, or cannot be executed at all.
pub(super) unsafe fn jump(address: u64) -> Option<Trap> {
    attempt!("jmp {address}"; address = in(reg) address)
}

/// Calls a function at `address` and returns its result.
///
/// # Errors
/// It faulted.
///
/// # Safety
/// What is there is a function of the C ABI that uses `arguments` soundly, or nothing.
pub unsafe fn call(address: u64, arguments: [u64; 2]) -> Result<u64, Trap> {
    let value: u64;
    let trap = attempt!(
        ["mov r12, rsp", "and rsp, -16"] "call rax" ["mov rsp, r12"];
        inout("rax") address => value,
        inout("rdi") arguments[0] => _,
        inout("rsi") arguments[1] => _,
        out("r12") _,
        clobber_abi("C"),
    );
    trap.map_or(Ok(value), Err)
}
