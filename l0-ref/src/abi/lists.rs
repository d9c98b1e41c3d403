//! Reads lists and fills buffers that calls name (spec section 4.3).
//! Input: guest-controlled addresses and sizes.
//!
//! A page that another CPU of L1 makes private while a call is served must not be read or written
//! once its UNSHARE has returned (rules L0-TLB-1, L0-PRIV-8). So owners are looked at, and cannot
//! change, as long as L1's memory is accessed.

use crate::{
    abi::{
        answer::Answer,
        frames::Frames,
        l1_memory::{Buffer, L1Memory},
        server::{Server, lock},
    },
    backend::Backend,
};
use pv_abi::l0::{Status, page::Args};
use std::sync::MutexGuard;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Memory of L1 that stays L1's as long as this lives. No VM and no page can be locked meanwhile.
#[derive(Debug)]
pub struct Held<'a> {
    memory: &'a L1Memory,
    buffer: Buffer,
    _owners: MutexGuard<'a, Frames>,
}

impl Held<'_> {
    /// Copies all of it.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        self.memory.bytes(self.buffer)
    }

    /// Writes `value` at its start; what does not fit is left out.
    pub fn write<T: IntoBytes + Immutable + ?Sized>(&self, value: &T) {
        let bytes = value.as_bytes();
        let range = self.buffer.range();
        let fits = bytes.len().min((range.end - range.start) as usize);
        self.memory.write(self.buffer.start(), &bytes[..fits]);
    }

    fn entries<T: FromBytes + IntoBytes>(&self, count: u32) -> Vec<T> {
        (0..count).map(|index| self.memory.entry(self.buffer, index)).collect()
    }
}

impl<B: Backend> Server<B> {
    /// Copies the list that the call names.
    pub(super) fn list<T: FromBytes + IntoBytes>(
        &self,
        args: &Args,
        limit: u32,
    ) -> Result<Vec<T>, Answer> {
        if args.count > limit {
            return Err(Status::Limit.into());
        }
        let list = self.memory.list::<T>(args.list, args.count)?;
        Ok(self.hold(list)?.entries(args.count))
    }

    /// The buffer of `bytes` that the call names.
    pub(super) fn buffer(&self, args: &Args, bytes: u64) -> Result<Held<'_>, Answer> {
        self.hold(self.memory.buffer(args.list, bytes)?)
    }

    /// Refuses memory that L1 gave up by UNSHARE.
    fn hold(&self, buffer: Buffer) -> Result<Held<'_>, Answer> {
        let owners = lock(&self.frames);
        let range = buffer.range();
        let frames = if range.is_empty() { None } else { self.memory.frames(range) };
        if frames.is_some_and(|frames| owners.first_private(frames).is_some()) {
            return Err(Status::NotYours.into());
        }
        Ok(Held { memory: &self.memory, buffer, _owners: owners })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        abi::{
            offer::{self, Host},
            stub::Stub,
        },
        ram::Ram,
    };
    use pv_abi::l0::{
        Op, VERSION,
        list::{MapRange, Region},
        page::{SharedPage, offset},
    };
    use std::{
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering::SeqCst},
        },
        time::Duration,
    };
    use vm_memory::{Bytes, GuestAddress};
    use zerocopy::FromZeros;

    const PAGES: [u64; 2] = [0x1_0000, 0x1_1000];
    const LIST: u64 = 0x2_0000;
    /// A page of the first VM.
    const BUFFER: u64 = 0x3_0000;
    const BYTES: u32 = 832;

    struct L1 {
        server: Server<Stub>,
        ram: Arc<Ram>,
    }

    impl L1 {
        fn new() -> Self {
            let ram = Arc::new(Ram::new(16).unwrap());
            let host = Host { tsc_khz: 1, xsave_bytes: BYTES, gpa_bits: 40, vcpus: 1 };
            let info = offer::info(&host);
            let server = Server::new(Stub::default(), Arc::clone(&ram), info, 2).unwrap();
            Self { server, ram }
        }

        fn store<T: IntoBytes + Immutable>(&self, at: u64, value: &T) {
            self.ram.memory().write_slice(value.as_bytes(), GuestAddress(at)).unwrap();
        }

        fn word(&self, cpu: usize, word: u32, args: Args) -> Status {
            let mut page = SharedPage::new_zeroed();
            page.args = args;
            self.store(PAGES[cpu], &page);
            self.server.call(cpu, word);
            let at = GuestAddress(PAGES[cpu] + offset::STATUS as u64);
            Status::from_raw(self.ram.memory().read_obj(at).unwrap())
        }

        fn start(&self) {
            let with = |value: u64| Args { arg: [value, 0, 0, 0, 0], ..Args::default() };
            for (cpu, page) in PAGES.into_iter().enumerate() {
                let word = page as u32 | Op::Setup.raw();
                assert_eq!(self.word(cpu, word, with(VERSION.into())), Status::Ok);
            }
            let all = with(offer::FEATURES.bits().into());
            assert_eq!(self.word(0, Op::Enable.raw(), all), Status::Ok);
            self.store(LIST, &Region { gpa: 0, pages: 1 });
            let list = Args { count: 1, list: LIST, ..Args::default() };
            for vm in 0..2 {
                let create = Args { vm, ..list };
                assert_eq!(self.word(0, Op::CreateVm.raw(), create), Status::Ok);
                assert_eq!(self.word(0, Op::CreateVcpu.raw(), create), Status::Ok);
            }
            let map = MapRange { l1: BUFFER, pages: 1, access: 7, ..MapRange::default() };
            self.store(LIST, &map);
            assert_eq!(self.word(0, Op::Map.raw(), list), Status::Ok);
            self.store(LIST, &MapRange { l1: 0, access: 0, ..map });
        }

        fn convert(&self, op: Op) -> Status {
            self.word(0, op.raw(), Args { count: 1, list: LIST, ..Args::default() })
        }
    }

    /// UNSHARE waits until L0 has finished with a buffer, and takes the page away for good.
    #[test]
    fn a_page_that_becomes_private_is_no_buffer() {
        let l1 = L1::new();
        l1.start();
        let get = Args { vm: 1, count: BYTES, list: BUFFER, ..Args::default() };
        let held = l1.server.buffer(&get, BYTES.into()).unwrap();
        let private = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let taker = scope.spawn(|| {
                assert_eq!(l1.convert(Op::Unshare), Status::Ok);
                private.store(true, SeqCst);
            });
            std::thread::sleep(Duration::from_millis(100));
            held.write(&[1u8; 8]);
            assert!(!private.load(SeqCst), "L0 wrote to a private page");
            drop(held);
            taker.join().unwrap();
        });
        assert_eq!(l1.word(1, Op::GetXsave.raw(), get), Status::NotYours);
        assert_eq!(l1.convert(Op::Share), Status::Ok);
        assert_eq!(l1.word(1, Op::GetXsave.raw(), get), Status::Ok);
    }
}
