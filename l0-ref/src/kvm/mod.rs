//! Lets a stock KVM run L2.

mod msrs;
mod registers;
mod vcpu;
mod vm;
mod xsetbv;

pub use self::{
    vcpu::KvmVcpu,
    vm::{KvmBackend, KvmVm},
    xsetbv::Xsetbv,
};
