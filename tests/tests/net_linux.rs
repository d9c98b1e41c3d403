//! Stock kernels find their network cards: they get an address, reach the host and are reached by it, and
//! guests reach each other.

use roost_tests::{
    built::Kernel,
    folder::Folder,
    net::{DRIVER, add_script, dhcp, hash, load, noise, serve},
    session::Session,
};
use std::{
    fmt::Write as _,
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

const MIB: usize = 1 << 20;
/// A ramdisk with busybox, the kernel's driver for network cards, which is a module, and the script.
fn ramdisk(folder: &Folder, kernel: Kernel) -> PathBuf {
    folder.busybox_with(kernel, DRIVER, &add_script(folder))
}

/// A port of the host's that nobody has.
fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    listener.local_addr().expect("a port").port()
}

/// Connects to a guest's port that the host forwards, and sends `bytes`; what comes back. QEMU accepts
/// before the guest does: a connection of which nothing comes back was to nobody.
fn echoed(port: u16, bytes: &[u8]) -> Vec<u8> {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let mut guest = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("a forwarded port");
        let mut sender = guest.try_clone().expect("a second handle");
        let mut back = Vec::new();
        thread::scope(|scope| {
            scope.spawn(move || {
                // It fails if nobody listens yet.
                let _ = sender.write_all(bytes).and_then(|()| sender.shutdown(Shutdown::Write));
            });
            let _ = guest.read_to_end(&mut back);
        });
        if !back.is_empty() {
            return back;
        }
        assert!(Instant::now() < end, "nothing came back through port {port}");
        thread::sleep(Duration::from_millis(200));
    }
}

/// The kernel found nothing wrong.
fn check_log(guest: &mut Session<'_>) {
    let wrong = "WARNING: |BUG: |Oops|Call Trace|xen_netfront|vif vif|hw csum failure";
    let (status, found) = guest.shell(&format!("dmesg | grep -E '{wrong}'"));
    let found: Vec<_> =
        found.lines().filter(|line| !line.contains("Initialising Xen virtual ethernet")).collect();
    assert!(found.is_empty(), "{status}: {found:#?}");
}

fn the_host_is_reached(kernel: Kernel, vcpus: u32) {
    let folder = Folder::new();
    let initrd = ramdisk(&folder, kernel);
    let port = free_port();
    let run = folder.run(&kernel.file()).initrd(&initrd).option("--net", "user");
    let run = run.option("--forward", format!("{port}:5000")).limit(240);
    let mut guest = run.append("console=hvc0 quiet").cpus(vcpus).vcpus(vcpus).piped();
    guest.expect_shell();
    load(&mut guest, "eth0");
    dhcp(&mut guest);
    guest.succeed("ping -c 3 -W 5 10.0.2.2");

    let file = noise(4 * MIB);
    let from = serve(file.clone());
    guest.succeed(&format!("wget -q -O /tmp/file http://10.0.2.2:{from}/file"));
    let sum = guest.succeed("sha256sum /tmp/file");
    assert!(sum.starts_with(&hash(&folder, &file)), "{sum}");

    guest.succeed("nc -l -p 5000 -e cat & sleep 1");
    assert!(echoed(port, &file[..2 * MIB]) == file[..2 * MIB], "other bytes came back");

    // The card goes down and comes up, and its driver goes and comes back.
    guest.succeed(
        "ip link set eth0 down && ip link set eth0 up && ip route add default via 10.0.2.2",
    );
    guest.succeed("ping -c 1 -W 5 10.0.2.2");
    for _ in 0..3 {
        guest.succeed("ip link set eth0 down; echo vif-0 >/sys/bus/xen/drivers/vif/unbind");
        guest.succeed("! [ -e /sys/class/net/eth0 ] && rmmod xen_netfront");
        load(&mut guest, "eth0");
        dhcp(&mut guest);
        guest.succeed("ping -c 1 -W 5 10.0.2.2");
    }
    check_log(&mut guest);
    guest.send("poweroff\n");
    let ended = guest.end();
    ended.assert_powered_off();
    // Of 6 MiB in frames of 1500 bytes most were joined for the guest, and it sent 2 MiB in long packets.
    let counter = |name| ended.guests[0].counter(name);
    assert!(counter("net_rx_long") > 100 && counter("net_tx_long") > 20, "{:?}", ended.guests);
    assert!(counter("net_rx_frames") < 3000, "{:?}", ended.guests);
    assert_eq!(counter("net_tx_malformed") + counter("net_rx_too_long"), 0, "{:?}", ended.guests);
}

#[test]
fn a_guest_of_6_1_reaches_the_host() {
    the_host_is_reached(Kernel::Cloud, 1);
}

#[test]
fn a_guest_of_6_12_with_two_vcpus_reaches_the_host() {
    the_host_is_reached(Kernel::Cloud612, 2);
}

/// A guest in a configuration file, with these cards.
fn guest(kernel: Kernel, name: &str, initrd: &Path, vcpus: u32, cards: &[&str]) -> String {
    let mut text = format!(
        "[[guest]]\nname = \"{name}\"\nkernel = \"{}\"\ninitrd = \"{}\"\nvcpus = {vcpus}\n\
         append = \"console=hvc0 quiet\"\nmemory = \"192M\"\n",
        kernel.file().display(),
        initrd.display()
    );
    for card in cards {
        writeln!(text, "[[guest.net]]\n{card}").expect("room in a string");
    }
    text
}

/// The key that commands to the console start with.
const ESCAPE: char = '\x1d';

fn focus(console: &mut Session<'_>, number: usize) {
    console.send(&format!("{ESCAPE}{number}"));
    console.expect(&format!(" ({number} of 2)"));
    console.send("\n");
    console.expect("# ");
}

#[test]
fn two_guests_reach_each_other_and_nobody_else() {
    let folder = Folder::new();
    let initrds = [Kernel::Cloud, Kernel::Cloud612].map(|kernel| ramdisk(&folder, kernel));
    let text = format!(
        "console = \"focus\"\ncpus = 2\n{}{}",
        guest(Kernel::Cloud, "a", &initrds[0], 1, &["network = \"lan\""]),
        guest(Kernel::Cloud612, "b", &initrds[1], 1, &["network = \"lan\""]),
    );
    let config = folder.file("roost.toml", text.as_bytes());
    let mut console = folder.run_config(&config).limit(300).piped();
    for number in [1, 2] {
        if number == 2 {
            console.send(&format!("{ESCAPE}2"));
            console.expect("(2 of 2)");
            console.send("\n");
        }
        console.expect_shell();
        load(&mut console, "eth0");
        console.succeed(&format!("ip addr add 192.168.77.{number}/24 dev eth0"));
        console.succeed("ip link set eth0 up && ip link set lo up");
        console.succeed("dd if=/dev/urandom of=/tmp/sent bs=1M count=16 && httpd -h /tmp");
    }
    console.succeed("ping -c 3 -W 5 192.168.77.1");
    assert_eq!(console.shell("ping -c 1 -W 2 192.168.77.3").0, 1, "nobody is there");

    let sent = console.succeed("sha256sum </tmp/sent");
    // From 2 to 1, then from 1 to 2.
    focus(&mut console, 1);
    console.succeed("wget -q -O /tmp/got http://192.168.77.2/sent");
    assert_eq!(console.succeed("sha256sum </tmp/got"), sent);
    let sent = console.succeed("sha256sum </tmp/sent");
    focus(&mut console, 2);
    console.succeed("wget -q -O /tmp/got http://192.168.77.1/sent");
    assert_eq!(console.succeed("sha256sum </tmp/got"), sent);
    for number in [1, 2] {
        focus(&mut console, number);
        check_log(&mut console);
    }
    for _ in 0..2 {
        console.send("poweroff\n");
        console.expect("powered off");
    }
    console.end().assert_l1_is_sound();
}

/// Many flows between two guests, of two vCPUs and of four: each goes by one of the pairs of queues that there are, from
/// the kernel's to L1's. All are used, and each vCPU hears of its own.
#[test]
fn each_vcpu_has_a_pair_of_queues() {
    const FLOWS: usize = 64;
    let folder = Folder::new();
    let kernels = [(1, Kernel::Cloud, "a", 2), (2, Kernel::Cloud612, "b", 4)];
    let mut text = "console = \"focus\"\ncpus = 2\n".to_owned();
    for (_, kernel, name, vcpus) in kernels {
        let initrd = ramdisk(&folder, kernel);
        text += &guest(kernel, name, &initrd, vcpus, &["network = \"lan\""]);
    }
    let config = folder.file("roost.toml", text.as_bytes());
    let mut console = folder.run_config(&config).limit(300).piped();
    for (number, .., vcpus) in kernels {
        if number == 2 {
            console.send(&format!("{ESCAPE}2"));
            console.expect("(2 of 2)");
            console.send("\n");
        }
        console.expect_shell();
        load(&mut console, "eth0");
        let expected: String = ["rx", "tx"]
            .iter()
            .flat_map(|way| (0..vcpus).map(move |queue| format!("{way}-{queue}\n")))
            .collect();
        assert_eq!(console.succeed("ls -1 /sys/class/net/eth0/queues"), expected);
        console.succeed(&format!("ip addr add 192.168.77.{number}/24 dev eth0"));
        console.succeed("ip link set eth0 up && ip link set lo up");
        console.succeed("dd if=/dev/urandom of=/tmp/sent bs=32k count=4 && httpd -h /tmp");
    }
    // The kernel has its own idea of who is to hear of which; each vCPU is to hear of its own.
    for (number, .., vcpus) in kernels.into_iter().rev() {
        focus(&mut console, number);
        for vcpu in 0..vcpus {
            console.succeed(&format!(
                "for line in $(grep vif0-q{vcpu}- /proc/interrupts | cut -d: -f1); do \
                 echo {vcpu} >/proc/irq/$line/smp_affinity_list || exit 1; done"
            ));
        }
    }
    console.succeed(&format!(
        "(for round in $(seq {}); do all=; for flow in 1 2 3 4 5 6 7 8; do \
         wget -q -O /tmp/got$flow http://192.168.77.2/sent & all=\"$all $!\"; done; \
         for one in $all; do wait $one || exit 1; done; done)",
        FLOWS / 8
    ));
    focus(&mut console, 2);
    let sent = console.succeed("sha256sum </tmp/sent");
    focus(&mut console, 1);
    for flow in 1..=8 {
        assert_eq!(console.succeed(&format!("sha256sum </tmp/got{flow}")), sent);
    }
    for (number, .., vcpus) in kernels {
        focus(&mut console, number);
        let table = console.succeed("cat /proc/interrupts");
        for vcpu in 0..vcpus {
            for way in ["rx", "tx"] {
                let name = format!("vif0-q{vcpu}-{way}");
                let line = table.lines().find(|line| line.ends_with(&name));
                let count = line.and_then(|line| line.split_whitespace().nth(1 + vcpu as usize));
                let count = count.and_then(|count| count.parse::<u64>().ok());
                assert!(count.is_some_and(|count| count > 20), "{name}: {table}");
            }
        }
        check_log(&mut console);
    }
    for _ in 0..2 {
        console.send("poweroff\n");
        console.expect("powered off");
    }
    let ended = console.end();
    ended.assert_l1_is_sound();
    for (.., name, vcpus) in kernels {
        let stats = ended.guests.iter().find(|stats| stats.name() == name).expect("statistics");
        for queue in 0..vcpus {
            for way in ["rx", "tx"] {
                let frames = stats.counter(&format!("net_{way}_queue_{queue}"));
                assert!(frames > 20, "{name}, {way} {queue}: {frames} frames, {stats:?}");
            }
        }
    }
}

#[test]
fn a_guest_has_several_cards() {
    let folder = Folder::new();
    let kernel = Kernel::Cloud612;
    let initrd = ramdisk(&folder, kernel);
    let cards = [
        "network = \"user\"",
        "network = \"lan\"\nmac = \"02:11:22:33:44:55\"",
        "network = \"lan\"",
        "network = \"other\"",
        "network = \"third\"\nmtu = 9000",
    ];
    let config = folder.file("roost.toml", guest(kernel, "many", &initrd, 1, &cards).as_bytes());
    let mut guest = folder.run_config(&config).limit(240).piped();
    guest.expect_shell();
    load(&mut guest, "eth4");
    assert_eq!(guest.succeed("cat /sys/class/net/eth1/address"), "02:11:22:33:44:55\n");
    dhcp(&mut guest);
    // Two cards on one network, each of which must take the way over it.
    guest.succeed("mkdir -p /run/netns && ip link set eth1 up && ip link set eth2 up");
    guest.succeed("ip addr add 192.168.5.1/24 dev eth1");
    guest.succeed("unshare -n sh -c 'sleep 1000' & echo $! >/tmp/pid; sleep 1");
    guest.succeed("ip link set eth2 netns $(cat /tmp/pid)");
    let inside = "nsenter -n -t $(cat /tmp/pid)";
    guest.succeed(&format!("{inside} ip addr add 192.168.5.2/24 dev eth2"));
    guest.succeed(&format!("{inside} ip link set eth2 up"));
    guest.succeed("ping -c 2 -W 5 192.168.5.2");
    guest.succeed("ping -c 1 -W 5 10.0.2.2");
    check_log(&mut guest);
    guest.send("poweroff\n");
    guest.end().assert_powered_off();
}
