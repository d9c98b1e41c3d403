//! A Debian with systemd on a disk: it comes up, is reached over the network, installs a package, keeps
//! what is written over a restart, and goes down.

use roost_tests::{
    built,
    disk::{check, host, text},
    folder::Folder,
    session::Session,
};
use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    thread,
    time::{Duration, SystemTime},
};

/// Starting it takes an emulator 45 seconds of CPU time, of which a busy machine may give it little.
const PATIENCE: Duration = Duration::from_secs(1200);

/// Logs in as a person does, and makes the shell one that the session can talk to.
fn log_in(console: &mut Session<'_>) {
    console.expect("roost login: ");
    console.send("root\n");
    console.expect("Password: ");
    console.send("roost\n");
    console.expect("root@roost:~# ");
    console.send("exec env PS1='# ' sh\n");
    console.expect("sh\n");
    console.expect("# ");
    assert_eq!(console.shell("stty cols 250").0, 0);
}

/// systemd has started all that it should, and the kernel has found nothing wrong with itself.
fn is_well(console: &mut Session<'_>) {
    let (_, state) = console.shell("systemctl is-system-running --wait");
    let (_, failed) = console.shell("systemctl --failed --no-legend --plain --no-pager");
    assert_eq!((state.as_str(), failed.as_str()), ("running\n", ""));
    for unit in ["multi-user.target", "ssh.service", "serial-getty@hvc0.service"] {
        console.succeed(&format!("systemctl is-active --quiet {unit}"));
    }
    let (status, found) =
        console.shell("dmesg | grep -E 'WARNING: |BUG: |Oops|Call Trace|I/O error'");
    assert_eq!((status, found.as_str()), (1, ""));
}

/// The clock on the wall, as the guest shows it, is ours. It is never ahead by more than half a second, by
/// which the tool rounds. It is behind by the time that it takes to start QEMU, and by the ticks that the
/// kernel misses before it looks at Xen's clock: nothing, or a minute if the machine is very busy.
fn tells_the_time(console: &mut Session<'_>) {
    let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let before = now();
    let seen: u64 = console.succeed("date +%s").trim().parse().expect("seconds");
    let after = now();
    assert!((before - 60..=after + 1).contains(&seen), "{before} <= {seen} <= {after}");
}

/// A port of this machine that nobody has.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("its number").port()
}

/// Serves the files of `folder` over HTTP for as long as the test runs; returns the port.
fn serve(folder: &Path) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("its number").port();
    let folder = folder.to_owned();
    thread::spawn(move || {
        for caller in listener.incoming().flatten() {
            let folder = folder.clone();
            thread::spawn(move || answer(caller, &folder));
        }
    });
    port
}

/// Answers requests until the caller has no more.
fn answer(mut caller: TcpStream, folder: &Path) -> Option<()> {
    let mut lines = BufReader::new(caller.try_clone().ok()?).lines();
    while let Some(Ok(request)) = lines.next() {
        // Headers end with an empty line.
        lines.by_ref().find(|line| line.as_ref().map_or(true, String::is_empty));
        let name = request.split(' ').nth(1)?.trim_start_matches(['/', '.']);
        let (status, bytes) = match fs::read(folder.join(name)) {
            Ok(bytes) => ("200 OK", bytes),
            Err(_) => ("404 Not Found", Vec::new()),
        };
        write!(caller, "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", bytes.len()).ok()?;
        caller.write_all(&bytes).ok()?;
    }
    Some(())
}

/// What a command prints in the guest, over ssh.
fn ssh(port: u16, command: &str) -> String {
    let key = built::debian("id_ed25519");
    let port = port.to_string();
    let options = [
        "StrictHostKeyChecking=no",
        "UserKnownHostsFile=/dev/null",
        "LogLevel=ERROR",
        "BatchMode=yes",
        "ConnectTimeout=300",
    ];
    let options = options.iter().flat_map(|option| ["-o", option]);
    let whom = ["-p", &port, "-i", text(&key), "root@127.0.0.1", command];
    let said = host("ssh", &options.chain(whom).collect::<Vec<_>>());
    String::from_utf8(said.stdout).expect("text")
}

/// Somebody comes in with the key, and a package comes from a repository of ours.
fn is_on_the_network(console: &mut Session<'_>, port: u16) {
    console.succeed("while ! ip -4 route | grep -q default; do sleep 0.2; done");
    assert_eq!(ssh(port, "hostname; id -un"), "roost\nroot\n");
    let mirror = serve(&built::debian("repository"));
    let list = format!("deb [trusted=yes] http://10.0.2.2:{mirror} ./");
    ssh(port, &format!("echo '{list}' > /etc/apt/sources.list && apt-get -qq update"));
    ssh(port, "DEBIAN_FRONTEND=noninteractive apt-get -qy install hello");
    assert_eq!(ssh(port, "hello"), "Hello, world!\n");
    // More than fits any buffer, and every byte of it.
    let sum = ssh(port, "head -c 8388608 /dev/urandom | tee /root/noise | sha256sum");
    assert_eq!(ssh(port, "cat /root/noise | sha256sum"), sum);
}

#[test]
fn debian_restarts_and_keeps_its_files() {
    let folder = Folder::new();
    let port = free_port();
    let run = folder.debian().option("--ssh", port.to_string());
    let mut console = run.limit(3600).piped();
    console.set_patience(PATIENCE);
    log_in(&mut console);
    is_well(&mut console);
    tells_the_time(&mut console);
    assert_eq!(console.succeed("findmnt -no SOURCE,FSTYPE /"), "/dev/xvda ext4\n");
    console.succeed("seq 1 50000 > /root/numbers && dpkg --verify coreutils systemd");
    is_on_the_network(&mut console, port);
    let first = console.succeed("cat /proc/sys/kernel/random/boot_id");

    console.send("systemctl reboot\n");
    log_in(&mut console);
    let second = console.succeed("cat /proc/sys/kernel/random/boot_id");
    assert_ne!(first, second, "it has not started again");
    is_well(&mut console);
    tells_the_time(&mut console);
    console.succeed("seq 1 50000 | cmp - /root/numbers && hello");
    console.succeed("while ! ip -4 route | grep -q default; do sleep 0.2; done");
    assert_eq!(ssh(port, "cat /proc/sys/kernel/random/boot_id"), second);
    console.send("poweroff\n");
    let ended = console.end();
    ended.assert_powered_off();
    assert_eq!(ended.log.matches("asked for a restart").count(), 1, "{}", ended.log);
    check(&folder.path("disk.img"));
}
