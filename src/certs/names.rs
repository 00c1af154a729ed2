//! Names in certificates: which are taken, and as what they stand there.
//!
//! Pure. A certificate's name is also a file and a device's identity, so what could leave the
//! directory or mean something else in an access rule is refused.

use std::net::IpAddr;

use rcgen::{DistinguishedName, DnType, SanType};

use super::error::CertError;

/// Names of files that are something else.
const TAKEN: [&str; 4] = ["ca", "issuing", "server", "crl"];

/// Refuses what is not safe as a file, a DNS label and a client id at once.
pub(super) fn check(name: &str) -> Result<(), CertError> {
    let fits = (1..=64).contains(&name.len())
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && !TAKEN.contains(&name);
    if fits { Ok(()) } else { Err(CertError::BadName(name.to_owned())) }
}

/// Refuses what cannot name a CA. A common name has 64 characters at most, of which the issuing
/// CA takes some for itself.
pub(super) fn check_ca(name: &str) -> Result<(), CertError> {
    let fits = (1..=48).contains(&name.chars().count())
        && name.trim() == name
        && !name.chars().any(char::is_control);
    if fits { Ok(()) } else { Err(CertError::BadCaName(name.to_owned())) }
}

/// The alternative names of a device: its name, if that is a host name, and its URN; then what
/// else it shall stand for. A name with `_` is no DNS name, and some TLS stacks refuse a
/// certificate with such a one: it is then in the common name alone, which is where the broker
/// looks next, so no URN stands before it.
pub(super) fn of_client(
    name: &str,
    hosts: &[String],
    uris: &[String],
) -> Result<Vec<SanType>, CertError> {
    let mut names = Vec::new();
    if is_dns(name) {
        names.push(SanType::DnsName(name.try_into()?));
        let urn = format!("urn:watchbell:device:{name}");
        names.push(SanType::URI(urn.as_str().try_into()?));
    }
    more(&mut names, hosts, uris)?;
    Ok(names)
}

/// The alternative names of a server: every host name and address, each once.
pub(super) fn of_server(hosts: &[String], uris: &[String]) -> Result<Vec<SanType>, CertError> {
    let mut names = Vec::new();
    more(&mut names, hosts, uris)?;
    Ok(names)
}

fn more(names: &mut Vec<SanType>, hosts: &[String], uris: &[String]) -> Result<(), CertError> {
    for host in hosts {
        let san = match host.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) if is_dns(host.strip_prefix("*.").unwrap_or(host)) => {
                SanType::DnsName(host.as_str().try_into()?)
            }
            Err(_) => return Err(CertError::BadHost(host.clone())),
        };
        if !names.contains(&san) {
            names.push(san);
        }
    }
    for uri in uris {
        if !is_uri(uri) {
            return Err(CertError::BadUri(uri.clone()));
        }
        names.push(SanType::URI(uri.as_str().try_into()?));
    }
    Ok(())
}

pub(super) fn common(name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    subject
}

pub(super) fn machine() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// A host name as RFC 1123 has it, without the final dot.
pub(super) fn is_dns(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

/// A scheme, a colon, and something behind it without blanks.
fn is_uri(text: &str) -> bool {
    let Some((scheme, rest)) = text.split_once(':') else { return false };
    text.len() <= 255
        && scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
        && !rest.is_empty()
        && rest.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_leave_the_directory_or_lie_are_refused() {
        for name in ["pump-7", "Pump_7", "a", "7.b", &"x".repeat(64)] {
            check(name).expect(name);
        }
        let long = "x".repeat(65);
        for name in [
            "", ".", "..", "../x", "a/b", "/a", ".x", "-x", "a b", "ä", "a\n", "a\0", "ca",
            "server", "issuing", "crl", "a*", "a+b", &long,
        ] {
            check(name).expect_err(name);
        }
        check_ca("Kiel site, Förde").expect("a name");
        for name in ["", " x", "a\nb", &long] {
            check_ca(name).expect_err(name);
        }
    }

    #[test]
    fn hosts_and_uris() {
        for (host, fits) in [
            ("a", true),
            ("broker.example.org", true),
            ("*.example.org", true),
            ("192.168.1.7", true),
            ("fe80::1", true),
            ("", false),
            ("a..b", false),
            ("-a", false),
            ("a-", false),
            ("a_b", false),
            ("a b", false),
            ("http://x", false),
            ("*", false),
        ] {
            assert_eq!(of_server(&[host.to_owned()], &[]).is_ok(), fits, "{host}");
        }
        for (uri, fits) in [
            ("urn:site:kiel:pump-7", true),
            ("spiffe://kiel/pump/7", true),
            ("pump-7", false),
            (":x", false),
            ("urn:", false),
            ("urn:a b", false),
            ("urn:ä", false),
        ] {
            assert_eq!(of_client("a", &[], &[uri.to_owned()]).is_ok(), fits, "{uri}");
        }
    }

    #[test]
    fn a_name_that_is_no_host_name_stands_in_the_common_name_alone() {
        assert_eq!(of_client("pump-7", &[], &[]).expect("names").len(), 2);
        assert_eq!(of_client("pump_7", &[], &[]).expect("names"), []);
    }
}
