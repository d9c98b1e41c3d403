//! Silences the two old interrupt controllers (Intel 8259A), which firmware may have left at work.
//! May: unsafe, port-io. Context: boot.
#![expect(unsafe_code, reason = "the controllers' ports")]

use x86_64::instructions::port::Port;

/// Command and data ports of both controllers, and where on each the other is.
const CONTROLLERS: [(u16, u16, u8); 2] = [(0x20, 0x21, 1 << 2), (0xa0, 0xa1, 2)];
/// Vectors that L1 uses for nothing else: an interrupt that is withdrawn too late still arrives, and
/// firmware has it at a vector that means an exception now.
const VECTORS: [u8; 2] = [0x20, 0x28];

/// Masks all lines.
pub fn silence() {
    for ((command, data, other), vectors) in CONTROLLERS.into_iter().zip(VECTORS) {
        let (mut command, mut data) = (Port::<u8>::new(command), Port::<u8>::new(data));
        // SAFETY: the start-up sequence of these chips, at their fixed ports; where they are absent, the
        // writes are ignored. L1 takes no interrupt from them.
        unsafe {
            command.write(0x11);
            data.write(vectors);
            data.write(other);
            data.write(1);
            data.write(0xff);
        }
    }
}
