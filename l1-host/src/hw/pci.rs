//! Reaches the configuration space of PCI devices.
//! May: unsafe, port-io. Context: boot. Input: the machine's devices.
#![expect(unsafe_code, reason = "ports")]

use spin::Mutex;
use virtio_drivers::transport::pci::bus::{ConfigurationAccess, DeviceFunction};
use x86_64::instructions::port::Port;

/// Configuration mechanism 1, which every PC-like machine has.
const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;
const ENABLE: u32 = 1 << 31;

/// Address and data go together.
static PORTS: Mutex<()> = Mutex::new(());

/// The configuration space of all devices.
#[derive(Clone, Copy, Debug)]
pub struct Configuration;

fn select(device: DeviceFunction, offset: u8) -> u32 {
    let function = u32::from(device.bus) << 16
        | u32::from(device.device) << 11
        | u32::from(device.function) << 8;
    ENABLE | function | u32::from(offset & !3)
}

impl ConfigurationAccess for Configuration {
    fn read_word(&self, device: DeviceFunction, offset: u8) -> u32 {
        let _both = PORTS.lock();
        // SAFETY: reading configuration space changes nothing that L1 relies on.
        unsafe {
            Port::<u32>::new(ADDRESS).write(select(device, offset));
            Port::<u32>::new(DATA).read()
        }
    }

    fn write_word(&mut self, device: DeviceFunction, offset: u8, data: u32) {
        let _both = PORTS.lock();
        // SAFETY: the caller drives the device; it is told of no memory but L1's own buffers.
        unsafe {
            Port::<u32>::new(ADDRESS).write(select(device, offset));
            Port::<u32>::new(DATA).write(data);
        }
    }

    unsafe fn unsafe_clone(&self) -> Self {
        *self
    }
}
