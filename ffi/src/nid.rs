//! NIDs: the network address of a client, as text and between its two layouts.
#![forbid(unsafe_code)]

use std::fmt;
use std::net::Ipv6Addr;

use crate::digits::{push_dec, push_hex};

/// Which NID layout a record carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nid {
    /// `lnet_nid_t`: type, network number and address in one host-order number.
    Small(u64),
    /// The 20 bytes of a big-endian `struct lnet_nid`.
    Large([u8; 20]),
}

/// `LNET_NID_ANY`.
const ANY: u64 = u64::MAX;
/// `nid_type` of any NID.
const ANY_TYPE: u8 = 0xff;

/// How a network driver (LND) writes addresses.
#[derive(Clone, Copy)]
enum Form {
    /// One decimal number.
    Decimal,
    /// IPv4, whatever size the address claims.
    Ip4,
    /// IPv4 or IPv6 by size; empty for another size.
    Ip,
}

/// Name and address form by driver number. Drivers that are gone, or that only have a number
/// reserved (tofu), are unknown to Lustre's own tools, too.
fn driver(number: u8) -> Option<(&'static str, Form)> {
    Some(match number {
        2 => ("tcp", Form::Ip),
        5 => ("o2ib", Form::Ip4),
        9 => ("lo", Form::Decimal),
        13 => ("gni", Form::Decimal),
        14 => ("gip", Form::Ip4),
        15 => ("ptlf", Form::Decimal),
        16 => ("kfi", Form::Decimal),
        18 => ("efa", Form::Ip),
        19 => ("bxi3f", Form::Decimal),
        _ => return None,
    })
}

/// The parts of a NID, however it was laid out.
struct Parts {
    driver: u8,
    network: u16,
    address: [u8; 16],
    address_bytes: usize,
}

impl Nid {
    /// The NID as one number, as readers get it that did not ask for the large layout: an address
    /// that is longer than four bytes does not fit and is zero.
    pub fn to_small(self) -> u64 {
        match self {
            Self::Small(number) => number,
            Self::Large([_, ANY_TYPE, ..]) => ANY,
            Self::Large([0, driver, n1, n0, a, b, c, d, ..]) => {
                u64::from_be_bytes([0, driver, n1, n0, a, b, c, d])
            }
            Self::Large(_) => 0,
        }
    }

    /// The NID in the large layout.
    pub fn to_large(self) -> [u8; 20] {
        match self {
            Self::Large(bytes) => bytes,
            Self::Small(ANY) => {
                let mut bytes = [0xff; 20];
                bytes[0] = 0;
                bytes
            }
            Self::Small(number) => {
                let mut bytes = [0; 20];
                bytes[..8].copy_from_slice(&number.to_be_bytes());
                bytes[0] = 0; // the number's top byte means nothing; here it is the size
                bytes
            }
        }
    }

    /// `None` for any NID.
    fn parts(self) -> Option<Parts> {
        if matches!(self, Self::Small(ANY) | Self::Large([_, ANY_TYPE, ..])) {
            return None;
        }
        let bytes = self.to_large();
        let mut address = [0; 16];
        address.copy_from_slice(&bytes[4..]);
        Some(Parts {
            driver: bytes[1],
            network: u16::from_be_bytes([bytes[2], bytes[3]]),
            address,
            address_bytes: usize::from(bytes[0]) + 4,
        })
    }

    /// Appends the text that `lfs` prints, e.g. `10.0.0.1@o2ib1`.
    pub fn write_text(self, out: &mut Vec<u8>) {
        let Some(nid) = self.parts() else {
            out.extend_from_slice(b"<?>");
            return;
        };
        let [a, b, c, d, ..] = nid.address;
        if let Some((name, form)) = driver(nid.driver) {
            match (form, nid.address_bytes) {
                (Form::Decimal, _) => push_dec(out, u32::from_be_bytes([a, b, c, d]).into()),
                (Form::Ip4, _) | (Form::Ip, 4) => push_ip4(out, [a, b, c, d]),
                (Form::Ip, 16) => push_ip6(out, nid.address),
                (Form::Ip, _) => {}
            }
            out.push(b'@');
            out.extend_from_slice(name.as_bytes());
            if nid.network != 0 {
                push_dec(out, nid.network.into());
            }
        } else {
            push_words(out, &nid);
            out.extend_from_slice(b"@<");
            push_dec(out, nid.driver.into());
            out.push(b':');
            push_dec(out, nid.network.into());
            out.push(b'>');
        }
    }
}

fn push_ip4(out: &mut Vec<u8>, octets: [u8; 4]) {
    for (i, octet) in octets.into_iter().enumerate() {
        if i > 0 {
            out.push(b'.');
        }
        push_dec(out, octet.into());
    }
}

/// As glibc's `inet_ntop`: unlike Rust's, it also writes the old compatible form `::1.2.3.4`.
fn push_ip6(out: &mut Vec<u8>, octets: [u8; 16]) {
    use std::io::Write as _;
    if octets[..12] == [0; 12] && octets[12..14] != [0; 2] {
        out.extend_from_slice(b"::");
        push_ip4(out, [octets[12], octets[13], octets[14], octets[15]]);
    } else {
        // Writing into a Vec cannot fail.
        let _ = write!(out, "{}", Ipv6Addr::from(octets));
    }
}

/// Address of an unknown driver: hexadecimal words. Lustre's formatter loses count after the second
/// of several words and overwrites the first ones; the text is to be the same.
fn push_words(out: &mut Vec<u8>, nid: &Parts) {
    let start = out.len();
    let mut keep = 0;
    for (i, word) in nid.address.chunks_exact(4).take(nid.address_bytes.div_ceil(4)).enumerate() {
        out.truncate(start + keep);
        if i > 0 {
            out.push(b':');
        }
        push_hex(out, word.iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte)));
        keep = out.len() - start - keep;
    }
    out.truncate(start + keep);
}

impl fmt::Display for Nid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = Vec::with_capacity(48);
        self.write_text(&mut text);
        f.pad(&String::from_utf8_lossy(&text))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn large(size: u8, driver: u8, network: u16, address: &[u8]) -> Nid {
        let mut bytes = [0; 20];
        bytes[0] = size;
        bytes[1] = driver;
        bytes[2..4].copy_from_slice(&network.to_be_bytes());
        bytes[4..4 + address.len()].copy_from_slice(address);
        Nid::Large(bytes)
    }

    fn ip6(text: &str) -> [u8; 16] {
        text.parse::<Ipv6Addr>().unwrap().octets()
    }

    #[test]
    fn nids_print_as_lfs_does() {
        let lo = [0, 0, 0, 0];
        let cases = [
            ("the small layout", Nid::Small(0x0002_0000_c0a8_0105), "192.168.1.5@tcp"),
            ("with a network number", Nid::Small(0x0005_0001_0a00_0001), "10.0.0.1@o2ib1"),
            ("the large layout", large(0, 2, 0, &[192, 168, 1, 5]), "192.168.1.5@tcp"),
            ("large, with a network number", large(0, 5, 1, &[10, 0, 0, 1]), "10.0.0.1@o2ib1"),
            ("the highest network number", large(0, 2, 0xffff, &[1, 2, 3, 4]), "1.2.3.4@tcp65535"),
            ("loopback", large(0, 9, 0, &lo), "0@lo"),
            ("loopback, small", Nid::Small(0x0009_0000_0000_0000), "0@lo"),
            ("records of the server itself", Nid::Large([0; 20]), "0@<0:0>"),
            ("the same, small", Nid::Small(0), "0@<0:0>"),
            ("Gemini", Nid::Small(0x000d_0063_0000_0bb8), "3000@gni99"),
            ("Gemini IP", Nid::Small(0x000e_0000_0a0b_0c0d), "10.11.12.13@gip"),
            ("Portals 4", Nid::Small(0x000f_0000_0000_002a), "42@ptlf"),
            ("kfabric", Nid::Small(0x0010_0002_0000_0041), "65@kfi2"),
            ("a reserved number", Nid::Small(0x0011_0000_0000_00ff), "ff@<17:0>"),
            ("EFA", large(0, 18, 0, &[10, 0, 0, 7]), "10.0.0.7@efa"),
            ("BXI v3", Nid::Small(0x0013_0000_0000_0007), "7@bxi3f"),
            ("an unknown driver", Nid::Small(0x00c8_0003_dead_beef), "deadbeef@<200:3>"),
            ("any", Nid::Small(u64::MAX), "<?>"),
            ("any, large", large(0, 0xff, 0, &lo), "<?>"),
            ("IPv6", large(12, 2, 0, &ip6("2001:db8::7")), "2001:db8::7@tcp"),
            ("IPv6 with a network", large(12, 18, 4, &ip6("fe80::1:2")), "fe80::1:2@efa4"),
            ("IPv6 loopback", large(12, 2, 0, &ip6("::1")), "::1@tcp"),
            ("IPv4 mapped", large(12, 2, 0, &ip6("::ffff:1.2.3.4")), "::ffff:1.2.3.4@tcp"),
            ("IPv4 compatible", large(12, 2, 0, &ip6("::1.2.3.4")), "::1.2.3.4@tcp"),
            ("o2ib knows IPv4 only", large(12, 5, 0, &[10, 0, 0, 1, 9, 9]), "10.0.0.1@o2ib"),
            ("an odd size", large(5, 2, 0, &[10, 0, 0, 1]), "@tcp"),
            ("two words: right", large(4, 200, 0, &[0, 0, 0, 1, 0, 0, 0, 2]), "1:@<200:0>"),
            ("a size beyond the end", large(255, 200, 0, &[0, 0, 0, 1]), "1:@<200:0>"),
        ];
        for (what, nid, want) in cases {
            assert_eq!(nid.to_string(), want, "{what}");
        }
    }

    #[test]
    fn layouts_turn_into_each_other_where_they_can() {
        let tcp = [0, 2, 0, 0, 0xc0, 0xa8, 1, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(Nid::Small(0x0002_0000_c0a8_0105).to_large(), tcp);
        assert_eq!(Nid::Large(tcp).to_small(), 0x0002_0000_c0a8_0105);
        assert_eq!(large(12, 2, 0, &ip6("2001:db8::7")).to_small(), 0, "does not fit");
        assert_eq!(Nid::Large(Nid::Small(u64::MAX).to_large()).to_small(), u64::MAX);
    }

    proptest! {
        #[test]
        fn any_bytes_print(bytes in any::<[u8; 20]>()) {
            prop_assert!(Nid::Large(bytes).to_string().len() <= 64);
        }

        #[test]
        fn small_nids_survive_the_large_layout(number in 0..0xff_u64 << 48) {
            let small = Nid::Small(number);
            let large = Nid::Large(small.to_large());
            prop_assert_eq!(large.to_small(), number);
            prop_assert_eq!(large.to_string(), small.to_string());
        }
    }
}
