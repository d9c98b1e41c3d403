//! Runs a Linux kernel as a guest of KVM and nobody else: what the same kernel costs under L1 is
//! compared with this. The machine is the one that L1's `assisted` backend gives its guests; KVM
//! itself holds all MSRs, and memory is mapped as any program's is.
//! Input: files the user named; guest-controlled accesses.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, anyhow, bail};
use clap::Parser;
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm, VmFd};
use l0_ref::{
    backend::{Controllers, Refused, StopReason, Vcpu},
    cpuid::{self as machine_cpuid, Facts},
    host_memory::VmWithRam,
    kvm::{KvmVcpu, Xsetbv},
    ram::{MIB, Ram},
};
use l1_host::assisted::{
    UART_LINE, acpi, cpuid,
    devices::{Devices, Request},
    layout,
    linux::{self, Kernel},
    start,
};
use std::{
    fs,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
};
use vm_memory::{Bytes, GuestAddress};
use zerocopy::IntoBytes;

/// Three pages that Intel CPUs need, where no memory is.
const TSS: usize = 0xfffb_d000;
const TSC: u32 = 0x10;
/// State components that L1 enables too: x87, SSE, AVX.
const XCR0: u64 = 7;
/// CPUID leaves that a guest of L1 may have.
const MOST_LEAVES: usize = 128;

/// Boots a Linux kernel on KVM, without L1, to compare with. Its TSC starts at 0.
#[derive(Clone, Debug, Parser)]
#[command(name = "l0-direct", version)]
struct Cli {
    /// The kernel, a bzImage
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// The initial ramdisk
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// The kernel's command line
    #[arg(long, value_name = "STR", default_value = "", allow_hyphen_values = true)]
    append: String,
    /// Memory in MiB
    #[arg(long, value_name = "MIB", default_value_t = 256)]
    memory: u64,
    /// Show the guest SVM, so that it can run guests by its own KVM
    #[arg(long)]
    nested: bool,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("l0-direct: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    let ram = Arc::new(Ram::new(cli.memory)?);
    let rip = load(cli, &ram)?;
    let kvm = Kvm::new().context("cannot open /dev/kvm: check that KVM works here")?;
    let vm = kvm.create_vm().context("KVM makes no VM")?;
    vm.set_tss_address(TSS).context("KVM refuses a place for its TSS")?;
    vm.create_irq_chip().context("KVM makes no interrupt controller")?;
    let machine = VmWithRam::new(vm, ram).context("KVM refuses the memory")?;
    let mut vcpu = create_vcpu(&kvm, machine.vm(), cli.nested)?;
    let set = |done: Result<(), Refused>| {
        done.map_err(|why| anyhow!("KVM refuses the first registers: {why:?}"))
    };
    let before = vcpu.special().map_err(|why| anyhow!("KVM tells no registers: {why:?}"))?;
    set(vcpu.set_special(&start::special(&before)))?;
    set(vcpu.set_gprs(&start::gprs(rip)))?;
    set(vcpu.set_msr(TSC, 0))?;
    serve(&mut vcpu, machine.vm())
}

/// Puts everything where L1 puts it; the kernel's entry point.
fn load(cli: &Cli, ram: &Ram) -> Result<u64> {
    let read =
        |path: &PathBuf| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let file = read(&cli.kernel)?;
    let initrd = cli.initrd.as_ref().map(read).transpose()?.unwrap_or_default();
    let command_line = start::command_line(&cli.append);
    let memory = cli.memory * MIB;
    let refused = |error: linux::Error| anyhow!("{}: {error}", cli.kernel.display());
    let kernel = Kernel::parse(&file).map_err(refused)?;
    let place = kernel.place(memory, initrd.len() as u64, command_line.len() as u64);
    let place = place.map_err(refused)?;
    let rsdp = layout::ACPI.start;
    for (at, bytes) in [
        (place.kernel, kernel.code()),
        (place.initrd.gpa, &initrd),
        (layout::CMDLINE, command_line.as_bytes()),
        (rsdp, &acpi::tables(1, UART_LINE)),
        (layout::ZERO_PAGE, &kernel.boot_parameters(&place, memory, rsdp)),
        (layout::GDT, start::DESCRIPTORS.as_bytes()),
        (layout::TABLES, start::page_tables().as_bytes()),
    ] {
        let failed = || format!("--memory {} is too little", cli.memory);
        ram.memory().write_slice(bytes, GuestAddress(at)).with_context(failed)?;
    }
    Ok(place.kernel + linux::ENTRY)
}

/// A vCPU that finds the CPUID which L1 gives a guest, made of what L1 itself would see; or what L1
/// would see, with SVM.
fn create_vcpu(kvm: &Kvm, vm: &VmFd, nested: bool) -> Result<KvmVcpu> {
    let fd = vm.create_vcpu(0).context("KVM makes no vCPU")?;
    let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
    let supported = supported.context("KVM tells no CPUID table")?;
    let facts = Facts {
        tsc_khz: fd.get_tsc_khz().context("KVM does not know the TSC's rate")?,
        tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer),
        cpus: 1,
    };
    let xsetbv = Xsetbv::probe(kvm)?;
    let mut seen = machine_cpuid::for_l1(supported.as_slice(), &facts, None, 0);
    if nested {
        show_svm(&mut seen, supported.as_slice())?;
        let table = machine_cpuid::table(&seen).context("the CPUID table is too large for KVM")?;
        fd.set_cpuid2(&table).context("KVM refuses the CPUID table")?;
        xsetbv.preset(&fd, &seen).context("cannot set XCR0")?;
        return Ok(KvmVcpu::new(fd, Controllers::L0, xsetbv, false));
    }
    let own = |leaf, subleaf| answer(&seen, leaf, subleaf);
    let who = cpuid::Who { vcpu: 0, vcpus: 1, xcr0: XCR0 };
    let mut vcpu = KvmVcpu::new(fd, Controllers::L0, xsetbv, false);
    let table = cpuid::table(&own, &who, &[], MOST_LEAVES);
    vcpu.set_cpuid(&table).map_err(|why| anyhow!("KVM refuses the CPUID table: {why:?}"))?;
    Ok(vcpu)
}

/// Adds to `table` what KVM supports of SVM.
fn show_svm(table: &mut Vec<kvm_cpuid_entry2>, supported: &[kvm_cpuid_entry2]) -> Result<()> {
    const FEATURES: u32 = 0x8000_0001;
    const SVM: u32 = 1 << 2;
    const SVM_FEATURES: u32 = 0x8000_000a;
    let leaf = supported.iter().find(|entry| entry.function == SVM_FEATURES);
    table.push(*leaf.context("this KVM runs no KVM: load kvm-amd with nested=1")?);
    for entry in table.iter_mut().filter(|entry| entry.function == FEATURES) {
        entry.ecx |= SVM;
    }
    Ok(())
}

/// What the CPU answers that has this table.
fn answer(table: &[kvm_cpuid_entry2], leaf: u32, subleaf: u32) -> [u32; 4] {
    let flag = kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
    let same = |entry: &&kvm_cpuid_entry2| {
        entry.function == leaf && (entry.flags & flag == 0 || entry.index == subleaf)
    };
    let entry = table.iter().find(same);
    entry.map_or([0; 4], |entry| [entry.eax, entry.ebx, entry.ecx, entry.edx])
}

/// Runs the guest until it powers off.
fn serve(vcpu: &mut impl Vcpu, vm: &VmFd) -> Result<()> {
    let (mut devices, mut console) = (Devices::default(), io::stdout());
    loop {
        match vcpu.run(false) {
            StopReason::Out { port, size, data } => {
                for element in data.chunks(size.into()) {
                    let mut value = [0; 4];
                    value[..element.len()].copy_from_slice(element);
                    match devices.write(port, size, u32::from_le_bytes(value)) {
                        Some(Request::Transmit(byte)) => console.write_all(&[byte])?,
                        Some(Request::PowerOff) => return Ok(()),
                        Some(Request::Reboot) => bail!("the guest asked for a restart"),
                        None => {}
                    }
                }
            }
            StopReason::In { port, size, count } => {
                let one = |_| devices.read(port, size).to_le_bytes().into_iter().take(size.into());
                let data: Vec<u8> = (0..count).flat_map(one).collect();
                vcpu.answer_in(&data);
            }
            StopReason::Load { .. } => vcpu.answer_load(u64::MAX),
            StopReason::Store { .. } | StopReason::Interrupted => {}
            stop => {
                eprintln!("{:x?} {:x?} {:x?}", vcpu.gprs(), vcpu.special(), vcpu.events());
                bail!("the guest died: {stop:?}")
            }
        }
        if let Some(level) = devices.line_change() {
            let set = vm.set_irq_line(UART_LINE, level);
            set.context("KVM refuses the line of the console")?;
        }
    }
}
