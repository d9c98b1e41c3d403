//! Drives virtio devices with registers in memory alone (virtio 1.2, section 4.2): each interrupts by a line.
//! May: unsafe, alloc. Context: boot; `acknowledge`: irq-off. Input: the machine's devices.
//!
//! A line rises when the device's interrupt status stops being 0, and L1 has it interrupt as it rises, which suits
//! monitors whose lines stay up as well as those that only pulse them. So the status has to be 0 once after each
//! interrupt, or there is never another one.
#![expect(unsafe_code, reason = "the transport is told of raw registers")]

use super::transport::{Doorbell, Way};
use crate::{
    firmware::virtio_mmio::Devices,
    hw::{
        apic::vector,
        ioapic,
        mmio::{self, Register},
    },
    log,
};
use alloc::{format, string::String, vec::Vec};
use core::{
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};
use pv_abi::virtio::mmio::{
    DEVICE_ID, INTERRUPT_ACK, INTERRUPT_STATUS, MAGIC, MAGIC_VALUE, QUEUE_NOTIFY, VERSION,
};
use spin::Once;
use virtio_drivers::transport::{
    DeviceType,
    mmio::{MmioTransport, VirtIOHeader},
};

/// The version before virtio 1.
const LEGACY: u32 = 1;
/// Where there could be a device, and is none.
const NOBODY: u32 = 0;
const NO_PLACE: &str = "its registers have no place";
/// Bytes of registers that are mapped: those of the devices that L1 drives are far fewer.
const MOST: u64 = 4096;
/// Acknowledgements of one interrupt, after which the line is taken to be stuck.
const PATIENCE: u32 = 64;

/// A device, and its line.
#[derive(Debug)]
struct Found {
    address: u64,
    len: u64,
    kind: u32,
    line: u32,
    status: Register<u32>,
    acknowledge: Register<u32>,
    /// What its interrupts are for, once it has some.
    vector: Once<u8>,
    interrupts: AtomicU64,
}

/// The devices, in the order of the vectors of their lines.
static FOUND: Once<Vec<Found>> = Once::new();

/// How a device and L1 tell each other of what is new.
#[derive(Clone, Copy, Debug)]
pub struct Signals {
    /// Which of [`FOUND`] it is.
    index: usize,
    way: Way,
}

/// Looks at what is said to be `devices`.
pub fn start(devices: Devices) {
    FOUND.call_once(|| {
        let mut found = Vec::new();
        for device in devices {
            let (start, len) =
                (device.registers.start, device.registers.end - device.registers.start);
            match look(start, len.min(MOST), device.line) {
                Ok(device) => found.extend(device),
                Err(why) => log!("virtio device at {start:#x}: not used: {why}"),
            }
        }
        found
    });
}

fn look(address: u64, len: u64, line: u32) -> Result<Option<Found>, String> {
    mmio::map(address, len).map_err(|_| "L1 cannot map its registers")?;
    let register = |offset| Register::<u32>::at(address + offset).ok_or(NO_PLACE);
    let magic = register(MAGIC_VALUE)?.read();
    if magic != MAGIC {
        return Err(format!("no virtio device is there: its first register has {magic:#x}"));
    }
    let kind = register(DEVICE_ID)?.read();
    if kind == NOBODY {
        return Ok(None);
    }
    if register(VERSION)?.read() == LEGACY {
        return Err(
            "it is older than virtio 1 (QEMU: -global virtio-mmio.force-legacy=false)".into()
        );
    }
    Ok(Some(Found {
        address,
        len,
        kind,
        line,
        status: register(INTERRUPT_STATUS)?,
        acknowledge: register(INTERRUPT_ACK)?,
        vector: Once::new(),
        interrupts: AtomicU64::new(0),
    }))
}

/// Calls `found` for each device of `kind`, with its address.
pub fn each(
    kind: DeviceType,
    way: Way,
    mut found: impl FnMut(u64, Result<(MmioTransport<'static>, Signals), String>),
) {
    let all = FOUND.get().into_iter().flatten().enumerate();
    for (index, device) in all.filter(|(_, device)| device.kind == kind as u32) {
        let opened = device.open().map(|transport| (transport, Signals { index, way }));
        found(device.address, opened);
    }
}

impl Found {
    fn open(&self) -> Result<MmioTransport<'static>, String> {
        let at = mmio::mapped(self.address, self.len).ok_or(NO_PLACE)?;
        let header = NonNull::new(at as *mut VirtIOHeader).ok_or(NO_PLACE)?;
        // SAFETY: `look` has mapped so many bytes for good, at a multiple of 4, and found a device there. What
        // this module touches beside the transport are registers that the transport does not.
        let transport = unsafe { MmioTransport::new(header, self.len as usize) };
        transport.map_err(|why| format!("{why}"))
    }
}

impl Signals {
    fn device(&self) -> Result<&'static Found, String> {
        Ok(FOUND.get().and_then(|all| all.get(self.index)).ok_or("it is not there")?)
    }

    /// Has the device interrupt.
    ///
    /// # Errors
    /// There is no such line.
    pub fn route(&self) -> Result<(), String> {
        let device = self.device()?;
        device.vector.call_once(|| self.way.vector);
        // There are as many vectors as devices at most.
        let vector = vector::FIRST_LINE + self.index as u8;
        if !ioapic::route(device.line, vector, self.way.apic_id) {
            return Err(format!("the machine has no interrupt line {}", device.line));
        }
        Ok(())
    }

    /// The doorbell of queue `queue`.
    ///
    /// # Errors
    /// It has no place.
    pub fn doorbell(&self, queue: u16) -> Result<Doorbell, String> {
        let register = Register::at(self.device()?.address + QUEUE_NOTIFY);
        Ok(Doorbell::Memory(register.ok_or(NO_PLACE)?, queue.into()))
    }
}

/// The vector of what has to be done after the line with vector [`vector::FIRST_LINE`]` + index` has interrupted, if
/// anything.
#[must_use]
pub fn acknowledge(index: u8) -> Option<u8> {
    let device = FOUND.get()?.get(usize::from(index))?;
    let mut found = None;
    for _ in 0..PATIENCE {
        let status = device.status.read();
        if status == 0 {
            return found;
        }
        device.acknowledge.write(status);
        if found.is_none() {
            device.interrupts.fetch_add(1, Relaxed);
            found = device.vector.get().copied();
        }
    }
    ioapic::mask(device.line);
    log!("interrupt line {} is stuck: it is not listened to any more", device.line);
    found
}

/// Logs how often each line has interrupted.
pub fn tell() {
    for device in FOUND.get().into_iter().flatten().filter(|device| device.vector.is_completed()) {
        let (line, count) = (device.line, device.interrupts.load(Relaxed));
        log!("interrupt line {line}: {count} interrupts of the device at {:#x}", device.address);
    }
}

const _: () = assert!(
    (vector::LAST_LINE - vector::FIRST_LINE) as usize + 1 == crate::firmware::virtio_mmio::MOST
);
