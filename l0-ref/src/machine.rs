//! Builds L1's machine and runs it to its end.

use crate::{
    abi::{
        offer::{self, Host},
        server::Server,
    },
    audit::Audit,
    cli::Cli,
    console::{Keyboard, Log, Output, Raw, Tap},
    cpuid::{self, Facts},
    devices::{Devices, LINES, Line},
    end::End,
    entry,
    host_memory::VmWithRam,
    image::{self, Files},
    kvm::{KvmBackend, Xsetbv},
    ram::Ram,
    run_area, vcpu,
};
use anyhow::{Context, Result, anyhow, bail, ensure};
use kvm_bindings::{
    KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, kvm_cpuid_entry2, kvm_pit_config,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use pv_abi::l0::{Features, Info};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};
use std::{
    ffi::CString,
    fs::File,
    io,
    os::unix::ffi::OsStrExt,
    path::Path,
    sync::{
        Arc,
        mpsc::{self, Sender},
    },
    thread,
    time::Duration,
};
use vmm_sys_util::eventfd::EventFd;

/// What is needed of KVM, and the name to call it by.
const NEEDED: [(Cap, &str); 6] = [
    (Cap::Irqchip, "an interrupt controller"),
    (Cap::Pit2, "an interval timer"),
    (Cap::UserMemory, "user memory"),
    (Cap::Irqfd, "interrupts by event"),
    (Cap::ImmediateExit, "immediate exits"),
    (Cap::ExtCpuid, "CPUID tables"),
];
/// The ABI, on KVM.
pub type L1Server = Server<KvmBackend>;

/// Three pages that Intel CPUs need outside all memory, in the hole for devices.
const TSS: usize = 0xfffb_d000;
/// The most CPUs, so that APIC ids stay below 255.
const MOST_CPUS: u8 = 64;

/// Boots L1 as `cli` says and returns how it ended.
///
/// # Errors
/// Something is wrong before the start; one line says what and what to do.
pub fn run(cli: &Cli) -> Result<End> {
    #[cfg(feature = "flaws")]
    cli.flaw.into_iter().for_each(crate::flaw::plant);
    let kvm = open(&cli.kvm)?;
    ensure!(
        (1..=MOST_CPUS).contains(&cli.cpus),
        "--cpus {} is impossible: take 1 to {MOST_CPUS}",
        cli.cpus
    );
    let ram = Arc::new(Ram::new(cli.memory)?);
    let files = Files { l1: &cli.l1, module: cli.module.as_deref(), command_line: &cli.append };
    let start = image::load(&files, &ram)?;
    let machine =
        VmWithRam::new(create_vm(&kvm)?, Arc::clone(&ram)).context("KVM refuses L1's memory")?;
    let supported =
        kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).context("KVM tells no CPUID table")?;
    let supported = supported.as_slice();
    let cpus = create_cpus(machine.vm(), cli.cpus)?;
    entry::prepare(&cpus[0], start)?;
    let facts = facts(&kvm, &cpus)?;
    let xsetbv = Xsetbv::probe(&kvm)?;
    let offer = (!cli.hide_abi).then(|| offer::info(&host(&kvm, supported, facts.tsc_khz)));
    for (apic, cpu) in (0..).zip(&cpus) {
        set_cpuid(cpu, &cpuid::for_l1(supported, &facts, offer.as_ref(), apic), xsetbv)?;
    }
    let server = match offer {
        Some(info) => Some(serve(kvm, ram, info, &cpus, xsetbv)?),
        None => None,
    };
    let log = open_log(cli.log.as_deref())?;
    let outputs = [Output::new(io::stdout()), Output::new(Log::new(log))];
    let devices = Devices::new([line(machine.vm(), 0)?, line(machine.vm(), 1)?], outputs);
    if let (Some(server), Some(seconds)) = (server.clone(), cli.withdraw) {
        spawn("withdraw", move || {
            thread::sleep(Duration::from_secs(seconds));
            server.withdraw(Features::all());
        })?;
    }
    let (ends, end) = mpsc::channel();
    watch_signals(&ends)?;
    let _raw = Raw::take();
    let audit = if cli.stats { Some(Audit::begin()?) } else { None };
    start_threads(cpus, Arc::new(devices), server.clone(), &ends)?;
    let end = end.recv().context("all threads are gone")?;
    if let (Some(audit), Some(server)) = (audit, server) {
        server.power_off();
        eprintln!("l0-ref: stats {{{},{}}}", server.counters(), audit.end()?);
    }
    Ok(end)
}

fn open(path: &Path) -> Result<Kvm> {
    let name = CString::new(path.as_os_str().as_bytes()).context("--kvm contains a NUL byte")?;
    let kvm = Kvm::new_with_path(&name).map_err(|error| {
        let shown = path.display();
        match io::Error::from(error).kind() {
            io::ErrorKind::NotFound => anyhow!(
                "there is no {shown}: load the modules kvm and kvm-amd or kvm-intel, on a machine \
                 with virtualization"
            ),
            io::ErrorKind::PermissionDenied => {
                anyhow!("{shown} is not for this user: join the group kvm or be root")
            }
            _ => anyhow!("cannot open {shown}: {error}; check that KVM works here"),
        }
    })?;
    let version = kvm.get_api_version();
    ensure!(
        version == KVM_API_VERSION as i32,
        "{} is no KVM of version {KVM_API_VERSION}: check --kvm",
        path.display()
    );
    for (cap, name) in NEEDED {
        ensure!(kvm.check_extension(cap), "this KVM lacks {name}: use a newer kernel");
    }
    Ok(kvm)
}

fn create_vm(kvm: &Kvm) -> Result<VmFd> {
    let vm = kvm.create_vm().context("KVM makes no VM: see the kernel's log")?;
    vm.set_tss_address(TSS).context("KVM refuses a place for its TSS")?;
    vm.create_irq_chip().context("KVM makes no interrupt controller")?;
    // The dummy speaker makes port 0x61 KVM's, with the timer's gate and output.
    let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
    vm.create_pit2(pit).context("KVM makes no interval timer")?;
    Ok(vm)
}

fn create_cpus(vm: &VmFd, count: u8) -> Result<Vec<VcpuFd>> {
    let create = |apic: u8| vm.create_vcpu(apic.into());
    (0..count).map(create).collect::<Result<_, _>>().context("KVM makes no vCPU: take fewer --cpus")
}

fn facts(kvm: &Kvm, cpus: &[VcpuFd]) -> Result<Facts> {
    Ok(Facts {
        tsc_khz: cpus[0].get_tsc_khz().context("KVM does not know the TSC's rate")?,
        tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer),
        cpus: cpus.len() as u8,
    })
}

/// What the offer says of this machine.
fn host(kvm: &Kvm, supported: &[kvm_cpuid_entry2], tsc_khz: u32) -> Host {
    let leaf =
        |function| supported.iter().find(|entry| entry.function == function && entry.index == 0);
    // KVM's plain call for the XSAVE area moves a page.
    let xsave_bytes = leaf(0xd).map_or(0, |entry| entry.ecx).clamp(576, 4096);
    let gpa_bits = leaf(0x8000_0008).map_or(36, |entry| entry.eax & 0xff);
    Host { tsc_khz, xsave_bytes, gpa_bits, vcpus: kvm.get_max_vcpus() as u32 }
}

fn set_cpuid(cpu: &VcpuFd, entries: &[kvm_cpuid_entry2], xsetbv: Xsetbv) -> Result<()> {
    let table = cpuid::table(entries).context("L1's CPUID table is too large for KVM")?;
    cpu.set_cpuid2(&table).context("KVM refuses L1's CPUID table")?;
    xsetbv.preset(cpu, entries).context("cannot set L1's XCR0")
}

fn serve(
    kvm: Kvm,
    ram: Arc<Ram>,
    info: Info,
    cpus: &[VcpuFd],
    xsetbv: Xsetbv,
) -> Result<Arc<L1Server>> {
    let offset = run_area::tsc_offset(&cpus[0])
        .context("this KVM does not tell L1's TSC: use Linux 5.16 or newer, or --hide-abi")?;
    let backend = KvmBackend::new(Arc::new(kvm), offset, xsetbv).context("KVM lists no MSRs")?;
    let server = Server::new(backend, ram, info, cpus.len());
    Ok(Arc::new(server.context("cannot handle the signal of kicks")?))
}

/// The interrupt of serial port `index`.
fn line(vm: &VmFd, index: usize) -> Result<Line> {
    let event = EventFd::new(0).context("cannot make an event")?;
    vm.register_irqfd(&event, LINES[index]).context("KVM refuses an interrupt by event")?;
    Ok(Line(event))
}

fn open_log(path: Option<&Path>) -> Result<Output> {
    let Some(path) = path else { return Ok(Output::new(io::sink())) };
    let file = File::create(path)
        .with_context(|| format!("cannot write {}: check --log", path.display()))?;
    Ok(Output::new(file))
}

fn watch_signals(ends: &Sender<End>) -> Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM]).context("cannot watch signals")?;
    let ends = ends.clone();
    spawn("signals", move || {
        for signal in signals.forever() {
            // Nobody listens once the machine has ended.
            let _ = ends.send(End::Signalled(signal));
        }
    })
}

fn start_threads(
    cpus: Vec<VcpuFd>,
    devices: Arc<Devices>,
    server: Option<Arc<L1Server>>,
    ends: &Sender<End>,
) -> Result<()> {
    for (index, cpu) in cpus.into_iter().enumerate() {
        let (devices, server, ends) = (Arc::clone(&devices), server.clone(), ends.clone());
        spawn(&format!("cpu{index}"), move || {
            let _ = ends.send(vcpu::run(cpu, index, &devices, server.as_deref()));
        })?;
    }
    let ends = ends.clone();
    let stdin = io::stdin();
    let keyboard = match io::IsTerminal::is_terminal(&stdin) {
        true => Keyboard::terminal(stdin),
        false => Keyboard::plain(stdin),
    };
    spawn("input", move || {
        if devices.feed(keyboard) == Tap::Closed {
            let _ = ends.send(End::Quit);
        }
    })
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<()> {
    match thread::Builder::new().name(name.into()).spawn(body) {
        Ok(_) => Ok(()),
        Err(error) => bail!("cannot start a thread: {error}; raise the limit of processes"),
    }
}
