//! Network cards of guests: what the user asks for.
//! Input: options and configuration files.

use pv_abi::bundle::MTUS;
use std::{fmt, net::Ipv4Addr, str::FromStr};

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

/// A network card that a guest is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetPlan {
    /// What it is on.
    pub network: Network,
    /// Its address, if one was given.
    pub mac: Option<Mac>,
    /// The only address that the guest may send by, if one was given.
    pub ip: Option<Ipv4Addr>,
    /// Bytes that it may send in a second, and be sent.
    pub rate: Option<Rate>,
    /// Bytes of its longest packets.
    pub mtu: Option<Mtu>,
    /// Ports of the host that lead to the guest.
    pub forwards: Vec<Forward>,
}

/// A network.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Network {
    /// QEMU's user networking.
    User,
    /// A bridge of the host's.
    Bridge(String),
    /// What the card with this address leads to, or the first that there is, of a machine that is none of ours.
    Card(Option<Mac>),
    /// Guests alone.
    Named(String),
}

/// The longest name of a network, and of a bridge.
const LONGEST_NAME: usize = 15;

impl FromStr for Network {
    type Err = String;

    /// `user`, `bridge=NAME`, `card`, `card=ADDRESS`, or a name.
    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(address) = text.strip_prefix("card=") {
            return address.parse().map(|mac| Self::Card(Some(mac)));
        }
        let (name, make): (_, fn(String) -> Self) = match text.strip_prefix("bridge=") {
            Some(bridge) => (bridge, Self::Bridge),
            None if text == "user" => return Ok(Self::User),
            None if text == "card" => return Ok(Self::Card(None)),
            None => (text, Self::Named),
        };
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if name.is_empty() || name.len() > LONGEST_NAME || !name.bytes().all(plain) {
            return Err(format!(
                "`{name}` is no name of a network: take 1 to {LONGEST_NAME} letters, digits, `-`, \
                 `_` or `.`"
            ));
        }
        Ok(make(name.into()))
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User => f.write_str("user"),
            Self::Bridge(name) => write!(f, "bridge={name}"),
            Self::Card(None) => f.write_str("card"),
            Self::Card(Some(mac)) => write!(f, "card={mac}"),
            Self::Named(name) => f.write_str(name),
        }
    }
}

impl NetPlan {
    /// A card on `network`, about which nothing else was said.
    #[must_use]
    pub fn on(network: Network) -> Self {
        Self { network, mac: None, ip: None, rate: None, mtu: None, forwards: Vec::new() }
    }
}

/// The value of `--net`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetOption {
    /// No card.
    None,
    /// A card.
    Card(NetPlan),
}

impl NetOption {
    /// The card, if it is one.
    #[must_use]
    pub const fn card(&self) -> Option<&NetPlan> {
        match self {
            Self::None => None,
            Self::Card(plan) => Some(plan),
        }
    }
}

impl FromStr for NetOption {
    type Err = String;

    /// `none`, or a network with `,mac=`, `,ip=`, `,rate=` and `,mtu=`.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split(',');
        let network = words.next().unwrap_or_default();
        if text == "none" {
            return Ok(Self::None);
        }
        if network == "none" {
            return Err("`none` is no network: write it alone".into());
        }
        let mut plan = NetPlan::on(network.parse()?);
        for word in words {
            match word.split_once('=') {
                Some(("mac", value)) => plan.mac = Some(value.parse()?),
                Some(("ip", value)) => plan.ip = Some(parse_ip(value)?),
                Some(("rate", value)) => plan.rate = Some(value.parse()?),
                Some(("mtu", value)) => plan.mtu = Some(value.parse()?),
                _ => return Err(format!("`{word}` is none of mac=, ip=, rate=, mtu=")),
            }
        }
        Ok(Self::Card(plan))
    }
}

/// An IPv4 address of one machine.
///
/// # Errors
/// What one looks like.
pub fn parse_ip(text: &str) -> Result<Ipv4Addr, String> {
    let ip = text.parse().ok().filter(|ip: &Ipv4Addr| {
        !(ip.is_unspecified() || ip.is_broadcast() || ip.is_multicast() || ip.is_loopback())
    });
    ip.ok_or_else(|| {
        format!("`{text}` is no IPv4 address for a guest: write one such as 10.0.2.20")
    })
}

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bytes: Option<Vec<u8>> = text
            .split(':')
            .map(|part| u8::from_str_radix(part, 16).ok().filter(|_| part.len() == 2))
            .collect();
        let mac = bytes.and_then(|bytes| <[u8; 6]>::try_from(bytes).ok());
        // Not a group's, not nobody's.
        mac.filter(|mac| mac[0] & 1 == 0 && *mac != [0; 6]).map(Self).ok_or_else(|| {
            format!("`{text}` is no address of a card: write one such as 02:00:00:00:00:01")
        })
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl Mac {
    /// An address that is always the same for `name` and `number`, of those that nobody is given.
    #[must_use]
    pub fn derived(name: &str, number: usize) -> Self {
        // FNV-1a; the last bytes written change all of the hash's lower ones.
        let hash =
            name.bytes().chain(number.to_le_bytes()).fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            });
        let [a, b, c, d, e, ..] = (hash ^ hash >> 40).to_le_bytes();
        Self([2, a, b, c, d, e])
    }
}

/// Bits in a second, as written: `100M` is 100 million.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate(u64);

impl Rate {
    /// Bytes in a second.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0 / 8
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (digits, unit) = match text.as_bytes().last() {
            Some(b'k' | b'K') => (&text[..text.len() - 1], 1_000),
            Some(b'M') => (&text[..text.len() - 1], 1_000_000),
            Some(b'G') => (&text[..text.len() - 1], 1_000_000_000),
            _ => (text, 1),
        };
        let bits = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
        // Slower, and a single frame takes seconds.
        bits.filter(|bits| (8_000..=1_000_000_000_000).contains(bits)).map(Self).ok_or_else(|| {
            format!("`{text}` is no rate: write bits in a second, 8k to 1000G, such as 100M")
        })
    }
}

/// Bytes of the longest packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mtu(pub u16);

impl FromStr for Mtu {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse()
            .ok()
            .filter(|mtu| MTUS.contains(mtu))
            .map(Self)
            .ok_or_else(|| format!("`{text}` is no MTU: write {} to {}", MTUS.start(), MTUS.end()))
    }
}

/// A port of the host that leads to one of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    /// What it is a port of.
    pub protocol: Protocol,
    /// The host's.
    pub host: u16,
    /// The guest's.
    pub guest: u16,
}

/// What has ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

impl FromStr for Forward {
    type Err = String;

    /// `[tcp:|udp:]HOSTPORT[:GUESTPORT]`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (protocol, ports) = match text.split_once(':') {
            Some(("tcp", ports)) => (Protocol::Tcp, ports),
            Some(("udp", ports)) => (Protocol::Udp, ports),
            _ => (Protocol::Tcp, text),
        };
        let (host, guest) = ports.split_once(':').unwrap_or((ports, ports));
        let port = |text: &str| text.parse::<u16>().ok().filter(|&port| port != 0);
        port(host).zip(port(guest)).map(|(host, guest)| Self { protocol, host, guest }).ok_or_else(
            || {
                format!(
                    "`{text}` is no forward: write HOSTPORT:GUESTPORT, such as 8080:80 or udp:53"
                )
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(text: &str) -> NetPlan {
        match text.parse().unwrap() {
            NetOption::Card(plan) => plan,
            NetOption::None => panic!("{text}"),
        }
    }

    #[test]
    fn options_of_a_card() {
        assert_eq!("none".parse(), Ok(NetOption::None));
        assert_eq!(card("user"), NetPlan::on(Network::User));
        assert_eq!(card("lan").network, Network::Named("lan".into()));
        assert_eq!(card("bridge=br0").network, Network::Bridge("br0".into()));
        let machine = card("card=02:00:00:00:00:01,mtu=1460");
        assert_eq!(machine.network, Network::Card(Some(Mac([2, 0, 0, 0, 0, 1]))));
        assert_eq!(card("card").network, Network::Card(None));
        assert_eq!(machine.network.to_string(), "card=02:00:00:00:00:01");
        let full = card("user,mac=02:00:00:00:00:aB,ip=10.0.2.20,rate=16M,mtu=1400");
        assert_eq!(full.mac, Some(Mac([2, 0, 0, 0, 0, 0xab])));
        assert_eq!(full.ip, Some(Ipv4Addr::new(10, 0, 2, 20)));
        assert_eq!((full.rate.unwrap().bytes(), full.mtu), (2_000_000, Some(Mtu(1400))));
        for bad in [
            "",
            "a b",
            "none,mac=02:00:00:00:00:01",
            "user,",
            "user,dhcp",
            "bridge=",
            "bridge=a b",
            "bridge=0123456789abcdef",
            "card=",
            "card=eth0",
            "user,mac=03:00:00:00:00:01",
            "user,mac=00:00:00:00:00:00",
            "user,mac=2:0:0:0:0:1",
            "user,mac=02:00:00:00:00",
            "user,ip=10.0.2",
            "user,ip=0.0.0.0",
            "user,rate=0",
            "user,rate=7k",
            "user,rate=fast",
            "user,mtu=575",
            "user,mtu=9001",
        ] {
            assert!(bad.parse::<NetOption>().is_err(), "{bad}");
        }
    }

    #[test]
    fn forwards_name_ports() {
        let forward = |protocol, host, guest| Ok(Forward { protocol, host, guest });
        assert_eq!("8080:80".parse(), forward(Protocol::Tcp, 8080, 80));
        assert_eq!("tcp:8080:80".parse(), forward(Protocol::Tcp, 8080, 80));
        assert_eq!("udp:53".parse(), forward(Protocol::Udp, 53, 53));
        for bad in ["", "0", "80:0", "sctp:80", "70000", "tcp:", "80:80:80", "127.0.0.1:80:80"] {
            assert!(bad.parse::<Forward>().is_err(), "{bad}");
        }
    }

    #[test]
    fn derived_addresses_differ() {
        let all: std::collections::HashSet<_> = ["a", "b", "web", "web2"]
            .iter()
            .flat_map(|name| (0..16).map(|n| Mac::derived(name, n)))
            .collect();
        assert_eq!(all.len(), 64);
        assert!(all.iter().all(|mac| mac.to_string().parse() == Ok(*mac)));
        assert!(all.iter().all(|mac| mac.0[0] == 2));
    }
}
