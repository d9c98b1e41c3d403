//! Plays an L1 with two CPUs in tests.

use super::{
    offer::{self, Host},
    server::Server,
    stub::Stub,
};
use crate::ram::Ram;
use pv_abi::l0::{
    Op, Status, VERSION,
    list::{MapRange, Region},
    page::{Args, Header, SharedPage},
};
use std::sync::Arc;
use vm_memory::{Bytes, GuestAddress};
use zerocopy::{FromZeros, Immutable, IntoBytes};

const PAGES: [u64; 2] = [0x1_0000, 0x1_1000];
/// Where each CPU has its lists.
const LISTS: [u64; 2] = [0x2_0000, 0x3_0000];
/// Bytes of an XSAVE area.
pub const XSAVE: u32 = 832;

pub struct L1 {
    pub server: Server<Stub>,
    ram: Arc<Ram>,
}

impl L1 {
    /// An L1 with `mib` of memory and all features enabled.
    pub fn new(mib: u64) -> Self {
        let ram = Arc::new(Ram::new(mib).unwrap());
        let host = Host { tsc_khz: 1, xsave_bytes: XSAVE, gpa_bits: 40, vcpus: 1 };
        let info = offer::info(&host);
        let server = Server::new(Stub::default(), Arc::clone(&ram), info, 2).unwrap();
        let this = Self { server, ram };
        let with = |value: u64| Args { arg: [value, 0, 0, 0, 0], ..Args::default() };
        for (cpu, page) in PAGES.into_iter().enumerate() {
            let word = page as u32 | Op::Setup.raw();
            assert_eq!(this.word(cpu, word, with(VERSION.into())).status(), Status::Ok);
        }
        assert_eq!(this.call(0, Op::Enable, with(offer::FEATURES.bits().into())), Status::Ok);
        this
    }

    /// Makes a VM with one region from 0 on, and a vCPU.
    pub fn create(&self, vm: u32, pages: u64) {
        let args = Args { vm, ..Args::default() };
        let regions = [Region { gpa: 0, pages }];
        assert_eq!(self.list(0, Op::CreateVm, args, &regions).status(), Status::Ok);
        assert_eq!(self.call(0, Op::CreateVcpu, args), Status::Ok);
    }

    /// An operation on one range of VM 0.
    pub fn one(&self, cpu: usize, op: Op, entry: MapRange) -> Status {
        self.list(cpu, op, Args::default(), &[entry]).status()
    }

    pub fn list<T: IntoBytes + Immutable>(
        &self,
        cpu: usize,
        op: Op,
        args: Args,
        entries: &[T],
    ) -> Header {
        self.ram.memory().write_slice(entries.as_bytes(), GuestAddress(LISTS[cpu])).unwrap();
        let args = Args { count: entries.len() as u32, list: LISTS[cpu], ..args };
        self.word(cpu, op.raw(), args)
    }

    pub fn call(&self, cpu: usize, op: Op, args: Args) -> Status {
        self.word(cpu, op.raw(), args).status()
    }

    fn word(&self, cpu: usize, word: u32, args: Args) -> Header {
        let mut page = SharedPage::new_zeroed();
        page.args = args;
        page.header.status = Status::NotServed.raw();
        let at = GuestAddress(PAGES[cpu]);
        self.ram.memory().write_slice(page.as_bytes(), at).unwrap();
        self.server.call(cpu, word);
        let mut header = Header::new_zeroed();
        self.ram.memory().read_slice(header.as_mut_bytes(), at).unwrap();
        header
    }
}
