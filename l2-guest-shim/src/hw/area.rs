//! A vCPU's area of the VM window: its PVCS, its data, its note ring.
//! May: unsafe. Context: shim.
#![expect(unsafe_code, reason = "fixed addresses that L1 maps")]

use core::sync::atomic::{
    AtomicU8, AtomicU16, AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst},
};
use pv_abi::{
    ext::{notes, timer, window},
    pvcs::{self, flags},
};

/// Per-vCPU data. `entry.S` knows the fields it names.
#[derive(Debug)]
#[repr(C)]
pub struct VcpuData {
    /// Parks RSP for a few instructions.
    pub scratch: AtomicU64,
    /// Where frames of user mode go: the kernel's stack pointer, aligned down to 16.
    pub kernel_sp: AtomicU64,
    /// The kernel's system call entry.
    pub syscall_entry: AtomicU64,
    /// Window address of the live `vcpu_info`.
    pub vcpu_info: AtomicU64,
    /// The ERETU instruction.
    pub retu: AtomicU64,
    /// The ERETU instruction that maps the address just handled.
    pub retu_prefault: AtomicU64,
    /// Where shared code leaves the shim: this vCPU's alias of `shim_leave`.
    pub leave: AtomicU64,
    /// The same by way of what is pending.
    pub pending: AtomicU64,
    /// The kernel's page-fault handler if it masks events; else 0.
    pub page_fault: AtomicU64,
    /// 1 while the guest's kernel runs, 0 for its user mode.
    pub kernel_mode: AtomicU8,
    /// The next ERETU maps the address just handled.
    pub prefault: AtomicU8,
    /// The hypercall that ends halts the vCPU.
    pub halt: AtomicU8,
    reserved: [u8; 5],
    /// Number of the vCPU.
    pub index: AtomicU32,
    /// Flags of the system call callback.
    pub syscall_flags: AtomicU16,
    /// The kernel's event callback.
    pub event_callback: AtomicU64,
    /// The kernel's failsafe callback.
    pub failsafe_callback: AtomicU64,
    /// Frame of the root table both modes use.
    pub root: AtomicU64,
    /// Thread-local-storage descriptors, as loaded.
    pub tls: [AtomicU64; 3],
    /// Frames of the kernel's GDT; only the first holds anything of interest.
    pub gdt_frame: AtomicU64,
    /// Port of the timer's virtual interrupt, 0 for none.
    pub timer_port: AtomicU32,
    /// I/O privilege that the kernel gave to user mode.
    pub iopl: AtomicU32,
    /// The kernel's I/O permission bitmap for user mode, and its size in ports.
    pub io_bitmap: AtomicU64,
    /// See `io_bitmap`.
    pub io_ports: AtomicU32,
    /// The kernel wants this vCPU to run: between its VCPUOP_up and VCPUOP_down.
    pub up: AtomicU8,
    /// It waits for a port that may be masked.
    pub polls: AtomicU8,
    /// Address of the kernel's runstate area; 0 for none.
    pub runstate: AtomicU64,
    /// Stolen time that is in it, nanoseconds.
    pub stolen: AtomicU64,
    /// TSC value that the kernel's timer is armed for; 0 for none.
    pub deadline: AtomicU64,
}

/// Where L1 tells of stolen time: in the page of the data, behind it.
const STEAL: u64 = 0xf80;
const _: () = assert!(size_of::<VcpuData>() as u64 <= STEAL);

/// A vCPU's area. Handlers get it from `entry.S`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Area(u64);

impl Area {
    /// The area of vCPU `index`.
    #[must_use]
    pub const fn of(index: usize) -> Self {
        Self(window::VCPU_AREA + index as u64 * window::VCPU_STRIDE)
    }

    fn at<T>(self, offset: u64) -> &'static T {
        // SAFETY: L1 maps the area's own pages at fixed addresses, readable and writable, for as
        // long as the VM lives; `T` is made of atomics, which any contents are valid for.
        unsafe { &*((self.0 + offset) as *const T) }
    }

    /// The shim's data of this vCPU.
    #[inline]
    pub fn data(self) -> &'static VcpuData {
        self.at(window::area::DATA)
    }

    fn pvcs_word(self, offset: usize) -> &'static AtomicU64 {
        self.at(window::area::PVCS + offset as u64)
    }

    /// Takes the event that L1 delivered: vector and error code. The PVCS is free afterwards.
    #[inline]
    pub fn take_event(self) -> (u8, u16) {
        let error: &AtomicU16 = self.at(window::area::PVCS + pvcs::offset::EVENT_ERRCODE as u64);
        let vector: &AtomicU16 = self.at(window::area::PVCS + pvcs::offset::EVENT_VECTOR as u64);
        let error = error.load(Relaxed);
        (vector.swap(0, AcqRel) as u8, error)
    }

    /// Faulting address of the last page fault.
    #[inline]
    pub fn cr2(self) -> u64 {
        self.pvcs_word(pvcs::offset::CR2).load(Relaxed)
    }

    /// The GS base user mode goes on with.
    pub fn user_gsbase(self) -> u64 {
        self.pvcs_word(pvcs::offset::USER_GSBASE).load(Relaxed)
    }

    /// Sets it.
    pub fn set_user_gsbase(self, base: u64) {
        self.pvcs_word(pvcs::offset::USER_GSBASE).store(base, Relaxed);
    }

    /// L1 has an interrupt waiting.
    #[inline]
    pub fn interrupt_waits(self) -> bool {
        self.pvcs_word(pvcs::offset::EVENT_FLAGS).load(Acquire) & flags::IP != 0
    }

    /// Offset of what L1 tells of stolen time from the area's own pages.
    pub const STEAL: u64 = 4096 + STEAL;

    /// Time that others had while this vCPU was ready, nanoseconds.
    pub fn stolen(self) -> u64 {
        self.at::<AtomicU64>(window::area::DATA + STEAL).load(Relaxed)
    }

    /// Makes the ERETU to come map the address of fault `cr2`.
    pub fn prefault(self) {
        self.data().prefault.store(1, Relaxed);
    }

    /// Has the timer fire at TSC value `deadline`, or not at all with 0; false if L1 must be told, for it
    /// looks later than that.
    pub fn set_deadline(self, deadline: u64) -> bool {
        let word = |offset: usize| self.at::<AtomicU64>(window::area::NOTES + offset as u64);
        word(timer::DEADLINE).store(deadline, SeqCst);
        deadline == 0 || word(timer::ARMED).load(SeqCst) <= deadline
    }

    /// Pushes a note; false if the ring is full and L1 must drain it first.
    #[inline]
    pub fn note(self, gpa: u64) -> bool {
        let word = |offset: usize| self.at::<AtomicU64>(window::area::NOTES + offset as u64);
        let head = word(notes::HEAD).load(Relaxed) as u32;
        let tail = word(notes::TAIL).load(Acquire) as u32;
        if head.wrapping_sub(tail) as usize >= notes::ENTRIES {
            return false;
        }
        let slot = head as usize % notes::ENTRIES;
        word(notes::FIRST + 8 * slot).store(gpa, Relaxed);
        word(notes::HEAD).store(head.wrapping_add(1).into(), Release);
        true
    }
}

const _: () = assert!(size_of::<VcpuData>() <= 4096);
