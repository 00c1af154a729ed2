//! Address ranges as operators write them: `192.0.2.7`, `10.0.0.0/8`, `2001:db8::/32`.
//!
//! An IPv4 address that came in by an IPv6 socket (`::ffff:192.0.2.7`) is the IPv4 address.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A range of addresses: one address, or all that share its first bits (RFC 4632).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Network {
    /// Its first address: the bits behind the prefix are 0.
    first: IpAddr,
    bits: u8,
}

/// Not an address range.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no address range; write an address, as 192.0.2.7, or a range, as 10.0.0.0/8")]
pub struct BadNetwork(String);

impl Network {
    /// Whether `address` is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.first, address.to_canonical()) {
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
            (first, address) => prefix(address, self.bits) == first,
        }
    }
}

/// The address with all bits behind the first `bits` set to 0.
fn prefix(address: IpAddr, bits: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            IpAddr::V4((address.to_bits() & mask).into())
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            IpAddr::V6((address.to_bits() & mask).into())
        }
    }
}

impl FromStr for Network {
    type Err = BadNetwork;

    fn from_str(text: &str) -> Result<Self, BadNetwork> {
        let bad = || BadNetwork(text.to_owned());
        let (address, bits) = match text.trim().split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text.trim(), None),
        };
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        // `::ffff:10.0.0.0/104` is nobody's way to write 10.0.0.0/8.
        let address = if bits.is_none() { address.to_canonical() } else { address };
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            Some(bits) => bits.parse().ok().filter(|bits| *bits <= most).ok_or_else(bad)?,
            None => most,
        };
        Ok(Self { first: prefix(address, bits), bits })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = if self.first.is_ipv4() { 32 } else { 128 };
        if self.bits == whole {
            return fmt::Display::fmt(&self.first, f);
        }
        write!(f, "{}/{}", self.first, self.bits)
    }
}

impl Serialize for Network {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_holds_its_addresses_and_no_others() {
        for (range, address, expected) in [
            ("127.0.0.0/8", "127.1.2.3", true),
            ("127.0.0.0/8", "::ffff:127.0.0.1", true),
            ("127.0.0.0/8", "128.0.0.1", false),
            ("127.0.0.0/8", "::1", false),
            ("::1/128", "::1", true),
            ("192.0.2.7", "192.0.2.7", true),
            ("192.0.2.7", "192.0.2.8", false),
            ("192.0.2.7/30", "192.0.2.5", true),
            ("0.0.0.0/0", "203.0.113.9", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("::/0", "2001:db8::1", true),
            ("2001:db8::/33", "2001:db8:8000::1", false),
            ("::ffff:192.0.2.7", "192.0.2.7", true),
        ] {
            let network: Network = range.parse().expect(range);
            let address: IpAddr = address.parse().expect(address);
            assert_eq!(network.contains(address), expected, "{range} {address}");
        }
    }

    #[test]
    fn is_shown_as_it_is_meant() {
        for (written, shown) in
            [("10.1.2.3/8", "10.0.0.0/8"), ("192.0.2.7/32", "192.0.2.7"), ("::1/128", "::1")]
        {
            assert_eq!(written.parse::<Network>().expect(written).to_string(), shown);
        }
        for bad in ["", "10.0.0", "10.0.0.0/33", "::/129", "10.0.0.0/-1", "10.0.0.0/", "host"] {
            let error = bad.parse::<Network>().expect_err(bad).to_string();
            assert!(error.contains("as 10.0.0.0/8"), "{error}");
        }
    }
}
