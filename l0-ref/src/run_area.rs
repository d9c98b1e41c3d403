//! Reads and answers what KVM leaves in a vCPU's run area, and makes a few calls that its crate
//! leaves to the caller to judge.
#![expect(unsafe_code, reason = "unions and shared memory of KVM's, and the TSC")]

use kvm_bindings::{
    KVM_EXIT_IO, KVM_EXIT_MMIO, KVM_EXIT_X86_RDMSR, KVM_EXIT_X86_WRMSR, kvm_device_attr, kvm_run,
    kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use std::{
    io,
    ptr::NonNull,
    slice,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering::SeqCst},
    },
};
use vmm_sys_util::{ioctl::ioctl_with_ref, ioctl_iow_nr};

mod numbers {
    use super::{ioctl_iow_nr, kvm_device_attr};
    ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, 0xae, 0xe1, kvm_device_attr);
    ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, 0xae, 0xe2, kvm_device_attr);
}
use numbers::{KVM_GET_DEVICE_ATTR, KVM_SET_DEVICE_ATTR};

/// `KVM_VCPU_TSC_CTRL` and its only attribute, `KVM_VCPU_TSC_OFFSET`.
const TSC_CONTROL: u32 = 0;
const TSC_OFFSET: u64 = 0;

/// The byte of a run area with which KVM_RUN returns at once; set by any thread.
#[derive(Clone, Debug)]
pub struct ExitFlag(Arc<Place>);

#[derive(Debug)]
enum Place {
    /// In the run area of a vCPU.
    Area(NonNull<u8>),
    /// Of a vCPU that is none.
    Own(AtomicU8),
}

// SAFETY: the byte is accessed atomically only, and is there as long as the vCPU (see `of`).
unsafe impl Send for Place {}
// SAFETY: as above.
unsafe impl Sync for Place {}

impl ExitFlag {
    /// The flag of a vCPU. It must not be used once the vCPU is dropped: `kick::Kick` forgets it
    /// when the thread that owns the vCPU leaves it.
    #[must_use]
    pub(crate) fn of(vcpu: &mut VcpuFd) -> Self {
        let byte = NonNull::from(&mut vcpu.get_kvm_run().immediate_exit);
        Self(Arc::new(Place::Area(byte)))
    }

    /// A flag for a vCPU that KVM does not know.
    #[must_use]
    pub fn detached() -> Self {
        Self(Arc::new(Place::Own(AtomicU8::new(0))))
    }

    /// Sets or clears it.
    pub fn set(&self, on: bool) {
        match &*self.0 {
            Place::Area(byte) => {
                // SAFETY: the run area is mapped as long as the vCPU is there. KVM reads the byte
                // once at the start of KVM_RUN, and this crate writes it here only.
                let byte = unsafe { AtomicU8::from_ptr(byte.as_ptr()) };
                byte.store(u8::from(on), SeqCst);
            }
            Place::Own(byte) => byte.store(u8::from(on), SeqCst),
        }
    }

    /// Whether it is set.
    #[must_use]
    pub fn is_set(&self) -> bool {
        match &*self.0 {
            // SAFETY: as for `set`.
            Place::Area(byte) => unsafe { AtomicU8::from_ptr(byte.as_ptr()) }.load(SeqCst) != 0,
            Place::Own(byte) => byte.load(SeqCst) != 0,
        }
    }
}

/// The size of one element of the port access that KVM stopped for.
#[must_use]
pub fn io_size(vcpu: &mut VcpuFd) -> u8 {
    let run = vcpu.get_kvm_run();
    if run.exit_reason != KVM_EXIT_IO {
        return 1;
    }
    // SAFETY: the exit reason says that this is the member in use; all are plain integers.
    unsafe { run.__bindgen_anon_1.io.size }
}

/// Gives the data of an IN or INS; bytes that KVM does not want are left out.
pub fn answer_in(vcpu: &mut VcpuFd, data: &[u8]) {
    let run = vcpu.get_kvm_run();
    if run.exit_reason != KVM_EXIT_IO {
        return;
    }
    // SAFETY: as for `io_size`.
    let io = unsafe { run.__bindgen_anon_1.io };
    let len = (io.count as usize * usize::from(io.size)).min(data.len());
    let area: *mut kvm_run = run;
    // SAFETY: KVM put the data of this exit at this offset of the area that is mapped for the
    // vCPU, and so long; the vCPU is borrowed mutably, so KVM does not run.
    let target = unsafe {
        slice::from_raw_parts_mut(area.cast::<u8>().byte_add(io.data_offset as usize), len)
    };
    target.copy_from_slice(&data[..len]);
}

/// Gives the data of a load from a device.
pub fn answer_load(vcpu: &mut VcpuFd, data: u64) {
    let run = vcpu.get_kvm_run();
    if run.exit_reason == KVM_EXIT_MMIO {
        run.__bindgen_anon_1.mmio.data = data.to_le_bytes();
    }
}

/// Gives the value of an MSR that was read, accepts one that was written; `None` is #GP.
pub fn answer_msr(vcpu: &mut VcpuFd, value: Option<u64>) {
    let run = vcpu.get_kvm_run();
    if !matches!(run.exit_reason, KVM_EXIT_X86_RDMSR | KVM_EXIT_X86_WRMSR) {
        return;
    }
    run.__bindgen_anon_1.msr.error = u8::from(value.is_none());
    if run.exit_reason == KVM_EXIT_X86_RDMSR {
        run.__bindgen_anon_1.msr.data = value.unwrap_or(0);
    }
}

/// Loads an XSAVE area.
///
/// # Errors
/// KVM's.
pub fn set_xsave(vcpu: &VcpuFd, area: &kvm_xsave) -> Result<(), kvm_ioctls::Error> {
    // SAFETY: KVM reads more than the 4096 bytes of `area` only for a process that has asked for
    // AMX, which this one never does.
    unsafe { vcpu.set_xsave(area) }
}

/// What KVM adds to the machine's TSC for this vCPU; `None` on a kernel that does not tell.
#[must_use]
pub fn tsc_offset(vcpu: &VcpuFd) -> Option<u64> {
    let mut offset = 0u64;
    let attribute = kvm_device_attr {
        flags: 0,
        group: TSC_CONTROL,
        attr: TSC_OFFSET,
        addr: (&raw mut offset) as u64,
    };
    // SAFETY: KVM writes 8 bytes to `offset`, which lives through the call.
    let result = unsafe { ioctl_with_ref(vcpu, KVM_GET_DEVICE_ATTR(), &attribute) };
    (result == 0).then_some(offset)
}

/// Sets what KVM adds to the machine's TSC for this vCPU.
///
/// # Errors
/// The system's.
pub fn set_tsc_offset(vcpu: &VcpuFd, offset: u64) -> io::Result<()> {
    let attribute = kvm_device_attr {
        flags: 0,
        group: TSC_CONTROL,
        attr: TSC_OFFSET,
        addr: (&raw const offset) as u64,
    };
    // SAFETY: KVM reads 8 bytes from `offset`, which lives through the call.
    match unsafe { ioctl_with_ref(vcpu, KVM_SET_DEVICE_ATTR(), &attribute) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// This machine's TSC.
#[must_use]
pub fn tsc() -> u64 {
    // SAFETY: every x86-64 CPU has it.
    unsafe { std::arch::x86_64::_rdtsc() }
}
