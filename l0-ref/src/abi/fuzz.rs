//! Calls the dispatcher with random operations and random pages, and looks that nothing but L1's
//! memory changes, that L0 stays within bounds, and that everything goes with a RESET.
//!
//! `L0_FUZZ_CALLS=1000000 cargo test -p l0-ref fuzz` makes more calls than the usual 100000.

use super::{
    offer::{self, Host},
    server::Server,
    stub::Stub,
};
use crate::ram::{MIB, Ram};
use pv_abi::l0::{
    Op,
    list::MapRange,
    page::{SharedPage, offset},
    run::RunControl,
    status::Status,
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{
    env, fs,
    sync::{Arc, atomic::Ordering::SeqCst},
};
use vm_memory::{Bytes, GuestAddress};
use zerocopy::{FromZeros, IntoBytes};

const CALLS: u64 = 100_000;
const PAGES: [u64; 2] = [0x10_0000, 0x10_1000];
const LISTS: u64 = 0x20_0000;
const RAM_MIB: u64 = 32;

struct Fuzz {
    server: Arc<Server<Stub>>,
    stub: Stub,
    ram: Arc<Ram>,
    rng: StdRng,
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

impl Fuzz {
    fn new(seed: u64) -> Self {
        let ram = Arc::new(Ram::new(RAM_MIB).unwrap());
        let info =
            offer::info(&Host { tsc_khz: 1_000_000, xsave_bytes: 832, gpa_bits: 40, vcpus: 4 });
        let stub = Stub::default();
        let server = Server::new(stub.clone(), Arc::clone(&ram), info, PAGES.len());
        let server = Arc::new(server.unwrap());
        let rng = StdRng::seed_from_u64(seed);
        Self { server, stub, ram, rng }
    }

    fn one_of<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.rng.random_range(0..values.len())]
    }

    fn small(&mut self, below: u64) -> u64 {
        self.rng.random_range(0..below)
    }

    /// A value that is often at a border.
    fn word(&mut self) -> u64 {
        match self.small(8) {
            0 => 0,
            1 => u64::MAX,
            2 => self.small(16),
            3 => self.small(16) << 12,
            4 => LISTS + self.small(64) * 8,
            5 => (RAM_MIB * MIB).wrapping_sub(self.small(8) << 12),
            6 => 1 << self.small(64),
            _ => self.rng.random(),
        }
    }

    fn store<T: IntoBytes + zerocopy::Immutable>(&self, at: u64, value: &T) {
        self.ram.memory().write_slice(value.as_bytes(), GuestAddress(at)).unwrap();
    }

    /// Entries that are good more often than not.
    fn fill_list(&mut self) {
        for index in 0..16 {
            let entry = if self.small(4) == 0 {
                MapRange {
                    gpa: self.word(),
                    l1: self.word(),
                    pages: self.word(),
                    access: self.word() as u32,
                    reserved: self.small(8) as u32 / 7,
                }
            } else {
                MapRange {
                    gpa: self.small(32) << 12,
                    l1: self.one_of(&[0, 0x40_0000, 0x40_0000 + (self_page(index) << 12)]),
                    pages: self.small(12),
                    access: self.one_of(&[0, 5, 7]),
                    reserved: 0,
                }
            };
            self.store(LISTS + index * size_of::<MapRange>() as u64, &entry);
        }
    }

    fn random_page(&mut self) -> SharedPage {
        let mut page = SharedPage::new_zeroed();
        if self.small(4) == 0 {
            self.rng.fill(page.as_mut_bytes());
        }
        page.header.status = Status::NotServed.raw();
        page.args.vm = self.one_of(&[0, 0, 0, 0, 0, 1, 15, 16, u32::MAX]);
        page.args.vcpu = self.one_of(&[0, 0, 0, 0, 1, 3, 4, u32::MAX]);
        page.args.flags = self.one_of(&[0, 0, 0, 0, 1, 3, 0xf, u32::MAX]);
        page.args.count = self.one_of(&[0, 0, 1, 3, 16, 832, 1024, 4096, 4097, u32::MAX]);
        page.args.list = if self.small(4) == 0 { self.word() } else { LISTS };
        page.args.arg.iter_mut().for_each(|arg| *arg = 0);
        page.args.arg[0] = self.word();
        page.args.arg[1] = self.word();
        // No deadline is far: the stub's time stands still.
        page.control.deadline = self.one_of(&[0, 1 << 40, (1 << 40) + 1000, u64::MAX]);
        page.control.write = self.one_of(&[0, 0, 3, 0xf, 0x10]);
        page.control.flags = self.small(5) as u32;
        if self.small(4) > 0 {
            // A RUN that means what it says.
            page.control = RunControl {
                deadline: page.control.deadline,
                write: self.one_of(&[0, 3]),
                read: self.one_of(&[0, 1, 0xf]),
                ..RunControl::default()
            };
        }
        page
    }

    fn call(&mut self, op: u32) -> Status {
        let caller = self.small(PAGES.len() as u64) as usize;
        let mut page = self.random_page();
        if op == Op::CreateVm.raw() && self.small(2) == 0 {
            page.args.count = 1;
            page.args.list = LISTS;
            self.store(LISTS, &[0u64, 32]);
        } else if (Op::Map.raw()..=Op::Unshare.raw()).contains(&op) && self.small(4) > 0 {
            self.fill_list();
            (page.args.vm, page.args.flags, page.args.count, page.args.list) = (0, 0, 4, LISTS);
        }
        if op == Op::Enable.raw() && self.small(2) == 0 {
            page.args.arg[0] = offer::FEATURES.bits().into();
        }
        self.store(PAGES[caller], &page);
        self.server.call(caller, op);
        let at = GuestAddress(PAGES[caller] + offset::STATUS as u64);
        Status::from_raw(self.ram.memory().read_obj(at).unwrap())
    }

    /// Registers the pages and enables all features, if no VM is there.
    fn begin(&mut self) {
        (0..PAGES.len()).for_each(|caller| self.setup(caller));
        let mut page = SharedPage::new_zeroed();
        page.args.arg[0] = offer::FEATURES.bits().into();
        self.store(PAGES[0], &page);
        self.server.call(0, Op::Enable.raw());
    }

    fn setup(&mut self, caller: usize) {
        let mut page = SharedPage::new_zeroed();
        page.args.arg[0] = pv_abi::l0::VERSION.into();
        self.store(PAGES[caller], &page);
        self.server.call(caller, PAGES[caller] as u32 | Op::Setup.raw());
    }
}

/// A frame that several entries share.
const fn self_page(index: u64) -> u64 {
    index / 3
}

#[test]
fn random_calls_break_nothing() {
    let calls = env::var("L0_FUZZ_CALLS").map_or(CALLS, |count| count.parse().unwrap());
    // A neighbour of everything that is mapped here, which must stay as it is.
    let canary = vec![0xa5u8; 1 << 20];
    let mut fuzz = Fuzz::new(1);
    let before = descriptors();
    let (mut good, mut answered) = (0u64, 0u64);
    for n in 0..calls {
        if n % 64 == 0 {
            fuzz.begin();
        }
        let known: Vec<u32> = Op::ALL.iter().map(|(op, _)| op.raw()).collect();
        let op = match fuzz.small(64) {
            0 => fuzz.rng.random(),
            1 => Op::Reset.raw(),
            2 => (fuzz.word() as u32 & !0xfff) | Op::Setup.raw(),
            3..=20 => fuzz.one_of(&[0x10, 0x12, 0x20, 0x20, 0x21, 0x24, 0x30, 0x30]),
            _ => fuzz.one_of(&known),
        };
        let status = fuzz.call(op);
        if op == Op::Reset.raw() {
            fuzz.begin();
        }
        assert!(!matches!(status, Status::Internal | Status::Unknown(_)), "{status:?} of {op:#x}");
        good += u64::from(status == Status::Ok);
        answered += u64::from(status != Status::NotServed);
        if n % 1000 == 0 {
            assert!(fuzz.stub.alive.load(SeqCst) <= 16 * 5, "VMs and vCPUs are bounded");
        }
    }
    assert!(good * 20 > calls, "{good} of {calls} calls were good: the fuzz is too wild");
    assert!(answered * 2 > calls, "{answered} of {calls} calls were answered");
    fuzz.setup(0);
    fuzz.call_reset();
    assert_eq!(fuzz.stub.alive.load(SeqCst), 0, "a RESET leaves nothing");
    assert!(descriptors() <= before + 1, "descriptors leaked");
    assert!(canary.iter().all(|byte| *byte == 0xa5));
}

impl Fuzz {
    fn call_reset(&mut self) {
        let mut page = SharedPage::new_zeroed();
        page.header.status = Status::NotServed.raw();
        self.store(PAGES[0], &page);
        self.server.call(0, Op::Reset.raw());
        let at = GuestAddress(PAGES[0] + offset::STATUS as u64);
        assert_eq!(self.ram.memory().read_obj::<u32>(at).unwrap(), Status::Ok.raw());
    }
}

/// Two CPUs of L1 at once, on the same VMs.
#[test]
fn calls_race() {
    let calls = env::var("L0_FUZZ_CALLS").map_or(CALLS, |count| count.parse().unwrap()) / 10;
    let fuzz = Fuzz::new(2);
    std::thread::scope(|scope| {
        for (caller, page_at) in PAGES.into_iter().enumerate() {
            let mut fuzz = Fuzz {
                server: Arc::clone(&fuzz.server),
                stub: fuzz.stub.clone(),
                ram: Arc::clone(&fuzz.ram),
                rng: StdRng::seed_from_u64(3 + caller as u64),
            };
            scope.spawn(move || {
                for n in 0..calls {
                    if n % 16 == 0 {
                        fuzz.begin();
                    }
                    let known: Vec<u32> = Op::ALL.iter().map(|(op, _)| op.raw()).collect();
                    let op = fuzz.one_of(&known);
                    let mut page = fuzz.random_page();
                    page.args.vm = 0;
                    fuzz.store(page_at, &page);
                    fuzz.server.call(caller, op);
                }
            });
        }
    });
    let mut fuzz = fuzz;
    fuzz.setup(0);
    fuzz.call_reset();
    assert_eq!(fuzz.stub.alive.load(SeqCst), 0);
}
