//! Runs a CPU of L1 until the machine ends.

use crate::{abi::offer::PORT, devices::Devices, end::End, machine::L1Server};
use kvm_ioctls::{VcpuExit, VcpuFd};

/// Runs CPU `index`; returns why the machine ends.
pub fn run(mut vcpu: VcpuFd, index: usize, devices: &Devices, server: Option<&L1Server>) -> End {
    loop {
        let exit = match vcpu.run() {
            Ok(exit) => exit,
            Err(error) if is_interruption(error) => continue,
            Err(error) => return End::Kvm(format!("KVM cannot run L1: {error}")),
        };
        match exit {
            VcpuExit::IoOut(PORT, data) => {
                // Four bytes, or no call (rule L0-CALL-4).
                if let (Some(server), Ok(word)) = (server, <[u8; 4]>::try_from(data)) {
                    server.call(index, u32::from_le_bytes(word));
                }
            }
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
