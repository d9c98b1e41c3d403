//! A bridge of the machine, in namespaces of its own: nobody else's network or files change.

use crate::folder::Folder;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::{
    fs::File,
    io::{self, BufRead, BufReader, Write},
    net::Ipv4Addr,
    os::fd::AsFd,
    process::{Child, Stdio},
};

/// Its name.
pub const NAME: &str = "roost-tests0";
/// The machine's address on it; /24.
pub const HOST: Ipv4Addr = Ipv4Addr::new(192, 168, 99, 1);

/// Makes it, and allows it to QEMU's helper, in files that hide those of the machine.
const MAKE: &str = "set -e
[ -c /dev/net/tun ]
ip link add \"$1\" type bridge
echo may
mount --make-rprivate /
mkdir etc && cp -a /etc/. etc/ && mkdir -p etc/qemu
echo \"allow $1\" >etc/qemu/bridge.conf
mount --bind etc /etc
mount -t sysfs sysfs /sys
ip link set lo up
ip addr add \"$2/24\" dev \"$1\"
ip link set \"$1\" up
echo ready
exec cat";

/// The bridge. It goes when this is dropped.
#[derive(Debug)]
pub struct Bridge(Child);

impl Bridge {
    /// A bridge, on whose network the calling thread is from here on, and those that it starts. `None` where one
    /// may not be made: the test is not run then, and says so.
    ///
    /// # Panics
    /// The thread cannot enter.
    #[must_use]
    pub fn new(folder: &Folder) -> Option<Self> {
        let mut command = folder.program("unshare".as_ref());
        command.args(["--net", "--mount", "sh", "-c", MAKE, "sh", NAME, &HOST.to_string()]);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut bridge = Self(child.expect("unshare, of util-linux"));
        let out = BufReader::new(bridge.0.stdout.take().expect("it was asked for"));
        let mut said = out.lines().map_while(Result::ok);
        if said.next().as_deref() != Some("may") {
            // Not for the harness, which keeps what a test that passes has said.
            let _ =
                writeln!(io::stderr(), "not run: a bridge takes root's rights and /dev/net/tun");
            return None;
        }
        assert_eq!(said.next().as_deref(), Some("ready"), "the bridge could not be made");
        let net = File::open(format!("/proc/{}/ns/net", bridge.0.id())).expect("it runs");
        move_into_link_name_space(net.as_fd(), Some(LinkNameSpaceType::Network))
            .expect("root's rights");
        Some(bridge)
    }

    /// A command that runs another in the namespaces, in the folder.
    pub(crate) fn enter(&self, folder: &Folder) -> Vec<String> {
        let place = folder.path("").display().to_string();
        let words = ["nsenter", "--net", "--mount", "--target"].map(String::from);
        let more = [self.0.id().to_string(), format!("--wd={place}"), "--".into()];
        words.into_iter().chain(more).collect()
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        // It ends with its input at the latest.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
