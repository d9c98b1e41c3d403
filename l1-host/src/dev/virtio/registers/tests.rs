//! Drivers that set a device up in order, and in any order.

use super::*;
use proptest::prelude::*;
use std::vec::Vec;

const OFFERED: u64 = VERSION_1 | 1 << 9;

fn block() -> Registers {
    let config = [1, 2, 3, 4].into();
    Registers::new(Identity { device: 2, features: OFFERED, queues: [(0, 2)].into(), config })
}

fn all(block: &Registers) -> Vec<Option<u32>> {
    (0..0x200).map(|offset| block.read(offset)).collect()
}

fn write(block: &mut Registers, writes: &[(u64, u32)]) {
    for &(offset, value) in writes {
        let asked = block.write(offset, value);
        assert!(matches!(asked, Some(Asked::Nothing | Asked::Started)), "{offset:#x}");
    }
}

const ACCEPT: [(u64, u32); 4] = [
    (mmio::DRIVER_FEATURES_SEL, 1),
    (mmio::DRIVER_FEATURES, 1),
    (mmio::DRIVER_FEATURES_SEL, 0),
    (mmio::DRIVER_FEATURES, 1 << 9),
];
const QUEUE: [(u64, u32); 5] = [
    (mmio::QUEUE_NUM, 8),
    (mmio::QUEUE_DESC_LOW, 0x1000),
    (mmio::QUEUE_DRIVER_LOW, 0x2000),
    (mmio::QUEUE_DEVICE_LOW, 0x3000),
    (mmio::QUEUE_READY, 1),
];

/// A device whose queues beyond the first are for who accepts that, set up as far as DRIVER_OK.
fn driven_with(features: u32) -> Registers {
    const SEVERAL: u64 = 1 << 9;
    const MORE: u64 = 1 << 8;
    let identity = Identity {
        device: 2,
        features: OFFERED | MORE,
        queues: [(SEVERAL | MORE, 4), (SEVERAL, 3), (0, 1)].into(),
        config: [].into(),
    };
    let mut block = Registers::new(identity);
    write(&mut block, &[(mmio::STATUS, 3)]);
    write(&mut block, &ACCEPT[..3]);
    write(&mut block, &[(mmio::DRIVER_FEATURES, 1 << 9), (mmio::QUEUE_SEL, 1)]);
    write(&mut block, &QUEUE);
    assert_eq!(block.read(mmio::QUEUE_READY), Some(1));
    // Features may change until FEATURES_OK, whatever was set up.
    write(&mut block, &[(mmio::DRIVER_FEATURES, features), (mmio::STATUS, 11), (mmio::STATUS, 15)]);
    assert!(block.is_running());
    block
}

#[test]
fn further_queues_are_for_who_accepts_them() {
    let mut several = driven_with(1 << 9);
    assert!(several.queue(1).is_some() && several.queue(2).is_none(), "one is set up");
    write(&mut several, &[(mmio::QUEUE_SEL, 2)]);
    assert_eq!(several.read(mmio::QUEUE_NUM_MAX), Some(QUEUE_MOST));
    assert_eq!(several.write(mmio::QUEUE_NOTIFY, 2), Some(Asked::Notify(2)));
    assert_eq!(several.write(mmio::QUEUE_NOTIFY, 3), None);

    let mut all = driven_with(1 << 9 | 1 << 8);
    assert_eq!(all.write(mmio::QUEUE_NOTIFY, 3), Some(Asked::Notify(3)), "who accepts more");
    assert_eq!(all.write(mmio::QUEUE_NOTIFY, 4), None);

    let mut one = driven_with(0);
    assert!(one.queue(1).is_none(), "though it was set up");
    assert_eq!(one.read(mmio::QUEUE_NUM_MAX), Some(0));
    assert_eq!(one.read(mmio::QUEUE_READY), Some(0));
    assert_eq!(one.write(mmio::QUEUE_NOTIFY, 1), None);
    assert_eq!(one.write(mmio::QUEUE_NOTIFY, 0), Some(Asked::Notify(0)));
    write(&mut one, &QUEUE);
    assert_eq!(one.read(mmio::QUEUE_READY), Some(0), "queue 1 takes nothing");
    one.reset();
    assert_eq!(one.read(mmio::QUEUE_NUM_MAX), Some(QUEUE_MOST), "queue 0 is selected");
}

#[test]
fn a_driver_sets_it_up_and_resets_it() {
    let mut block = block();
    assert_eq!(block.read(mmio::MAGIC_VALUE).unwrap().to_le_bytes(), *b"virt");
    assert_eq!(block.read(mmio::DEVICE_FEATURES), Some(1 << 9));
    write(&mut block, &[(mmio::DEVICE_FEATURES_SEL, 1)]);
    assert_eq!(block.read(mmio::DEVICE_FEATURES), Some(1));
    write(&mut block, &[(mmio::STATUS, 3)]);
    write(&mut block, &ACCEPT);
    write(&mut block, &[(mmio::STATUS, 11)]);
    assert_eq!(block.read(mmio::STATUS), Some(11));
    write(&mut block, &QUEUE);
    assert_eq!(block.read(mmio::QUEUE_READY), Some(1));
    assert_eq!(block.queue(0), None, "not before DRIVER_OK");
    assert_eq!(block.write(mmio::STATUS, 15), Some(Asked::Started));
    assert_eq!(block.write(mmio::STATUS, 15), Some(Asked::Nothing), "it was started before");
    assert!(block.queue(0).is_some() && block.queue(1).is_none() && block.queue(2).is_none());
    assert_eq!(block.accepted(), OFFERED);
    assert_eq!(block.write(mmio::QUEUE_NOTIFY, 1), Some(Asked::Notify(1)));
    assert_eq!(block.write(mmio::QUEUE_NOTIFY, 2), None, "no such queue");
    block.interrupt(interrupt::USED);
    assert!(block.is_interrupting());
    assert_eq!(block.write(mmio::INTERRUPT_ACK, 1), Some(Asked::Acknowledge));
    assert!(!block.is_interrupting());
    block.stop();
    assert_eq!(block.read(mmio::STATUS), Some(15 | status::DEVICE_NEEDS_RESET));
    assert!(block.queue(0).is_none() && block.is_interrupting());
    assert_eq!(block.write(mmio::STATUS, 0), Some(Asked::Reset));
    block.reset();
    assert_eq!(block.read(mmio::STATUS), Some(0));
    assert_eq!(block.read(mmio::QUEUE_READY), Some(0));
}

#[test]
fn features_are_those_that_are_offered() {
    for (features, high) in [(1 << 9, 0), (1 << 9 | 1, 1), (0, 3)] {
        let mut block = block();
        write(&mut block, &[(mmio::DRIVER_FEATURES, features)]);
        write(&mut block, &[(mmio::DRIVER_FEATURES_SEL, 1), (mmio::DRIVER_FEATURES, high)]);
        write(&mut block, &[(mmio::STATUS, 15)]);
        assert_eq!(block.read(mmio::STATUS), Some(3), "{features:#x} {high}");
    }
    let mut block = block();
    write(&mut block, &ACCEPT);
    write(&mut block, &[(mmio::STATUS, 11), (mmio::DRIVER_FEATURES, 1)]);
    write(&mut block, &[(mmio::STATUS, 15)]);
    assert_eq!(block.read(mmio::STATUS), Some(15), "settled before");
}

#[test]
fn a_queue_in_use_stays_as_it_is() {
    let mut block = block();
    write(&mut block, &QUEUE);
    let before = block.driven.queues[0].queue;
    write(&mut block, &[(mmio::QUEUE_NUM, 4), (mmio::QUEUE_DESC_LOW, 0), (mmio::QUEUE_READY, 1)]);
    assert_eq!((block.driven.queues[0].queue, block.driven.queues[0].size), (before, 8));
    write(&mut block, &[(mmio::QUEUE_READY, 0), (mmio::QUEUE_NUM, 3), (mmio::QUEUE_READY, 1)]);
    assert_eq!(block.read(mmio::QUEUE_READY), Some(0), "no power of two");
    write(&mut block, &[(mmio::QUEUE_SEL, 2)]);
    assert_eq!(block.read(mmio::QUEUE_NUM_MAX), Some(0), "there are two queues");
    write(&mut block, &[(mmio::QUEUE_NUM, 8), (mmio::QUEUE_READY, 1)]);
    assert_eq!(block.read(mmio::QUEUE_READY), Some(0));
}

#[test]
fn queues_are_set_up_one_by_one() {
    let mut block = block();
    write(&mut block, &[(mmio::QUEUE_SEL, 1)]);
    write(&mut block, &QUEUE);
    assert_eq!(block.read(mmio::QUEUE_READY), Some(1));
    write(&mut block, &[(mmio::QUEUE_SEL, 0)]);
    assert_eq!(block.read(mmio::QUEUE_READY), Some(0));
    assert_eq!((block.driven.queues[0].size, block.driven.queues[1].size), (0, 8));
}

#[test]
fn what_is_no_register_is_refused() {
    let mut block = block();
    for offset in [1, 2, 0x18, 0x20, 0xb4, 0x102, 0x110, 0x1000, u64::MAX] {
        assert_eq!(block.read(offset), None, "{offset:#x}");
    }
    for offset in [0, 4, 8, 0x10, 0x71, mmio::CONFIG, 0xfc, u64::MAX] {
        assert_eq!(block.write(offset, 1), None, "{offset:#x}");
    }
    assert_eq!(block.read(mmio::CONFIG + 12), Some(4));
    assert_eq!((read_empty(mmio::DEVICE_ID), read_empty(mmio::STATUS)), (Some(0), None));
}

proptest! {
    /// After any writes the device works only if it was set up in order, and reset starts anew.
    #[test]
    fn any_writes_leave_it_whole(writes in prop::collection::vec((0..0x120u64, any::<u32>(), 0..4u32), 0..200)) {
        let mut block = block();
        for (offset, random, kind) in writes {
            let value = [random, 1, random & 0xff, 1 << (random % 32)][kind as usize];
            block.write(offset & !3, value);
            let status = block.read(mmio::STATUS).unwrap();
            let accepted = block.driven.features & !OFFERED == 0 && block.driven.features & VERSION_1 != 0;
            prop_assert!(status & status::FEATURES_OK == 0 || accepted);
            prop_assert!(status & status::DRIVER_OK == 0 || status & status::FEATURES_OK != 0);
            for setup in block.driven.queues.iter().filter(|setup| setup.queue.is_some()) {
                let Setup { size, descriptors, driver, device, queue } = *setup;
                prop_assert_eq!(queue, Queue::new(size, descriptors, driver, device));
            }
        }
        block.reset();
        prop_assert_eq!(all(&block), all(&self::block()));
    }
}
