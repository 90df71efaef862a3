//! Ranges of client NIDs.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use lcap_ffi::record::Nid;

/// Network types by name, as LNet numbers them.
const NETS: [(&str, u8); 10] = [
    ("tcp", 2),
    ("o2ib", 5),
    ("lo", 9),
    ("gni", 13),
    ("gip", 14),
    ("ptlf", 15),
    ("kfi", 16),
    ("tofu", 17),
    ("efa", 18),
    ("bxi3", 19),
];

/// NIDs of one network: `10.0.0.1@tcp`, `10.0.0.0/8@o2ib1`, `10.0.0.1-10.0.0.99@tcp`,
/// `10.0.[1-5].*@tcp`, `*@tcp`, `fd00::/8@tcp`, `0@lo`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NidRange {
    net_type: u8,
    net_number: u16,
    addresses: Addresses,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Addresses {
    All,
    V4(u32, u32),
    V6(u128, u128),
    /// Each byte within its own range.
    Octets([(u8, u8); 4]),
}

/// The text is no range of NIDs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a range of NIDs; e.g. 10.0.0.1@tcp, 10.0.0.0/8@o2ib1, 10.0.[1-5].*@tcp, *@tcp")]
pub struct BadNidRange;

impl NidRange {
    /// Whether the NID is one of them.
    pub fn contains(&self, nid: Nid) -> bool {
        let (net_type, number, v4, v6) = match nid {
            Nid::Small(word) => {
                let bytes = word.to_be_bytes();
                let [_, net_type, n1, n0, a, b, c, d] = bytes;
                (net_type, [n1, n0], Some([a, b, c, d]), None)
            }
            Nid::Large(bytes) => {
                let [size, net_type, n1, n0, a, b, c, d, ..] = bytes;
                let v6 = bytes.last_chunk::<16>().filter(|_| size == 12);
                let v4 = (size == 0).then_some([a, b, c, d]);
                (net_type, [n1, n0], v4, v6.map(|bytes| u128::from_be_bytes(*bytes)))
            }
        };
        let within = match (&self.addresses, v4, v6) {
            (Addresses::All, ..) => true,
            (Addresses::V4(from, to), Some(bytes), _) => {
                (*from..=*to).contains(&u32::from_be_bytes(bytes))
            }
            (Addresses::V6(from, to), _, Some(address)) => (*from..=*to).contains(&address),
            (Addresses::Octets(ranges), Some(bytes), _) => {
                ranges.iter().zip(bytes).all(|(&(from, to), byte)| from <= byte && byte <= to)
            }
            _ => false,
        };
        within && (self.net_type, self.net_number) == (net_type, u16::from_be_bytes(number))
    }
}

impl FromStr for NidRange {
    type Err = BadNidRange;

    fn from_str(text: &str) -> Result<Self, BadNidRange> {
        let (addresses, net) = text.rsplit_once('@').ok_or(BadNidRange)?;
        let named = |(name, number): &(&str, u8)| {
            let rest = net.strip_prefix(name)?;
            let digits = rest.bytes().all(|b| b.is_ascii_digit());
            let number_of = if rest.is_empty() { Some(0) } else { rest.parse().ok() };
            digits.then_some((*number, number_of?))
        };
        let (net_type, net_number) = NETS.iter().find_map(named).ok_or(BadNidRange)?;
        Ok(Self { net_type, net_number, addresses: addresses.parse()? })
    }
}

impl FromStr for Addresses {
    type Err = BadNidRange;

    fn from_str(text: &str) -> Result<Self, BadNidRange> {
        if text == "*" {
            return Ok(Self::All);
        }
        // `0@lo`
        if let Ok(number) = text.parse::<u32>() {
            return Ok(Self::V4(number, number));
        }
        if let Some((base, bits)) = text.split_once('/') {
            let bits: u32 = bits.parse().map_err(|_| BadNidRange)?;
            return if let Ok(base) = base.parse::<Ipv4Addr>() {
                let hosts = u32::MAX.checked_shr(bits).unwrap_or(0);
                let from = base.to_bits() & !hosts;
                if bits <= 32 { Ok(Self::V4(from, from | hosts)) } else { Err(BadNidRange) }
            } else {
                let base: Ipv6Addr = base.parse().map_err(|_| BadNidRange)?;
                let hosts = u128::MAX.checked_shr(bits).unwrap_or(0);
                let from = base.to_bits() & !hosts;
                if bits <= 128 { Ok(Self::V6(from, from | hosts)) } else { Err(BadNidRange) }
            };
        }
        let (from, to) =
            text.split_once('-').filter(|_| !text.contains('[')).unwrap_or((text, text));
        if let (Ok(from), Ok(to)) = (from.parse::<Ipv4Addr>(), to.parse::<Ipv4Addr>()) {
            return if from <= to {
                Ok(Self::V4(from.to_bits(), to.to_bits()))
            } else {
                Err(BadNidRange)
            };
        }
        if let (Ok(from), Ok(to)) = (from.parse::<Ipv6Addr>(), to.parse::<Ipv6Addr>()) {
            return if from <= to {
                Ok(Self::V6(from.to_bits(), to.to_bits()))
            } else {
                Err(BadNidRange)
            };
        }
        let mut ranges = [(0, 0); 4];
        let mut parts = text.split('.');
        for range in &mut ranges {
            *range = octets(parts.next().ok_or(BadNidRange)?).ok_or(BadNidRange)?;
        }
        if parts.next().is_some() {
            return Err(BadNidRange);
        }
        // One address, in a way of writing that std does not take: `10.0.0.08`.
        if ranges.iter().all(|(from, to)| from == to) {
            let address = u32::from_be_bytes(ranges.map(|(octet, _)| octet));
            return Ok(Self::V4(address, address));
        }
        Ok(Self::Octets(ranges))
    }
}

/// `5`, `*` or `[1-5]`.
fn octets(text: &str) -> Option<(u8, u8)> {
    if text == "*" {
        return Some((0, 255));
    }
    let (from, to) = match text.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']')?.split_once('-')?,
        None => (text, text),
    };
    let (from, to) = (from.parse().ok()?, to.parse().ok()?);
    (from <= to).then_some((from, to))
}

impl fmt::Display for NidRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.addresses {
            Addresses::All => f.write_str("*")?,
            Addresses::V4(from, to) => {
                write!(f, "{}", Ipv4Addr::from_bits(*from))?;
                if from != to {
                    write!(f, "-{}", Ipv4Addr::from_bits(*to))?;
                }
            }
            Addresses::V6(from, to) => {
                write!(f, "{}", Ipv6Addr::from_bits(*from))?;
                if from != to {
                    write!(f, "-{}", Ipv6Addr::from_bits(*to))?;
                }
            }
            Addresses::Octets(ranges) => {
                for (nth, (from, to)) in ranges.iter().enumerate() {
                    let dot = if nth == 0 { "" } else { "." };
                    match (from, to) {
                        (0, 255) => write!(f, "{dot}*")?,
                        (from, to) if from == to => write!(f, "{dot}{from}")?,
                        (from, to) => write!(f, "{dot}[{from}-{to}]")?,
                    }
                }
            }
        }
        let name = NETS.iter().find(|(_, number)| *number == self.net_type).map_or("", |(n, _)| n);
        write!(f, "@{name}")?;
        if self.net_number != 0 {
            write!(f, "{}", self.net_number)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_hold_what_they_say_in_both_layouts() {
        let small = |net_type: u64, number: u64, address: u64| {
            Nid::Small(net_type << 48 | number << 32 | address)
        };
        let large = |head: [u8; 4], address: &[u8]| {
            let mut bytes = [0; 20];
            bytes[..4].copy_from_slice(&head);
            bytes[4..4 + address.len()].copy_from_slice(address);
            Nid::Large(bytes)
        };
        let tcp = small(2, 0, 0xc0a8_0105); // 192.168.1.5@tcp
        let tcp_large = large([0, 2, 0, 0], &[192, 168, 1, 5]);
        let ib1 = small(5, 1, 0x0a00_0001);
        let ib1_large = large([0, 5, 0, 1], &[10, 0, 0, 1]);
        let v6 = large([12, 2, 0, 0], &"fd00::17".parse::<Ipv6Addr>().unwrap().octets());
        let lo = small(9, 0, 0);
        let cases: &[(&str, &[Nid], &[Nid])] = &[
            ("192.168.1.5@tcp", &[tcp, tcp_large], &[ib1, v6, lo]),
            ("192.168.0.0/16@tcp", &[tcp, tcp_large], &[ib1, v6]),
            ("0.0.0.0/0@tcp", &[tcp, tcp_large], &[ib1, v6]),
            ("192.168.1.5/32@tcp", &[tcp], &[ib1]),
            ("192.168.1.1-192.168.1.9@tcp", &[tcp, tcp_large], &[ib1]),
            ("192.168.1.6-192.168.1.9@tcp", &[], &[tcp, tcp_large]),
            ("192.*.[0-3].5@tcp", &[tcp, tcp_large], &[ib1, v6]),
            ("192.168.001.[5-5]@tcp", &[tcp, tcp_large], &[ib1, v6]),
            ("*@o2ib1", &[ib1, ib1_large], &[tcp, v6]),
            ("*@o2ib", &[], &[ib1, ib1_large]),
            ("*@tcp", &[tcp, v6], &[ib1]),
            ("fd00::/8@tcp", &[v6], &[tcp, tcp_large]),
            ("fd00::17@tcp", &[v6], &[tcp]),
            ("0@lo", &[lo], &[tcp]),
        ];
        for (text, inside, outside) in cases {
            let range: NidRange = text.parse().unwrap();
            for nid in *inside {
                assert!(range.contains(*nid), "{text} {nid:?}");
            }
            for nid in *outside {
                assert!(!range.contains(*nid), "{text} {nid:?}");
            }
            let again: NidRange = range.to_string().parse().unwrap();
            assert_eq!(again, range, "{text}");
        }
        for bad in [
            "",
            "@tcp",
            "10.0.0.1",
            "10.0.0.1@",
            "10.0.0.1@eth",
            "10.0.0@tcp",
            "10.0.0.0/33@tcp",
            "10.0.0.9-10.0.0.1@tcp",
            "10.0.[5-1].1@tcp",
            "10.0.0.1@tcpx",
            "fd00::/129@tcp",
            "1.2.3.4.5@tcp",
        ] {
            assert_eq!(bad.parse::<NidRange>(), Err(BadNidRange), "{bad}");
        }
    }
}
