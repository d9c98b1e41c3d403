//! Hypercalls to L1.
//! May: unsafe, asm. Context: shim; IF is 0, so no event can come in between.
#![expect(unsafe_code, reason = "hypercalls are an instruction")]

use core::arch::asm;
use pv_abi::{
    ext::{self, Features},
    hypercall as nr,
};

/// Any hypercall: arguments in RBX, R10 and RDX.
#[inline(always)]
fn call(number: u64, first: u64, second: u64, third: u64) -> u64 {
    let result;
    // SAFETY: L1 preserves every register but RAX, RCX and R11; RBX, which the compiler keeps for
    // itself, is put back. What a call does to memory is said at its wrapper below.
    unsafe {
        asm!(
            "xchg rbx, {first}",
            "syscall",
            "xchg rbx, {first}",
            first = inout(reg) first => _,
            inlateout("rax") number => result,
            in("r10") second,
            in("rdx") third,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result
}

/// Enables features; L1 refuses what it does not know.
#[must_use]
pub fn enable(features: Features) -> bool {
    call(ext::call::ENABLE, features.bits().into(), 0, 0) == 0
}

/// Reads an MSR of L1's machine.
#[must_use]
pub fn rdmsr(index: u32) -> u64 {
    call(nr::RDMSR, index.into(), 0, 0)
}

/// Writes an MSR of L1's machine; false if it was refused.
pub fn wrmsr(index: u32, value: u64) -> bool {
    call(nr::WRMSR, index.into(), value, 0) == 0
}

/// Loads the page tables in frame `root` with a flush. `pinned` says that their upper levels are
/// only stored to through us.
#[inline]
pub fn load_root(root: u64, pinned: bool) {
    let pinned = if pinned { ext::call::LOAD_PGTBL_PINNED } else { 0 };
    call(nr::LOAD_PGTBL, nr::LOAD_PGTBL_FLUSH | pinned, root << 12, 0);
}

/// Flushes all translations.
#[inline]
pub fn flush() {
    call(nr::TLB_FLUSH, 0, 0, 0);
}

/// Flushes one address.
#[inline]
pub fn flush_address(address: u64) {
    call(nr::TLB_INVLPG, address, 0, 0);
}

/// Has L1 forget the root in frame `root`.
pub fn unpin_root(root: u64) {
    call(ext::call::UNPIN_ROOT, root, 0, 0);
}

/// Loads a user GS selector; returns the base it brought.
#[must_use]
pub fn load_gs(selector: u64) -> u64 {
    call(nr::LOAD_GS, selector, 0, 0)
}

/// Loads the thread-local-storage descriptors.
pub fn load_tls(descriptors: [u64; 3]) {
    call(nr::LOAD_TLS, descriptors[0], descriptors[1], descriptors[2]);
}

/// Loads the local descriptor table; false if L1 refused.
#[must_use]
pub fn load_ldt(address: u64, entries: u64) -> bool {
    call(ext::call::LOAD_LDT, address, entries, 0) == 0
}

/// Installs the CPU-number descriptor.
pub fn set_cpunode(descriptor: u64) {
    call(ext::call::SET_CPUNODE, descriptor, 0, 0);
}

/// Takes the next interrupt that waits: its vector.
#[must_use]
pub fn take_interrupt() -> Option<u8> {
    let vector = call(ext::call::TAKE_IRQ, 0, 0, 0) as u8;
    (vector != 0).then_some(vector)
}

/// Writes guest memory to the console; returns the bytes taken, 0 if it is no memory.
#[must_use]
pub fn console_write(gpa: u64, len: u64) -> u64 {
    let taken = call(ext::call::CONSOLE_WRITE, gpa, len, 0);
    if taken <= len { taken } else { 0 }
}

/// Reads console input into guest memory; returns the bytes given.
#[must_use]
pub fn console_read(gpa: u64, len: u64) -> u64 {
    let given = call(ext::call::CONSOLE_READ, gpa, len, 0);
    if given <= len { given } else { 0 }
}

/// Has console input raise `vector`.
pub fn console_vector(vector: u8) {
    call(ext::call::CONSOLE_VECTOR, vector.into(), 0, 0);
}

/// Writes guest memory to L1's log.
pub fn log(gpa: u64, len: u64) {
    call(ext::call::LOG, gpa, len, 0);
}

/// One of L1's counters for this vCPU.
#[must_use]
pub fn counter(index: u64) -> u64 {
    call(ext::call::READ_COUNTER, index, 0, 0)
}

/// Starts vCPU `index` at `entry` with `argument`, on the root table in frame `root`; false if L1 refused.
#[must_use]
pub fn start_vcpu(index: u32, entry: u64, argument: u64, root: u64) -> bool {
    let result: u64;
    // SAFETY: as in `call`; RSI is the fourth argument. What runs there is the shim's own start, on
    // the other vCPU's stack.
    unsafe {
        asm!(
            "xchg rbx, {first}",
            "syscall",
            "xchg rbx, {first}",
            first = inout(reg) u64::from(index) => _,
            inlateout("rax") ext::call::VCPU_START => result,
            in("r10") entry,
            in("rdx") argument,
            in("rsi") root << 12,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result == 0
}

/// Requests interrupt `vector` of the vCPUs in `mask`.
pub fn send_ipi(mask: u64, vector: u8) {
    call(ext::call::SEND_IPI, mask, vector.into(), 0);
}

/// Flushes all translations of the vCPUs in `mask`.
pub fn flush_vcpus(mask: u64) {
    call(ext::call::FLUSH_VCPUS, mask, ext::call::FLUSH_ALL, 0);
}

/// Flushes one address on the vCPUs in `mask`.
pub fn flush_address_of(mask: u64, address: u64) {
    call(ext::call::FLUSH_VCPUS, mask, address, 0);
}

/// Waits until an interrupt could be taken; IF stays 0.
pub fn wait_interrupt() {
    call(ext::call::WAIT_IRQ, 0, 0, 0);
}

/// Leaves the rest of the time slice to others.
pub fn yield_slice() {
    call(ext::call::YIELD, 0, 0, 0);
}

/// Reads a register of the device in `slot`, if there is such.
#[must_use]
pub fn device_read(slot: u32, offset: u64) -> Option<u32> {
    u32::try_from(call(ext::call::DEVICE_READ, slot.into(), offset, 0)).ok()
}

/// Writes a register of the device in `slot`.
pub fn device_write(slot: u32, offset: u64, value: u32) {
    call(ext::call::DEVICE_WRITE, slot.into(), offset, value.into());
}

/// Tells the device in `slot` of new buffers in `queue`.
pub fn doorbell(slot: u32, queue: u32) {
    call(ext::call::DOORBELL, slot.into(), queue.into(), 0);
}

/// Has the device in `slot` interrupt vCPU `vcpu` with `vector`; false if L1 refused.
pub fn device_vector(slot: u32, vector: u8, vcpu: u32) -> bool {
    call(ext::call::DEVICE_VECTOR, slot.into(), vector.into(), vcpu.into()) == 0
}

/// Has queue `queue` of the device in `slot` interrupt vCPU `vcpu` with `vector`; false if L1 refused.
pub fn queue_vector(slot: u32, queue: u8, vector: u8, vcpu: u32) -> bool {
    let which = u64::from(queue) << 8 | u64::from(vector);
    call(ext::call::QUEUE_VECTOR, slot.into(), which, vcpu.into()) == 0
}

/// Ends the VM.
pub fn shutdown(reason: u64, gpa: u64, len: u64) -> ! {
    call(ext::call::SHUTDOWN, reason, gpa, len);
    unreachable!("the VM has ended")
}
