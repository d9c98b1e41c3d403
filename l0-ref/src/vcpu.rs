//! Runs a CPU of L1 until the machine ends.

use crate::{devices::Devices, end::End};
use kvm_ioctls::{VcpuExit, VcpuFd};

/// Runs the CPU; returns why the machine ends.
pub fn run(mut vcpu: VcpuFd, devices: &Devices) -> End {
    loop {
        let exit = match vcpu.run() {
            Ok(exit) => exit,
            Err(error) if is_interruption(error) => continue,
            Err(error) => return End::Kvm(format!("KVM cannot run L1: {error}")),
        };
        match exit {
            VcpuExit::IoOut(port, data) => {
                if let Some(end) = devices.write(port, data) {
                    return end;
                }
            }
            VcpuExit::IoIn(port, data) => devices.read(port, data),
            // Nothing is mapped where there is no memory.
            VcpuExit::MmioRead(_, data) => data.fill(0xff),
            VcpuExit::MmioWrite(..) | VcpuExit::Intr => {}
            VcpuExit::Shutdown | VcpuExit::SystemEvent(..) => return End::Reset,
            other => return End::Kvm(format!("KVM cannot go on with L1: {other:?}")),
        }
    }
}

/// True if a call failed only because a signal came.
fn is_interruption(error: kvm_ioctls::Error) -> bool {
    let error = std::io::Error::from(error);
    matches!(error.kind(), std::io::ErrorKind::Interrupted | std::io::ErrorKind::WouldBlock)
}
