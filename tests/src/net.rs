//! Gives guests with stock kernels network cards, and something to fetch.

use crate::{folder::Folder, session::Session};
use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener},
    os::unix::fs::PermissionsExt,
    process::Command,
    thread,
};

/// The driver of stock kernels for network cards, a module.
pub const DRIVER: &str = "drivers/net/xen-netfront";
/// What busybox's DHCP client calls when it has an address.
const SCRIPT: &str = "#!/bin/sh\n[ \"$1\" = bound ] || exit 0\nip addr add $ip/$mask dev $interface\n\
                      ip route add default via $router\n";

/// Puts the script that [`dhcp`] needs into the folder: the words that add it to a ramdisk.
///
/// # Panics
/// It cannot be written.
#[must_use]
pub fn add_script(folder: &Folder) -> [&'static str; 2] {
    let script = folder.file("dhcp.sh", SCRIPT.as_bytes());
    fs::set_permissions(script, fs::Permissions::from_mode(0o755)).expect("temporary file");
    ["--add", "dhcp.sh=/dhcp.sh"]
}

/// Bytes without a pattern that a lost or repeated packet would keep.
#[must_use]
pub fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

/// The hash of `bytes` as the guest's busybox prints it.
///
/// # Panics
/// It cannot be made.
#[must_use]
pub fn hash(folder: &Folder, bytes: &[u8]) -> String {
    let file = folder.file("hashed", bytes);
    let said = Command::new("sha256sum").arg(file).output().expect("sha256sum, of coreutils");
    let said = String::from_utf8(said.stdout).expect("text");
    said.split(' ').next().expect("a hash").to_owned()
}

/// Answers one request by HTTP with `bytes`; the port.
///
/// # Panics
/// There is no port.
#[must_use]
pub fn serve(bytes: Vec<u8>) -> u16 {
    serve_at(Ipv4Addr::LOCALHOST, bytes)
}

/// The same, at `address` of this machine's.
///
/// # Panics
/// There is no port.
#[must_use]
pub fn serve_at(address: Ipv4Addr, bytes: Vec<u8>) -> u16 {
    let listener = TcpListener::bind((address, 0)).expect("a port");
    let port = listener.local_addr().expect("a port").port();
    thread::spawn(move || {
        let (mut guest, _) = listener.accept().expect("the guest");
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            guest.read_exact(&mut byte).expect("a request");
            request.push(byte[0]);
        }
        let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", bytes.len());
        guest.write_all(head.as_bytes()).and_then(|()| guest.write_all(&bytes)).expect("the guest");
    });
    port
}

/// The driver is there, and the cards up to the one named `last`.
///
/// # Panics
/// It cannot be loaded.
pub fn load(guest: &mut Session<'_>, last: &str) {
    guest.succeed("insmod /xen-netfront.ko");
    guest.succeed(&format!("while ! [ -e /sys/class/net/{last} ]; do sleep 0.1; done"));
}

/// The card gets an address.
///
/// # Panics
/// It gets none, or another than it should.
pub fn dhcp(guest: &mut Session<'_>) {
    guest.succeed("ip link set eth0 up && udhcpc -n -q -t 8 -i eth0 -s /dhcp.sh");
    let addresses = guest.succeed("ip -4 addr show eth0");
    assert!(addresses.contains("inet 10.0.2.15/24"), "{addresses}");
}
