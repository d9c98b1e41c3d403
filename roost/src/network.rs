//! Networks of a run: whether they can be had, and what QEMU and L1 are told of them.
//! Input: a plan.

use crate::{
    net::{Forward, Mac, NetPlan, Network, Protocol},
    plan::{GuestPlan, Plan},
    qemu::Bus,
};
use anyhow::{Result, bail, ensure};
use pv_abi::{
    bundle::{self, Backend, Card, DEFAULT_MTU, Uplink},
    ext::devices::SLOTS,
};
use std::{
    collections::{HashMap, HashSet},
    net::{Ipv4Addr, TcpListener, UdpSocket},
    path::Path,
};

/// The network of QEMU's user networking, its address there, and the first that it gives a guest.
const USER_NET: [u8; 3] = [10, 0, 2];
const USER_OWN: [u8; 3] = [2, 3, 4];
const USER_FIRST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);

/// A network card of the machine, as QEMU is told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineCard {
    number: usize,
    network: Network,
    mac: Mac,
    /// Forwards, and the addresses of the guests they lead to.
    forwards: Vec<(Forward, Ipv4Addr)>,
}

impl MachineCard {
    /// The value of QEMU's `-netdev`.
    #[must_use]
    pub fn netdev(&self) -> String {
        let id = self.number;
        match &self.network {
            Network::Bridge(name) => format!("bridge,id=net{id},br={name}"),
            Network::User | Network::Named(_) | Network::Card(_) => {
                let forward = |(forward, ip): &(Forward, Ipv4Addr)| {
                    let Forward { protocol, host, guest } = forward;
                    format!(",hostfwd={protocol}:127.0.0.1:{host}-{ip}:{guest}")
                };
                let forwards: String = self.forwards.iter().map(forward).collect();
                format!("user,id=net{id}{forwards}")
            }
        }
    }

    /// The value of its `-device`.
    #[must_use]
    pub fn device(&self, bus: Bus) -> String {
        let Self { number, mac, .. } = self;
        let device = bus.device("virtio-net");
        // Nothing boots from it.
        let rom = if bus == Bus::Pci { ",romfile=" } else { "" };
        format!("{device},netdev=net{number},mac={mac}{rom}")
    }
}

/// Checks the cards of all guests; those of the machine.
///
/// # Errors
/// The first thing found wrong and what to do about it.
pub fn check(plan: &Plan) -> Result<Vec<MachineCard>> {
    check_guests(plan)?;
    if let Some((guest, net)) = all(plan).find(|(_, net)| matches!(net.network, Network::Card(_))) {
        let why = format!("network `{}` is for an image, or --pack: take `user`", net.network);
        return Err(plan.origin.about(guest, why));
    }
    let mut ports = HashMap::new();
    for (guest, net) in all(plan) {
        for forward in &net.forwards {
            check_forward(*forward, &mut ports).map_err(|why| plan.origin.about(guest, why))?;
        }
    }
    machine_cards(plan)
}

/// Checks the cards of all guests, for a machine that is none of ours: networks that go out do it by cards that it
/// has.
///
/// # Errors
/// The first thing found wrong; `command` says what was asked for.
pub fn check_for_elsewhere(plan: &Plan, command: &str) -> Result<()> {
    let ours = |network: &Network| matches!(network, Network::User | Network::Bridge(_));
    if let Some((guest, net)) = all(plan).find(|(_, net)| ours(&net.network)) {
        let network = &net.network;
        let why = format!(
            "network `{network}` cannot be used with {command}: no other machine monitor is told of it; \
             `card` is what the machine's own card leads to"
        );
        return Err(plan.origin.about(guest, why));
    }
    check_guests(plan)
}

fn check_guests(plan: &Plan) -> Result<()> {
    let mut seen = HashSet::new();
    for guest in &plan.guests {
        check_guest(guest, &mut seen).map_err(|why| plan.origin.about(guest, why))?;
    }
    Ok(())
}

/// The networks as L1 is told of them.
#[must_use]
pub fn describe(plan: &Plan) -> Vec<bundle::Network> {
    let uplink = |network: &Network| match network {
        Network::Named(_) => None,
        Network::Card(None) => Some(Uplink::First),
        Network::Card(Some(mac)) => Some(Uplink::Address(mac.0)),
        Network::User | Network::Bridge(_) => Some(Uplink::Address(machine_mac(network).0)),
    };
    networks(plan)
        .into_iter()
        .map(|network| bundle::Network { name: network.to_string(), uplink: uplink(network) })
        .collect()
}

/// The cards of a guest as L1 is told of them.
#[must_use]
pub fn cards(guest: &GuestPlan) -> Vec<Card> {
    let card = |(number, net): (usize, &NetPlan)| Card {
        // There are no more slots than fit.
        slot: u8::try_from(guest.disks.len() + number).unwrap_or(u8::MAX),
        network: net.network.to_string(),
        mac: mac(guest, number, net).map(|mac| mac.0),
        ip: net.ip.map(|ip| ip.octets()),
        rate: net.rate.map_or(0, |rate| rate.bytes()),
        mtu: net.mtu.map_or(DEFAULT_MTU, |mtu| mtu.0),
    };
    guest.nets.iter().enumerate().map(card).collect()
}

fn all(plan: &Plan) -> impl Iterator<Item = (&GuestPlan, &NetPlan)> {
    plan.guests.iter().flat_map(|guest| guest.nets.iter().map(move |net| (guest, net)))
}

/// Each network once, in the order in which they are named.
fn networks(plan: &Plan) -> Vec<&Network> {
    let mut networks = Vec::new();
    for (_, net) in all(plan) {
        if !networks.contains(&&net.network) {
            networks.push(&net.network);
        }
    }
    networks
}

fn goes_out(network: &Network) -> bool {
    !matches!(network, Network::Named(_))
}

/// The address of the card that QEMU's machine has for `network`.
fn machine_mac(network: &Network) -> Mac {
    // No guest has a slot of this number.
    Mac::derived(&network.to_string(), SLOTS)
}

/// The address of a guest's card; `None` for that of the machine's, which only L1 sees.
fn mac(guest: &GuestPlan, number: usize, net: &NetPlan) -> Option<Mac> {
    net.mac.or_else(|| match net.network {
        // L1 needs no address of its own there, and providers let out what comes from this one alone.
        Network::Card(mac) => mac,
        _ => Some(Mac::derived(&guest.name, number)),
    })
}

fn check_guest(guest: &GuestPlan, seen: &mut HashSet<Option<Mac>>) -> Result<()> {
    ensure!(
        guest.disks.len() + guest.nets.len() <= SLOTS,
        "a guest has {SLOTS} disks and network cards at most: leave some out"
    );
    ensure!(
        guest.nets.is_empty() || guest.backend != Backend::Assisted,
        "a guest that L0 runs has no network cards: give it backend auto or shadow"
    );
    for (number, net) in guest.nets.iter().enumerate() {
        let mac = mac(guest, number, net);
        if !seen.insert(mac) {
            let address = mac.map_or("that of the machine's card".into(), |mac| mac.to_string());
            bail!("address {address} is that of another card: choose another `mac`");
        }
        check_net(net)?;
    }
    Ok(())
}

fn check_net(net: &NetPlan) -> Result<()> {
    let mtu = net.mtu.map_or(DEFAULT_MTU, |mtu| mtu.0);
    ensure!(
        mtu <= DEFAULT_MTU || !goes_out(&net.network),
        "a network that goes out takes packets of {DEFAULT_MTU} bytes: set `mtu` to that or less"
    );
    ensure!(
        net.forwards.is_empty() || net.network == Network::User,
        "ports are forwarded to a card on the network `user`: this is on `{}`",
        net.network
    );
    if let Network::Bridge(name) = &net.network {
        ensure!(
            Path::new("/sys/class/net").join(name).join("bridge").exists(),
            "this machine has no bridge `{name}`: make it, or name another"
        );
    }
    if let (Network::User, Some(ip)) = (&net.network, net.ip) {
        let [a, b, c, last] = ip.octets();
        ensure!(
            [a, b, c] == USER_NET && last != 0 && !USER_OWN.contains(&last),
            "address {ip} is none for a guest on the network `user`: take 10.0.2.5 to 10.0.2.254"
        );
    }
    Ok(())
}

/// That nobody has the port, as far as can be told.
fn check_forward(forward: Forward, seen: &mut HashMap<(Protocol, u16), u16>) -> Result<()> {
    let Forward { protocol, host, guest } = forward;
    if seen.insert((protocol, host), guest).is_some() {
        bail!("port {host} is forwarded twice: choose another");
    }
    let at = (Ipv4Addr::LOCALHOST, host);
    let taken = match protocol {
        Protocol::Tcp => TcpListener::bind(at).err(),
        Protocol::Udp => UdpSocket::bind(at).err(),
    };
    match taken {
        None => Ok(()),
        Some(why) => {
            bail!("port {host} of this machine cannot be forwarded ({why}): choose another")
        }
    }
}

fn machine_cards(plan: &Plan) -> Result<Vec<MachineCard>> {
    let outward = networks(plan).into_iter().filter(|network| goes_out(network));
    let card = |(number, network): (usize, &Network)| {
        let forwards = if *network == Network::User { forwards(plan)? } else { Vec::new() };
        Ok(MachineCard { number, network: network.clone(), mac: machine_mac(network), forwards })
    };
    outward.enumerate().map(card).collect()
}

/// All forwards, and where they lead.
fn forwards(plan: &Plan) -> Result<Vec<(Forward, Ipv4Addr)>> {
    let users: Vec<_> = all(plan).filter(|(_, net)| net.network == Network::User).collect();
    let mut forwards = Vec::new();
    for (guest, net) in &users {
        let ip = match net.ip {
            Some(ip) => ip,
            None if users.len() == 1 || net.forwards.is_empty() => USER_FIRST,
            None => {
                let why = "of several cards on the network `user`, one that ports are forwarded to \
                           needs an `ip`";
                return Err(plan.origin.about(guest, why));
            }
        };
        forwards.extend(net.forwards.iter().map(|&forward| (forward, ip)));
    }
    Ok(forwards)
}
