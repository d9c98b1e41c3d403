//! The reference L0: a virtual machine monitor on KVM that boots L1 by PVH and gives it memory, a
//! console and timers, without VMX or SVM.

pub mod abi;
pub mod audit;
pub mod backend;
pub mod cli;
pub mod console;
pub mod cpuid;
pub mod devices;
pub mod end;
pub mod entry;
pub mod flaw;
pub mod hole;
pub mod host_memory;
pub mod image;
pub mod kick;
pub mod kvm;
pub mod machine;
pub mod ram;
pub mod run_area;
pub mod vcpu;
