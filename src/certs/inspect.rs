//! What a certificate file says: read by x509-parser, kept as values of our own.
//!
//! Only the first certificate of a file counts; what follows it is its chain. Nothing here
//! trusts what it reads: whether a signature holds is asked where it matters.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

use rcgen::SanType;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::pem::Pem;
use x509_parser::prelude::X509Certificate;

use super::error::CertError;
use crate::clock::Timestamp;

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// It signs others.
    Ca,
    /// A server shows it.
    Server,
    /// A client shows it.
    Client,
}

impl Kind {
    /// As it is shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ca => "ca",
            Self::Server => "server",
            Self::Client => "client",
        }
    }
}

/// A certificate, as far as the CA asks.
#[derive(Clone, Debug)]
pub(super) struct Inspected {
    pub(super) kind: Kind,
    /// Upper-case hexadecimal, as `openssl x509 -serial` prints it.
    pub(super) serial: String,
    pub(super) common_name: String,
    pub(super) names: Vec<SanType>,
    pub(super) begins: Timestamp,
    pub(super) ends: Timestamp,
    /// DER of the name of whoever it is for, and of whoever has signed it.
    pub(super) subject: Vec<u8>,
    pub(super) issuer: Vec<u8>,
    pub(super) subject_key_id: Option<Vec<u8>>,
    pub(super) issuer_key_id: Option<Vec<u8>>,
    /// DER of its public key, with its algorithm.
    pub(super) public_key: Vec<u8>,
    /// How many CAs may be below it; `None`: any number.
    pub(super) cas_below: Option<u32>,
}

impl Inspected {
    /// Reads the first certificate of `text`, which is that of the file `path`.
    pub(super) fn read(path: &Path, text: &str) -> Result<Self, CertError> {
        let bad = |detail: String| CertError::Unreadable { path: path.to_owned(), detail };
        let pem = blocks(text, "CERTIFICATE")
            .into_iter()
            .next()
            .ok_or_else(|| bad("it holds no PEM certificate; move it elsewhere".to_owned()))?;
        let certificate =
            pem.parse_x509().map_err(|error| bad(format!("it holds no certificate: {error}")))?;
        Ok(Self::of(&certificate))
    }

    fn of(certificate: &X509Certificate<'_>) -> Self {
        let mut found = Self {
            kind: if certificate.is_ca() { Kind::Ca } else { Kind::Client },
            serial: hexadecimal(certificate.raw_serial()),
            common_name: String::new(),
            names: Vec::new(),
            begins: time(certificate.validity().not_before.timestamp()),
            ends: time(certificate.validity().not_after.timestamp()),
            subject: certificate.subject().as_raw().to_vec(),
            issuer: certificate.issuer().as_raw().to_vec(),
            subject_key_id: None,
            issuer_key_id: None,
            public_key: certificate.public_key().raw.to_vec(),
            cas_below: None,
        };
        if let Some(name) = certificate.subject().iter_common_name().next() {
            found.common_name = name.as_str().unwrap_or_default().to_owned();
        }
        for extension in certificate.iter_extensions() {
            match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(names) => {
                    found.names = names.general_names.iter().filter_map(alternative).collect();
                }
                ParsedExtension::SubjectKeyIdentifier(id) => {
                    found.subject_key_id = Some(id.0.to_vec());
                }
                ParsedExtension::AuthorityKeyIdentifier(id) => {
                    found.issuer_key_id = id.key_identifier.as_ref().map(|id| id.0.to_vec());
                }
                ParsedExtension::BasicConstraints(limits) => {
                    found.cas_below = limits.path_len_constraint;
                }
                ParsedExtension::ExtendedKeyUsage(usage)
                    if usage.server_auth && found.kind != Kind::Ca =>
                {
                    found.kind = Kind::Server;
                }
                _ => {}
            }
        }
        found
    }

    /// Whether `other` is the CA that has signed this one, as far as names and key ids say.
    pub(super) fn is_issued_by(&self, other: &Self) -> bool {
        let ids = self.issuer_key_id.as_ref().zip(other.subject_key_id.as_ref());
        self.issuer == other.subject && ids.is_none_or(|(asked, is)| asked == is)
    }

    /// Names and addresses for people.
    pub(super) fn name_texts(&self) -> Vec<String> {
        let text = |name: &SanType| match name {
            SanType::DnsName(text) | SanType::URI(text) => Some(text.as_str().to_owned()),
            SanType::IpAddress(address) => Some(address.to_string()),
            _ => None,
        };
        self.names.iter().filter_map(text).collect()
    }
}

fn alternative(name: &GeneralName<'_>) -> Option<SanType> {
    match name {
        GeneralName::DNSName(text) => Some(SanType::DnsName((*text).try_into().ok()?)),
        GeneralName::URI(text) => Some(SanType::URI((*text).try_into().ok()?)),
        GeneralName::IPAddress(bytes) => {
            let four = <[u8; 4]>::try_from(*bytes).map(|four| Ipv4Addr::from(four).into());
            let sixteen = || <[u8; 16]>::try_from(*bytes).map(|all| Ipv6Addr::from(all).into());
            Some(SanType::IpAddress(four.or_else(|_| sixteen()).ok()?))
        }
        _ => None,
    }
}

/// The PEM blocks of `text` with this label, up to the first that is damaged.
pub(super) fn blocks(text: &str, label: &str) -> Vec<Pem> {
    Pem::iter_from_buffer(text.as_bytes())
        .map_while(Result::ok)
        .filter(|block| block.label == label)
        .collect()
}

/// Bytes of a number as `openssl` prints them: upper case, no leading zero bytes.
pub(super) fn hexadecimal(bytes: &[u8]) -> String {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    bytes.iter().skip(zeros).map(|byte| format!("{byte:02X}")).collect()
}

/// The bytes of what [`hexadecimal`] has written.
pub(super) fn from_hexadecimal(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u32> = text.chars().map(|digit| digit.to_digit(16)).collect::<Option<_>>()?;
    if digits.is_empty() || !digits.len().is_multiple_of(2) {
        return None;
    }
    let byte = |pair: &[u32]| u8::try_from(pair.iter().fold(0, |high, low| high * 16 + low)).ok();
    digits.chunks(2).map(byte).collect()
}

/// A time of a certificate, which has whole seconds.
pub(super) fn time(seconds: i64) -> Timestamp {
    Timestamp::from_millis(seconds.saturating_mul(1000))
}
