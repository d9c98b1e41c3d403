//! Numbers of virtio 1.2: registers of a virtio-mmio device, split virtqueues, and devices.
//!
//! Names are the specification's.
#![expect(missing_docs, reason = "the names are the specification's")]

/// Registers of a virtio-mmio device, version 2 (4.2.2): offsets of 32-bit words.
pub mod mmio {
    /// What MagicValue holds: "virt".
    pub const MAGIC: u32 = u32::from_le_bytes(*b"virt");
    /// What Version holds.
    pub const VERSION_2: u32 = 2;

    pub const MAGIC_VALUE: u64 = 0x000;
    pub const VERSION: u64 = 0x004;
    pub const DEVICE_ID: u64 = 0x008;
    pub const VENDOR_ID: u64 = 0x00c;
    pub const DEVICE_FEATURES: u64 = 0x010;
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub const QUEUE_SEL: u64 = 0x030;
    pub const QUEUE_NUM_MAX: u64 = 0x034;
    pub const QUEUE_NUM: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    pub const QUEUE_NOTIFY: u64 = 0x050;
    pub const INTERRUPT_STATUS: u64 = 0x060;
    pub const INTERRUPT_ACK: u64 = 0x064;
    pub const STATUS: u64 = 0x070;
    pub const QUEUE_DESC_LOW: u64 = 0x080;
    pub const QUEUE_DESC_HIGH: u64 = 0x084;
    pub const QUEUE_DRIVER_LOW: u64 = 0x090;
    pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
    pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    pub const CONFIG_GENERATION: u64 = 0x0fc;
    /// Where the configuration space begins.
    pub const CONFIG: u64 = 0x100;
}

/// Bits of Status (2.1).
pub mod status {
    pub const ACKNOWLEDGE: u32 = 1;
    pub const DRIVER: u32 = 2;
    pub const DRIVER_OK: u32 = 4;
    pub const FEATURES_OK: u32 = 8;
    pub const DEVICE_NEEDS_RESET: u32 = 64;
    pub const FAILED: u32 = 128;
}

/// Bits of InterruptStatus (4.2.2).
pub mod interrupt {
    /// A buffer was used.
    pub const USED: u32 = 1;
    /// The configuration, or the status, has changed.
    pub const CONFIG: u32 = 2;
}

/// Features of any device (6), as masks.
pub mod feature {
    pub const INDIRECT_DESC: u64 = 1 << 28;
    pub const VERSION_1: u64 = 1 << 32;
}

/// Split virtqueues (2.7).
pub mod queue {
    /// Bytes of a descriptor.
    pub const DESCRIPTOR: u64 = 16;
    /// Flags of a descriptor.
    pub const NEXT: u16 = 1;
    pub const WRITE: u16 = 2;
    pub const INDIRECT: u16 = 4;
    /// Flag of the available ring: the driver wants no interrupts.
    pub const NO_INTERRUPT: u16 = 1;
    /// Flag of the used ring: the device need not be told of new buffers.
    pub const NO_NOTIFY: u16 = 1;
}

/// Disks (5.2).
pub mod block {
    /// DeviceID.
    pub const DEVICE: u32 = 2;
    /// Number of the queue that every disk has.
    pub const QUEUE: usize = 0;
    /// Bytes of a sector.
    pub const SECTOR: u64 = 512;
    /// Bytes before a request's data: type, a reserved word, sector.
    pub const HEADER: usize = 16;
    /// Bytes that GET_ID answers.
    pub const NAME: usize = 20;

    /// Features, as masks.
    pub mod feature {
        pub const SIZE_MAX: u64 = 1 << 1;
        pub const SEG_MAX: u64 = 1 << 2;
        pub const RO: u64 = 1 << 5;
        pub const BLK_SIZE: u64 = 1 << 6;
        pub const FLUSH: u64 = 1 << 9;
        pub const MQ: u64 = 1 << 12;
        pub const DISCARD: u64 = 1 << 13;
        pub const WRITE_ZEROES: u64 = 1 << 14;
    }

    /// The configuration space: offsets in it.
    pub mod config {
        /// Sectors, 64 bits.
        pub const CAPACITY: u64 = 0;
        pub const SIZE_MAX: u64 = 8;
        pub const SEG_MAX: u64 = 12;
        pub const BLK_SIZE: u64 = 20;
        /// 16 bits.
        pub const NUM_QUEUES: u64 = 34;
        pub const MAX_DISCARD_SECTORS: u64 = 36;
        pub const MAX_DISCARD_SEG: u64 = 40;
        pub const DISCARD_SECTOR_ALIGNMENT: u64 = 44;
        pub const MAX_WRITE_ZEROES_SECTORS: u64 = 48;
        pub const MAX_WRITE_ZEROES_SEG: u64 = 52;
        /// A byte.
        pub const WRITE_ZEROES_MAY_UNMAP: u64 = 56;
    }

    /// Types of requests.
    pub mod request {
        pub const IN: u32 = 0;
        pub const OUT: u32 = 1;
        pub const FLUSH: u32 = 4;
        pub const GET_ID: u32 = 8;
        pub const DISCARD: u32 = 11;
        pub const WRITE_ZEROES: u32 = 13;
    }

    /// Bytes of a range to be discarded or zeroed: sector, number of sectors (32 bits), flags.
    pub const RANGE: usize = 16;
    /// Flag of a range to be zeroed: the disk need not keep room for it.
    pub const UNMAP: u32 = 1;

    /// What a request's last byte says.
    pub mod answer {
        /// It is done.
        pub const OK: u8 = 0;
        /// It failed.
        pub const IOERR: u8 = 1;
        /// There is no such request.
        pub const UNSUPP: u8 = 2;
    }
}

/// Network cards (5.1).
pub mod net {
    /// DeviceID.
    pub const DEVICE: u32 = 1;
    /// The first pair of queues: buffers for frames to come, and frames to send. Other pairs follow, and then the
    /// control queue.
    pub const RECEIVE: usize = 0;
    pub const TRANSMIT: usize = 1;
    /// Bytes before each frame.
    pub const HEADER: usize = 12;

    /// Features, as masks.
    pub mod feature {
        pub const CSUM: u64 = 1 << 0;
        pub const GUEST_CSUM: u64 = 1 << 1;
        pub const MTU: u64 = 1 << 3;
        pub const MAC: u64 = 1 << 5;
        pub const GUEST_TSO4: u64 = 1 << 7;
        pub const GUEST_TSO6: u64 = 1 << 8;
        pub const HOST_TSO4: u64 = 1 << 11;
        pub const HOST_TSO6: u64 = 1 << 12;
        pub const MRG_RXBUF: u64 = 1 << 15;
        pub const STATUS: u64 = 1 << 16;
        pub const CTRL_VQ: u64 = 1 << 17;
        pub const MQ: u64 = 1 << 22;
        /// L1's own, with [`MRG_RXBUF`]: of a frame to come that is still to be divided, the second buffer
        /// comes back empty, and is one of NUM_BUFFERS. Xen's front ends are told of the division there.
        pub const SPACER: u64 = 1 << 51;
    }

    /// The configuration space: offsets in it.
    pub mod config {
        /// The address, 6 bytes.
        pub const MAC: u64 = 0;
        /// 16 bits: bit 0 says that the link is up.
        pub const STATUS: u64 = 6;
        /// 16 bits.
        pub const MAX_VIRTQUEUE_PAIRS: u64 = 8;
        /// 16 bits.
        pub const MTU: u64 = 10;
    }

    /// Commands of the control queue: class, command, what the command is about; the answer is a byte.
    pub mod control {
        /// Class of what pairs of queues are used.
        pub const MQ: u8 = 4;
        /// Its command, with the number of pairs, 16 bits.
        pub const VQ_PAIRS_SET: u8 = 0;
        /// Answers.
        pub const OK: u8 = 0;
        pub const ERR: u8 = 1;
    }

    /// The header: offsets of its fields, 16 bits each but for the first two.
    pub mod header {
        pub const FLAGS: usize = 0;
        pub const GSO_TYPE: usize = 1;
        pub const HDR_LEN: usize = 2;
        pub const GSO_SIZE: usize = 4;
        pub const CSUM_START: usize = 6;
        pub const CSUM_OFFSET: usize = 8;
        pub const NUM_BUFFERS: usize = 10;

        /// Flag: the checksum holds only the sum of addresses and length.
        pub const NEEDS_CSUM: u8 = 1;
        /// Flag: the checksum was found right.
        pub const DATA_VALID: u8 = 2;
        /// Types of division into segments.
        pub const GSO_NONE: u8 = 0;
        pub const GSO_TCPV4: u8 = 1;
        pub const GSO_TCPV6: u8 = 4;
        /// A bit beside these: the first segment alone has CWR.
        pub const GSO_ECN: u8 = 0x80;
    }
}

/// Consoles (5.3).
pub mod console {
    /// DeviceID.
    pub const DEVICE: u32 = 3;
    /// How many queues.
    pub const QUEUES: usize = 2;
    /// The queues: input, and output.
    pub const RECEIVE: usize = 0;
    pub const TRANSMIT: usize = 1;
}

/// Entropy devices (5.4).
pub mod entropy {
    /// DeviceID.
    pub const DEVICE: u32 = 4;
    /// Number of its only queue.
    pub const QUEUE: usize = 0;
}

/// Sockets between machines (5.10).
pub mod vsock {
    /// DeviceID.
    pub const DEVICE: u32 = 19;
    /// How many queues: the third is for events.
    pub const QUEUES: usize = 3;
    /// Packets to come, and packets to send.
    pub const RECEIVE: usize = 0;
    pub const TRANSMIT: usize = 1;
    /// Bytes before each packet's.
    pub const HEADER: usize = 44;

    /// Features, as masks.
    pub mod feature {
        pub const STREAM: u64 = 1 << 0;
    }

    /// Kinds of sockets.
    pub mod kind {
        pub const STREAM: u16 = 1;
    }

    /// What a packet is for.
    pub mod op {
        pub const REQUEST: u16 = 1;
        pub const RESPONSE: u16 = 2;
        pub const RST: u16 = 3;
        pub const SHUTDOWN: u16 = 4;
        pub const RW: u16 = 5;
        pub const CREDIT_UPDATE: u16 = 6;
        pub const CREDIT_REQUEST: u16 = 7;
    }
}
