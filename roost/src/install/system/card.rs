//! The network card by which a running system is reached.
//! Input: the kernel's files.

use super::{SEGMENT, text, virtio_place};
use crate::net::{Mac, Mtu};
use pv_abi::bundle::{DEFAULT_MTU, MTUS};
use std::{fs, path::Path};

/// A card that L1 can drive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    /// Linux's name.
    pub name: String,
    /// Its address.
    pub mac: Mac,
    /// What its network takes, if that is less than usual.
    pub mtu: Option<Mtu>,
}

impl Card {
    /// The card that the system below `root` goes out by.
    ///
    /// # Errors
    /// Why a guest cannot have it.
    pub fn look(root: &Path) -> Result<Self, String> {
        let routes = text(root, "proc/net/route").unwrap_or_default();
        let name = way_out(&routes).ok_or("no card leads out of the machine now")?;
        let folder = root.join("sys/class/net").join(name);
        let device = fs::canonicalize(folder.join("device")).unwrap_or_default();
        let place = virtio_place(&device)
            .ok_or_else(|| format!("{name} is no virtio card, and L1 drives no others"))?;
        if !place.starts_with(SEGMENT) {
            return Err(format!("{name} is at {place}, and L1 looks on PCI segment 0 alone"));
        }
        let read = |file: &str| fs::read_to_string(folder.join(file)).unwrap_or_default();
        let mac = read("address").trim().parse().map_err(|why| format!("{name}: {why}"))?;
        let least = *MTUS.start()..DEFAULT_MTU;
        let mtu = read("mtu").trim().parse().ok().filter(|mtu| least.contains(mtu)).map(Mtu);
        Ok(Self { name: name.into(), mac, mtu })
    }
}

/// The interface of the default route, of which the first is the best; `routes` is /proc/net/route.
fn way_out(routes: &str) -> Option<&str> {
    let default = |line: &&str| {
        let mut words = line.split_whitespace().skip(1);
        // Destination, and the mask after gateway, flags, three counts.
        words.next() == Some("00000000") && words.nth(5) == Some("00000000")
    };
    let best = |line: &&str| line.split_whitespace().nth(6)?.parse::<u32>().ok();
    routes.lines().filter(default).min_by_key(best)?.split_whitespace().next()
}
