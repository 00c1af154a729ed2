//! Revoking, and the list of what is revoked: `crl.pem`.
//!
//! `crl.pem` holds one CRL (RFC 5280, section 5) for each CA: that of the signing CA first, then
//! the root's where there is an issuing CA. One whose key is not here stays as it is, as do those
//! of earlier issuing CAs. Certificates that have ended leave the list: nobody takes them anyway.
//!
//! **Invariant:** a CRL's number only grows, even when `crl.pem` is lost: it is at least the time
//! in seconds. What is revoked stays revoked: the new list has all that the ledger and the list
//! before it have.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use rcgen::{
    CertificateRevocationListParams, KeyIdMethod, RevocationReason, RevokedCertParams, SerialNumber,
};

use super::authority::{self, Authority, serial_number};
use super::error::CertError;
use super::files;
use super::inspect::{blocks, hexadecimal, time};
use super::ledger::{self, Entry, Ledger, Revocation};
use crate::clock::Timestamp;

/// `crl.pem` without its ending.
pub(super) const NAME: &str = "crl";
/// How long a CRL counts, unless something else is asked for. Some servers refuse every client
/// once it has ended.
pub const DAYS: u16 = 90;
const DAY_MS: i64 = 86_400_000;
/// Clocks that go a little slow shall take a new list too.
const SKEW_MS: i64 = 3_600_000;

/// The reasons of RFC 5280, section 5.3.1, that a CA without holds and deltas has.
pub const REASONS: [(&str, RevocationReason); 7] = [
    ("unspecified", RevocationReason::Unspecified),
    ("keyCompromise", RevocationReason::KeyCompromise),
    ("cACompromise", RevocationReason::CaCompromise),
    ("affiliationChanged", RevocationReason::AffiliationChanged),
    ("superseded", RevocationReason::Superseded),
    ("cessationOfOperation", RevocationReason::CessationOfOperation),
    ("privilegeWithdrawn", RevocationReason::PrivilegeWithdrawn),
];

/// The reason of that name, in any case.
pub fn reason_named(word: &str) -> Option<RevocationReason> {
    REASONS.iter().find(|(name, _)| name.eq_ignore_ascii_case(word)).map(|(_, reason)| *reason)
}

pub(super) fn reason_word(reason: RevocationReason) -> &'static str {
    REASONS.iter().find(|(_, known)| *known == reason).map_or("unspecified", |(name, _)| name)
}

/// One CRL of the file.
pub(super) struct List {
    /// DER of the CA's name.
    pub(super) issuer: Vec<u8>,
    number: u64,
    pub(super) ends: Option<Timestamp>,
    /// By serial.
    pub(super) revoked: BTreeMap<String, Revocation>,
    der: Vec<u8>,
}

/// The lists of `crl.pem` in `directory`; none where there is no such file.
pub(super) fn read(directory: &Path) -> Result<Vec<List>, CertError> {
    let path = path(directory);
    if path.exists() { read_file(&path) } else { Ok(Vec::new()) }
}

pub(super) fn read_file(path: &Path) -> Result<Vec<List>, CertError> {
    let bad = || CertError::Unreadable {
        path: path.to_owned(),
        detail: "it holds no certificate revocation list; move it away, and `watchbell certs crl` \
                 makes it anew from what is revoked"
            .to_owned(),
    };
    let text = files::read(path)?;
    let lists: Vec<List> = blocks(&text, "X509 CRL")
        .into_iter()
        .map(|block| parse(block.contents).ok_or_else(bad))
        .collect::<Result<_, _>>()?;
    if lists.is_empty() { Err(bad()) } else { Ok(lists) }
}

fn parse(der: Vec<u8>) -> Option<List> {
    let (rest, list) = x509_parser::parse_x509_crl(&der).ok()?;
    if !rest.is_empty() {
        return None;
    }
    let revoked = list
        .iter_revoked_certificates()
        .map(|one| {
            let code = one.reason_code().map(|(_, code)| code.0);
            let reason = REASONS
                .iter()
                .map(|(_, reason)| *reason)
                .find(|reason| Some(*reason as u8) == code);
            let at = time(one.revocation_date.timestamp());
            (hexadecimal(one.raw_serial()), Revocation { at, reason })
        })
        .collect();
    let issuer = list.issuer().as_raw().to_vec();
    let number = list.crl_number().and_then(|number| u64::try_from(number).ok()).unwrap_or(0);
    let ends = list.next_update().map(|ends| time(ends.timestamp()));
    Some(List { issuer, number, ends, revoked, der })
}

/// Where the CRL of `directory` is.
pub fn path(directory: &Path) -> PathBuf {
    directory.join(format!("{NAME}.pem"))
}

/// A CRL that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// Where.
    pub path: PathBuf,
    /// The number of the signing CA's list.
    pub number: u64,
    /// When the first of its lists ends.
    pub ends: Timestamp,
    /// How many certificates are on it.
    pub revoked: usize,
    /// Keys that are elsewhere, so that their CA's list is the one from before, or missing.
    pub without: Vec<PathBuf>,
}

/// What was revoked, and the list that says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revoked {
    /// Name and serial of each.
    pub certificates: Vec<(String, String)>,
    /// The list.
    pub published: Published,
}

/// Revokes every certificate of that name which still counts, or the one with that serial, and
/// writes the CRL.
///
/// # Errors
/// See [`CertError`]; then nothing was revoked, or what was revoked is in the ledger and the next
/// CRL has it.
pub fn revoke(
    directory: &Path,
    wanted: &str,
    reason: RevocationReason,
    now: Timestamp,
) -> Result<Revoked, CertError> {
    // For a better answer than that the directory is not there.
    authority::signing(directory)?;
    let _locked = files::lock(directory)?;
    let ledger = Ledger::read(directory)?;
    let serial = wanted.replace(':', "").to_ascii_uppercase();
    let serial = serial.trim_start_matches("0X").trim_start_matches("00");
    let mut found: Vec<&Entry> = ledger.of(wanted).collect();
    if found.is_empty() {
        let is_it = |entry: &&Entry| entry.certificate.serial == serial;
        found = ledger.entries.iter().filter(is_it).collect();
    }
    if found.is_empty() {
        let (wanted, directory) = (wanted.to_owned(), directory.to_owned());
        return Err(CertError::NoSuch { wanted, directory });
    }
    found.retain(|entry| entry.is_live(now));
    if found.is_empty() {
        return Err(CertError::NothingToRevoke(wanted.to_owned()));
    }
    revoke_entries(directory, &found, reason, now)
}

/// Says why one of these certificates could not be revoked, before any of them is.
pub(super) fn check_revocable(
    directory: &Path,
    entries: &[&Entry],
    now: Timestamp,
) -> Result<(), CertError> {
    let authorities = authority::all(directory)?;
    for entry in entries {
        let signed = |one: &&Authority| entry.certificate.is_issued_by(&one.certificate);
        match authorities.iter().find(signed) {
            None => {
                return Err(CertError::OtherCa {
                    name: entry.name.clone(),
                    serial: entry.certificate.serial.clone(),
                    directory: directory.to_owned(),
                });
            }
            Some(signer) if entry.certificate.serial == signer.certificate.serial => {
                return Err(signer.unfit(
                    "a root cannot be revoked; take it out of broker.client_ca and off the devices",
                ));
            }
            Some(signer) => drop(signer.signer(now)?),
        }
    }
    Ok(())
}

/// Revokes these certificates, under the lock that the caller holds.
pub(super) fn revoke_entries(
    directory: &Path,
    entries: &[&Entry],
    reason: RevocationReason,
    now: Timestamp,
) -> Result<Revoked, CertError> {
    check_revocable(directory, entries, now)?;
    // RFC 5280, section 5.3.1: unspecified is said by leaving the reason out.
    let reason = Some(reason).filter(|reason| *reason != RevocationReason::Unspecified);
    for entry in entries {
        ledger::record_revocation(directory, entry, Revocation { at: now, reason })?;
    }
    let name = |entry: &&Entry| (entry.name.clone(), entry.certificate.serial.clone());
    let certificates = entries.iter().map(name).collect();
    Ok(Revoked { certificates, published: publish_locked(directory, DAYS, now)? })
}

/// Writes the CRL again, with a new number and `days` to count.
///
/// # Errors
/// See [`CertError`].
pub fn publish(directory: &Path, days: u16, now: Timestamp) -> Result<Published, CertError> {
    authority::signing(directory)?;
    let _locked = files::lock(directory)?;
    publish_locked(directory, days, now)
}

pub(super) fn publish_locked(
    directory: &Path,
    days: u16,
    now: Timestamp,
) -> Result<Published, CertError> {
    let mut old = read(directory)?;
    let ledger = Ledger::read(directory)?;
    let authorities = authority::all(directory)?;
    let mut written = Vec::new();
    let mut without = Vec::new();
    for (index, signer) in authorities.iter().enumerate() {
        let known = old.iter().position(|list| list.issuer == signer.certificate.subject);
        let known = known.map(|index| old.remove(index));
        // The root of an issuing CA has its key put away, as it should.
        if index > 0 && !signer.has_key() {
            without.push(signer.pair.key.clone());
            written.extend(known);
            continue;
        }
        // Then its list has to last until that key is fetched the next time.
        let days = if index > 0 { authority::ISSUING_DAYS } else { days };
        written.push(sign(signer, known.as_ref(), &ledger, days, now)?);
    }
    written.extend(old);
    let text: String = written.iter().map(|list| pem(&list.der)).collect();
    let path = path(directory);
    files::write(&path, &text, files::PUBLIC)?;
    Ok(Published {
        path,
        number: written.first().map_or(0, |list| list.number),
        ends: written.iter().filter_map(|list| list.ends).min().unwrap_or(Timestamp::MAX),
        revoked: written.iter().map(|list| list.revoked.len()).sum(),
        without,
    })
}

/// One CA's list: all that it had and all that the ledger has, less what has ended.
fn sign(
    signer: &Authority,
    before: Option<&List>,
    ledger: &Ledger,
    days: u16,
    now: Timestamp,
) -> Result<List, CertError> {
    let issuer = signer.signer(now)?;
    let mut revoked = before.map(|list| list.revoked.clone()).unwrap_or_default();
    for entry in &ledger.entries {
        let Entry { certificate, revocation, .. } = entry;
        if !certificate.is_issued_by(&signer.certificate) {
            continue;
        }
        match revocation {
            // A day longer than it counts, for clocks that go slow.
            Some(_) if now.as_millis() > certificate.ends.as_millis().saturating_add(DAY_MS) => {
                revoked.remove(&certificate.serial);
            }
            Some(revocation) => {
                revoked.insert(certificate.serial.clone(), *revocation);
            }
            None => {}
        }
    }
    let clock = u64::try_from(now.as_secs()).unwrap_or(0);
    let number = before.map_or(clock, |list| clock.max(list.number + 1));
    let ends = now.as_millis().saturating_add(i64::from(days) * DAY_MS);
    let ends = Timestamp::from_millis(ends.min(signer.certificate.ends.as_millis()));
    let begins = Timestamp::from_millis(now.as_millis().saturating_sub(SKEW_MS));
    let moment = |at: Timestamp| rcgen::date_time_ymd(1970, 1, 1) + at.since(Timestamp::default());
    let params = CertificateRevocationListParams {
        this_update: moment(begins),
        next_update: moment(ends),
        crl_number: SerialNumber::from(trimmed(number)),
        issuing_distribution_point: None,
        revoked_certs: revoked
            .iter()
            .map(|(serial, revocation)| RevokedCertParams {
                serial_number: serial_number(serial),
                revocation_time: moment(revocation.at),
                reason_code: revocation.reason,
                invalidity_date: None,
            })
            .collect(),
        // The id that its certificate gives itself, however that was made.
        key_identifier_method: match &signer.certificate.subject_key_id {
            Some(id) => KeyIdMethod::PreSpecified(id.clone()),
            None => KeyIdMethod::Sha256,
        },
    };
    let list = params.signed_by(&issuer)?;
    let subject = signer.certificate.subject.clone();
    Ok(List { issuer: subject, number, ends: Some(ends), revoked, der: list.der().to_vec() })
}

/// A number without leading zeros, as DER wants it.
fn trimmed(number: u64) -> Vec<u8> {
    let bytes = number.to_be_bytes();
    bytes.into_iter().skip_while(|byte| *byte == 0).collect()
}

fn pem(der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> = text
        .as_bytes()
        .chunks(64)
        .map(|line| std::str::from_utf8(line).expect("base64 is ASCII"))
        .collect();
    format!("-----BEGIN X509 CRL-----\n{}\n-----END X509 CRL-----\n", lines.join("\n"))
}
