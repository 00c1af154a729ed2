//! Issuing and renewing certificates of devices and servers.
//!
//! A device may keep its key and send a certificate signing request (PKCS #10). The request's
//! signature is checked, which shows that whoever made it has the key; then only its public key is
//! taken. What it says of names, rights and times is not: those are the CA's to give.
//!
//! The order on disk is key, ledger, certificate. **Invariant:** no certificate is handed out that
//! the ledger does not have, and none enters it whose key is nowhere.

use std::path::{Path, PathBuf};

use rcgen::{
    CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, RevocationReason, SanType, SubjectPublicKeyInfo,
};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::PublicKey;

use super::authority::{key_pair, random_serial, signing, valid};
use super::crl::{self, Revoked};
use super::error::CertError;
use super::inspect::{Inspected, Kind, blocks};
use super::ledger::{self, Entry, Ledger};
use super::{Pair, files, names};
use crate::clock::Timestamp;

/// How long a certificate counts, unless something else is asked for: what clients accept at most
/// of a server.
pub const DAYS: u16 = 397;
/// RSA keys below are no longer taken by anybody.
const RSA_BITS_MIN: usize = 2048;

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub struct Order {
    /// Its name: that of its files, its common name, and of a device its identity.
    pub name: String,
    /// For a server, not for a client.
    pub server: bool,
    /// More host names and addresses.
    pub hosts: Vec<String>,
    /// More names as URIs.
    pub uris: Vec<String>,
    /// Days that it counts; [`DAYS`] where nothing is said.
    pub days: Option<u16>,
    /// A certificate signing request, PEM, whose key it gets.
    pub request: Option<String>,
    /// Replaces one that is there.
    pub force: bool,
}

/// A certificate that was issued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// Its name.
    pub name: String,
    /// Upper-case hexadecimal, as `openssl x509 -serial` prints it.
    pub serial: String,
    /// Where it is.
    pub cert: PathBuf,
    /// Where its key is, if that was made now.
    pub key: Option<PathBuf>,
    /// When it ends.
    pub ends: Timestamp,
    /// Whether it ends earlier than asked, because its CA does.
    pub cut: bool,
    /// What was revoked in its favour.
    pub revoked: Option<Revoked>,
}

/// Issues a certificate.
///
/// # Errors
/// See [`CertError`].
pub fn issue(directory: &Path, order: &Order, now: Timestamp) -> Result<Issued, CertError> {
    names::check(&order.name)?;
    let names = if order.server {
        let own = names::is_dns(&order.name) || order.name.parse::<std::net::IpAddr>().is_ok();
        let mut hosts: Vec<String> = own.then(|| order.name.clone()).into_iter().collect();
        hosts.extend_from_slice(&order.hosts);
        if hosts.is_empty() {
            return Err(CertError::NoHost(order.name.clone()));
        }
        names::of_server(&hosts, &order.uris)?
    } else {
        names::of_client(&order.name, &order.hosts, &order.uris)?
    };
    let bearer = Bearer::of(order.request.as_deref())?;
    // For a better answer than that the directory is not there.
    signing(directory)?;
    let _locked = files::lock(directory)?;
    if !order.force {
        refuse_taken(directory, &order.name, now)?;
    }
    let leaf = Leaf {
        name: &order.name,
        common_name: &order.name,
        server: order.server,
        names,
        days: order.days.unwrap_or(DAYS),
    };
    hand_out(directory, leaf, &bearer, now)
}

/// A name is free where nothing of it counts.
fn refuse_taken(directory: &Path, name: &str, now: Timestamp) -> Result<(), CertError> {
    let ledger = Ledger::read(directory)?;
    let live = ledger.of(name).find(|entry| entry.is_live(now));
    match (ledger::in_place(directory, name), live) {
        (Some(path), live) if live.is_some() || ledger.current(name).is_none() => {
            Err(CertError::Exists { path, name: name.to_owned() })
        }
        (None, Some(live)) => Err(CertError::Issued {
            name: name.to_owned(),
            serial: live.certificate.serial.clone(),
            ends: live.certificate.ends.to_string(),
        }),
        _ => Ok(()),
    }
}

/// How a certificate is renewed.
#[derive(Clone, Debug, Default)]
pub struct Renewal {
    /// A new key, instead of the one that it has.
    pub new_key: bool,
    /// A certificate signing request, PEM, whose key it gets.
    pub request: Option<String>,
    /// Days that it counts; as many as the one before where nothing is said.
    pub days: Option<u16>,
    /// Revokes every earlier one of that name, which would count until it ends.
    pub revoke_old: bool,
}

/// Issues another certificate for a name that has one: the same names, and the same key unless
/// another is asked for. Where the key stays, one file changes and nobody ever sees a pair that
/// does not fit; the device gets one file and keeps its key.
///
/// # Errors
/// See [`CertError`].
pub fn renew(
    directory: &Path,
    name: &str,
    renewal: &Renewal,
    now: Timestamp,
) -> Result<Issued, CertError> {
    signing(directory)?;
    let _locked = files::lock(directory)?;
    let ledger = Ledger::read(directory)?;
    let Some(current) = ledger.current(name) else {
        let (wanted, directory) = (name.to_owned(), directory.to_owned());
        return Err(CertError::NoSuch { wanted, directory });
    };
    let old = &current.certificate;
    if old.kind == Kind::Ca {
        return Err(CertError::RenewCa(name.to_owned()));
    }
    if current.revocation.is_some() {
        return Err(CertError::Revoked(name.to_owned()));
    }
    let bearer = match (&renewal.request, renewal.new_key) {
        (Some(request), _) => Bearer::of(Some(request))?,
        (None, true) => Bearer::of(None)?,
        (None, false) => Bearer::same(directory, current)?,
    };
    let length = old.ends.since(old.begins).as_secs() / 86_400;
    let leaf = Leaf {
        name,
        common_name: &old.common_name,
        server: old.kind == Kind::Server,
        names: old.names.clone(),
        days: renewal.days.unwrap_or_else(|| u16::try_from(length).unwrap_or(DAYS).max(1)),
    };
    let mut earlier: Vec<&Entry> = ledger.of(name).filter(|entry| entry.is_live(now)).collect();
    earlier.retain(|_| renewal.revoke_old);
    crl::check_revocable(directory, &earlier, now)?;
    let mut issued = hand_out(directory, leaf, &bearer, now)?;
    if !earlier.is_empty() {
        let reason = RevocationReason::Superseded;
        issued.revoked = Some(crl::revoke_entries(directory, &earlier, reason, now)?);
    }
    Ok(issued)
}

/// Whose key a certificate is for.
pub(super) enum Bearer {
    /// Made here.
    Made(Box<KeyPair>),
    /// It stays where it is.
    Kept(SubjectPublicKeyInfo),
    /// It comes with a request.
    Asked(SubjectPublicKeyInfo),
}

impl Bearer {
    pub(super) fn of(request: Option<&str>) -> Result<Self, CertError> {
        match request {
            Some(text) => Ok(Self::Asked(public_key(&Request::read(text)?.public_key)?)),
            None => Ok(Self::Made(Box::new(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?))),
        }
    }

    /// The key of the certificate that is there. If its private key is there too, it has to be
    /// that one.
    fn same(directory: &Path, current: &Entry) -> Result<Self, CertError> {
        let Pair { cert, key } = Pair::of(directory, &current.name);
        let pair = Pair { cert, key };
        let known = &current.certificate.public_key;
        if pair.key.exists() && key_pair(&pair)?.subject_public_key_info() != *known {
            let (Pair { cert, key }, name) = (pair, current.name.clone());
            return Err(CertError::KeyDiffers { key, cert, name });
        }
        Ok(Self::Kept(public_key(known)?))
    }
}

fn public_key(der: &[u8]) -> Result<SubjectPublicKeyInfo, CertError> {
    SubjectPublicKeyInfo::from_der(der)
        .map_err(|_| CertError::BadRequest("its key is of a kind that is not supported; use P-256"))
}

/// What counts of a certificate signing request.
pub struct Request {
    /// DER of the public key.
    public_key: Vec<u8>,
    /// The common name that it asks for.
    pub name: Option<String>,
}

impl Request {
    /// Reads a request in PEM and checks its signature.
    ///
    /// # Errors
    /// It is none, its signature does not hold, or its key is too weak.
    pub fn read(text: &str) -> Result<Self, CertError> {
        let bad = CertError::BadRequest;
        let mut found = blocks(text, "CERTIFICATE REQUEST");
        found.extend(blocks(text, "NEW CERTIFICATE REQUEST"));
        let Some(block) = found.first() else {
            return Err(bad(
                "there is none in PEM; `openssl req -new -key KEY -subj /CN=NAME` makes one",
            ));
        };
        let (_, request) = X509CertificationRequest::from_der(&block.contents)
            .map_err(|_| bad("it is damaged"))?;
        let info = &request.certification_request_info;
        // First, because signatures of such keys are not looked at either.
        if let Ok(PublicKey::RSA(key)) = info.subject_pki.parsed()
            && key.key_size() < RSA_BITS_MIN
        {
            return Err(bad("its RSA key is too weak; use 2048 bits, or better P-256"));
        }
        request
            .verify_signature()
            .map_err(|_| bad("its signature does not hold, so it was not made with its key"))?;
        let name = info.subject.iter_common_name().next();
        Ok(Self {
            public_key: info.subject_pki.raw.to_vec(),
            name: name.and_then(|name| name.as_str().ok()).map(str::to_owned),
        })
    }
}

/// What stands in a certificate that signs nothing.
pub(super) struct Leaf<'a> {
    pub(super) name: &'a str,
    pub(super) common_name: &'a str,
    pub(super) server: bool,
    pub(super) names: Vec<SanType>,
    pub(super) days: u16,
}

/// Signs, and writes key, ledger and certificate. The caller holds the lock.
pub(super) fn hand_out(
    directory: &Path,
    leaf: Leaf<'_>,
    bearer: &Bearer,
    now: Timestamp,
) -> Result<Issued, CertError> {
    let pair = Pair::of(directory, leaf.name);
    let name = leaf.name.to_owned();
    let (text, cut) = match bearer {
        Bearer::Asked(_) if pair.key.exists() => return Err(CertError::KeyInTheWay(pair.key)),
        Bearer::Made(key) => sign(directory, leaf, key.as_ref(), now)?,
        Bearer::Kept(key) | Bearer::Asked(key) => sign(directory, leaf, key, now)?,
    };
    let key = match bearer {
        Bearer::Made(made) => {
            files::write(&pair.key, &made.serialize_pem(), files::PRIVATE)?;
            Some(pair.key)
        }
        Bearer::Kept(_) | Bearer::Asked(_) => None,
    };
    if pair.cert.exists() {
        // One from before there was a ledger can still be revoked.
        ledger::adopt(directory, &name, &pair.cert)?;
    }
    ledger::record(directory, &name, &text)?;
    files::write(&pair.cert, &text, files::PUBLIC)?;
    let Inspected { serial, ends, .. } = Inspected::read(&pair.cert, &text)?;
    Ok(Issued { name, serial, cert: pair.cert, key, ends, cut, revoked: None })
}

/// The certificate and its chain, and whether it ends earlier than asked.
fn sign(
    directory: &Path,
    leaf: Leaf<'_>,
    key: &impl PublicKeyData,
    now: Timestamp,
) -> Result<(String, bool), CertError> {
    let signer = signing(directory)?;
    let issuer = signer.signer(now)?;
    if ledger::is_revoked(directory, signer.name, &signer.certificate)? {
        return Err(signer.unfit("it is revoked; docs/certificates.md says how a CA is replaced"));
    }
    let mut params = CertificateParams::default();
    params.distinguished_name = names::common(leaf.common_name);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![match leaf.server {
        true => ExtendedKeyUsagePurpose::ServerAuth,
        false => ExtendedKeyUsagePurpose::ClientAuth,
    }];
    params.subject_alt_names = leaf.names;
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(random_serial()?);
    let ends = valid(&mut params, now, leaf.days, signer.certificate.ends);
    let mut text = params.signed_by(key, &issuer)?.pem();
    text.push_str(signer.chain());
    Ok((text, ends == signer.certificate.ends))
}
