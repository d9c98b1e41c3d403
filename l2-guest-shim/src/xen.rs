//! Numbers and layouts of the Xen PV interface, as 64-bit stock kernels use it.
//! May: nothing. Input: trusted.
//!
//! From Xen's public headers; what kernels really issue is listed in `docs/shim.md`.
#![expect(missing_docs, reason = "the names are those of Xen's public headers")]

/// Hypercall numbers.
pub mod nr {
    pub const SET_TRAP_TABLE: usize = 0;
    pub const MMU_UPDATE: usize = 1;
    pub const SET_GDT: usize = 2;
    pub const STACK_SWITCH: usize = 3;
    pub const FPU_TASKSWITCH: usize = 5;
    pub const SET_DEBUGREG: usize = 8;
    pub const GET_DEBUGREG: usize = 9;
    pub const UPDATE_DESCRIPTOR: usize = 10;
    pub const MEMORY_OP: usize = 12;
    pub const MULTICALL: usize = 13;
    pub const UPDATE_VA_MAPPING: usize = 14;
    pub const SET_TIMER_OP: usize = 15;
    pub const XEN_VERSION: usize = 17;
    pub const CONSOLE_IO: usize = 18;
    pub const GRANT_TABLE_OP: usize = 20;
    pub const VM_ASSIST: usize = 21;
    pub const IRET: usize = 23;
    pub const VCPU_OP: usize = 24;
    pub const SET_SEGMENT_BASE: usize = 25;
    pub const MMUEXT_OP: usize = 26;
    pub const SCHED_OP: usize = 29;
    pub const CALLBACK_OP: usize = 30;
    pub const EVENT_CHANNEL_OP: usize = 32;
    pub const PHYSDEV_OP: usize = 33;
    pub const XENPMU_OP: usize = 40;
    /// One past the highest number in the table.
    pub const COUNT: usize = 41;
}

/// Error numbers, as hypercalls return them.
pub mod errno {
    pub const EPERM: i64 = -1;
    pub const ENOENT: i64 = -2;
    pub const EFAULT: i64 = -14;
    pub const EBUSY: i64 = -16;
    pub const EEXIST: i64 = -17;
    pub const EINVAL: i64 = -22;
    pub const ENOSPC: i64 = -28;
    pub const ENOSYS: i64 = -38;
}

/// `mmu_update` commands, the low bits of the address.
pub mod mmu_update {
    pub const NORMAL: u64 = 0;
    pub const MACHPHYS: u64 = 1;
    pub const PRESERVE_AD: u64 = 2;
    pub const NO_TRANSLATE: u64 = 3;
}

/// `mmuext_op` commands.
pub mod mmuext {
    pub const PIN_L1: u32 = 0;
    pub const PIN_L2: u32 = 1;
    pub const PIN_L3: u32 = 2;
    pub const PIN_L4: u32 = 3;
    pub const UNPIN: u32 = 4;
    pub const NEW_BASEPTR: u32 = 5;
    pub const TLB_FLUSH_LOCAL: u32 = 6;
    pub const INVLPG_LOCAL: u32 = 7;
    pub const TLB_FLUSH_MULTI: u32 = 8;
    pub const INVLPG_MULTI: u32 = 9;
    pub const TLB_FLUSH_ALL: u32 = 10;
    pub const INVLPG_ALL: u32 = 11;
    pub const FLUSH_CACHE: u32 = 12;
    pub const SET_LDT: u32 = 13;
    pub const NEW_USER_BASEPTR: u32 = 15;
}

/// `update_va_mapping` flags.
pub mod uvmf {
    pub const TLB_FLUSH: u64 = 1;
    pub const INVLPG: u64 = 2;
    pub const KIND: u64 = 3;
}

/// `event_channel_op` commands.
pub mod evtchnop {
    pub const BIND_VIRQ: u64 = 1;
    pub const CLOSE: u64 = 3;
    pub const SEND: u64 = 4;
    pub const STATUS: u64 = 5;
    pub const ALLOC_UNBOUND: u64 = 6;
    pub const BIND_IPI: u64 = 7;
    pub const BIND_VCPU: u64 = 8;
    pub const UNMASK: u64 = 9;
}

/// Virtual interrupts.
pub mod virq {
    pub const TIMER: u32 = 0;
    pub const DEBUG: u32 = 1;
}

/// `vcpu_op` commands.
pub mod vcpuop {
    pub const INITIALISE: u64 = 0;
    pub const UP: u64 = 1;
    pub const DOWN: u64 = 2;
    pub const IS_UP: u64 = 3;
    pub const GET_RUNSTATE_INFO: u64 = 4;
    pub const REGISTER_RUNSTATE_AREA: u64 = 5;
    pub const SET_PERIODIC_TIMER: u64 = 6;
    pub const STOP_PERIODIC_TIMER: u64 = 7;
    pub const SET_SINGLESHOT_TIMER: u64 = 8;
    pub const STOP_SINGLESHOT_TIMER: u64 = 9;
    pub const REGISTER_VCPU_INFO: u64 = 10;
    pub const REGISTER_TIME_AREA: u64 = 13;
}

/// Numbers of domains that stand for others.
pub mod domid {
    pub const SELF: u16 = 0x7ff0;
}

/// `sched_op` commands.
pub mod schedop {
    pub const YIELD: u64 = 0;
    pub const BLOCK: u64 = 1;
    pub const SHUTDOWN: u64 = 2;
    pub const POLL: u64 = 3;
}

/// Reasons of `sched_op` shutdown.
pub mod shutdown {
    pub const POWEROFF: u32 = 0;
    pub const REBOOT: u32 = 1;
    pub const SUSPEND: u32 = 2;
    pub const CRASH: u32 = 3;
}

/// `callback_op` and the callbacks it registers.
pub mod callback {
    pub const REGISTER: u64 = 0;
    pub const UNREGISTER: u64 = 1;
    pub const EVENT: u16 = 0;
    pub const FAILSAFE: u16 = 1;
    pub const SYSCALL: u16 = 2;
    pub const SYSENTER: u16 = 5;
    pub const SYSCALL32: u16 = 7;
}

/// `grant_table_op` commands and status.
pub mod grant {
    pub const SETUP_TABLE: u64 = 2;
    pub const QUERY_SIZE: u64 = 6;
    pub const OKAY: i16 = 0;
    /// General error.
    pub const BAD: i16 = -1;
}

/// `xen_version` commands.
pub mod version {
    pub const VERSION: u64 = 0;
    pub const EXTRAVERSION: u64 = 1;
    pub const GET_FEATURES: u64 = 6;
    /// What we say we are: 4.17, the release the interface was checked against.
    pub const OURS: i64 = pv_abi::stock_cpuid::XEN_VERSION as i64;
}

/// `memory_op` commands.
pub mod memory {
    pub const MEMORY_MAP: u64 = 9;
    pub const MACHPHYS_MAPPING: u64 = 12;
}

/// `set_segment_base` selectors.
pub mod segbase {
    pub const FS: u64 = 0;
    pub const GS_USER: u64 = 1;
    pub const GS_KERNEL: u64 = 2;
    pub const GS_USER_SEL: u64 = 3;
}

/// `physdev_op` commands.
pub mod physdev {
    pub const SET_IOPL: u64 = 6;
    pub const SET_IOBITMAP: u64 = 7;
}

/// Offsets in `struct start_info` (1168 bytes).
pub mod start_info {
    pub const MAGIC: usize = 0;
    pub const NR_PAGES: usize = 32;
    pub const SHARED_INFO: usize = 40;
    pub const FLAGS: usize = 48;
    pub const STORE_MFN: usize = 56;
    pub const STORE_EVTCHN: usize = 64;
    pub const CONSOLE_MFN: usize = 72;
    pub const CONSOLE_EVTCHN: usize = 80;
    pub const PT_BASE: usize = 88;
    pub const NR_PT_FRAMES: usize = 96;
    pub const MFN_LIST: usize = 104;
    pub const MOD_START: usize = 112;
    pub const MOD_LEN: usize = 120;
    pub const CMD_LINE: usize = 128;
    pub const CMD_LINE_SIZE: usize = 1024;
    pub const SIZE: usize = 1168;
    /// Flag: `mod_start` is a frame number.
    pub const SIF_MOD_START_PFN: u32 = 1 << 3;
    /// Flag: the tools use the linear p2m map; no three-level list is needed.
    pub const SIF_VIRT_P2M_4TOOLS: u32 = 1 << 4;
}

/// Offsets in `struct shared_info`.
pub mod shared_info {
    pub const VCPU_INFO_SIZE: usize = 64;
    pub const VCPU_INFOS: usize = 32;
    pub const EVTCHN_PENDING: usize = 2048;
    pub const EVTCHN_MASK: usize = 2560;
    pub const WC_VERSION: usize = 3072;
    pub const WC_SEC: usize = 3076;
    pub const WC_NSEC: usize = 3080;
    pub const WC_SEC_HI: usize = 3084;
}

/// Offsets in `struct vcpu_info`.
pub mod vcpu_info {
    pub const UPCALL_PENDING: usize = 0;
    pub const UPCALL_MASK: usize = 1;
    pub const PENDING_SEL: usize = 8;
    pub const CR2: usize = 16;
    pub const TIME: usize = 32;
}

/// Offsets in `struct vcpu_time_info` (32 bytes).
pub mod time_info {
    pub const VERSION: usize = 0;
    pub const TSC_TIMESTAMP: usize = 8;
    pub const SYSTEM_TIME: usize = 16;
    pub const TSC_TO_SYSTEM_MUL: usize = 24;
    pub const TSC_SHIFT: usize = 28;
    pub const FLAGS: usize = 29;
    pub const TSC_STABLE: u8 = 1;
}

/// Offsets in `struct xencons_interface`.
pub mod console {
    pub const IN: u64 = 0;
    pub const IN_SIZE: u32 = 1024;
    pub const OUT: u64 = 1024;
    pub const OUT_SIZE: u32 = 2048;
    pub const IN_CONS: u64 = 3072;
    pub const IN_PROD: u64 = 3076;
    pub const OUT_CONS: u64 = 3080;
    pub const OUT_PROD: u64 = 3084;
}
