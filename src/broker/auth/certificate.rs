//! What a client certificate says of its holder. TLS has verified it; here it is only read.

use std::sync::Arc;

use serde::Deserialize;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::{GROUPS_MAX, NAME_CHARS_MAX};

/// A part of a certificate that can name its holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IdentityFrom {
    /// The first URI of its subject alternative names.
    SanUri,
    /// The first DNS name of its subject alternative names.
    SanDns,
    /// The first common name of its subject.
    Cn,
}

/// Who holds a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) identity: Arc<str>,
    /// The organizational units (OU) of its subject.
    pub(crate) groups: Vec<Arc<str>>,
}

/// The name in a certificate: the first of `from` that it has. `None` where it has none of them,
/// or one that is no name.
pub(crate) fn holder(der: &[u8], from: &[IdentityFrom]) -> Option<Holder> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let alternative = certificate.subject_alternative_name().ok().flatten();
    let names = alternative.map_or(&[][..], |extension| &extension.value.general_names[..]);
    let subject = certificate.subject();
    let identity = from.iter().find_map(|part| match part {
        IdentityFrom::SanUri => names.iter().find_map(|name| match name {
            GeneralName::URI(text) => Some(*text),
            _ => None,
        }),
        IdentityFrom::SanDns => names.iter().find_map(|name| match name {
            GeneralName::DNSName(text) => Some(*text),
            _ => None,
        }),
        IdentityFrom::Cn => subject.iter_common_name().find_map(|name| name.as_str().ok()),
    })?;
    let units = subject.iter_organizational_unit().filter_map(|unit| unit.as_str().ok());
    let groups = units.filter(|unit| is_name(unit)).take(GROUPS_MAX).map(Arc::from).collect();
    is_name(identity).then(|| Holder { identity: identity.into(), groups })
}

/// Whether a text can be an identity or a group: it stands in logs and is compared with patterns.
pub(super) fn is_name(text: &str) -> bool {
    (1..=NAME_CHARS_MAX).contains(&text.chars().count()) && !text.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use rcgen::{DnType, SanType};

    use super::*;

    fn certificate(names: &[SanType], common: Option<&str>, unit: Option<&str>) -> Vec<u8> {
        let mut params = rcgen::CertificateParams::default();
        params.subject_alt_names = names.to_vec();
        params.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(common) = common {
            params.distinguished_name.push(DnType::CommonName, common);
        }
        if let Some(unit) = unit {
            params.distinguished_name.push(DnType::OrganizationalUnitName, unit);
        }
        let key = rcgen::KeyPair::generate().expect("a key");
        params.self_signed(&key).expect("signed").der().to_vec()
    }

    #[test]
    fn a_certificate_is_called_by_the_first_part_that_it_has() {
        use IdentityFrom::{Cn, SanDns, SanUri};

        let dns = SanType::DnsName("pump-1".try_into().expect("a name"));
        let uri = SanType::URI("urn:pump:1".try_into().expect("a name"));
        let both = &[dns.clone(), uri][..];
        let all = &[SanUri, SanDns, Cn][..];
        for (names, common, from, expected) in [
            (&[dns][..], Some("other"), all, Some("pump-1")),
            (both, Some("other"), all, Some("urn:pump:1")),
            (both, Some("other"), &[SanDns], Some("pump-1")),
            (both, Some("other"), &[Cn, SanDns], Some("other")),
            (&[], Some("pump-2"), all, Some("pump-2")),
            (&[], Some("pump-2"), &[SanUri, SanDns], None),
            (&[], Some("pump\n2"), all, None),
            (&[], None, all, None),
        ] {
            let der = certificate(names, common, None);
            let found = holder(&der, from).map(|holder| holder.identity);
            assert_eq!(found.as_deref(), expected, "{common:?} {from:?}");
        }
        assert_eq!(holder(b"no certificate", all), None);
    }

    #[test]
    fn its_organizational_units_are_its_groups() {
        let der = certificate(&[], Some("pump-1"), Some("pumps"));
        let groups = holder(&der, &[IdentityFrom::Cn]).expect("a holder").groups;
        assert_eq!(groups, [Arc::from("pumps")]);
    }
}
