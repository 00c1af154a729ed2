//! The CAs of a directory: the root, and the issuing CA below it where there is one.
//!
//! The issuing CA signs where there is one; the root's key can then be put away. **Invariant:**
//! nothing is signed with a key that is not its certificate's, by a CA that has ended, has not
//! begun, or may not: what came out would be refused by every device, months later perhaps.

use std::path::Path;

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData as _, SerialNumber,
};

use super::error::CertError;
use super::inspect::{Inspected, Kind, from_hexadecimal};
use super::{Pair, files, ledger, names};
use crate::clock::Timestamp;

pub(super) const ROOT: &str = "ca";
pub(super) const ISSUING: &str = "issuing";
/// The issuing CA's share of the ten years: it is replaced once while the root lives.
pub(super) const ISSUING_DAYS: u16 = 1825;
const DAY_MS: i64 = 86_400_000;

/// A CA whose certificate is here; its key may be elsewhere.
pub(super) struct Authority {
    pub(super) name: &'static str,
    pub(super) pair: Pair,
    pub(super) pem: String,
    pub(super) certificate: Inspected,
}

/// The CAs of `directory`, the one that signs first.
pub(super) fn all(directory: &Path) -> Result<Vec<Authority>, CertError> {
    let mut found = Vec::new();
    for name in [ISSUING, ROOT] {
        found.extend(Authority::read(directory, name)?);
    }
    Ok(found)
}

/// The CA that signs in `directory`.
pub(super) fn signing(directory: &Path) -> Result<Authority, CertError> {
    let none = || CertError::NoCa(Pair::of(directory, ROOT).cert);
    all(directory)?.into_iter().next().ok_or_else(none)
}

impl Authority {
    /// `None` where there is none of that name.
    pub(super) fn read(directory: &Path, name: &'static str) -> Result<Option<Self>, CertError> {
        let pair = Pair::of(directory, name);
        if !pair.cert.exists() {
            return match pair.key.exists() {
                true => Err(CertError::CaIncomplete { missing: pair.cert, there: pair.key }),
                false => Ok(None),
            };
        }
        let pem = files::read(&pair.cert)?;
        let certificate = Inspected::read(&pair.cert, &pem)?;
        let found = Self { name, pair, pem, certificate };
        if found.certificate.kind != Kind::Ca {
            return Err(found.unfit("it is no CA's certificate; put the right one there"));
        }
        Ok(Some(found))
    }

    /// Makes the root.
    pub(super) fn make_root(
        directory: &Path,
        name: &str,
        days: u16,
        now: Timestamp,
    ) -> Result<Self, CertError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = names::common(name);
        // One below it: whether there will be an issuing CA is often decided later.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(random_serial()?);
        valid(&mut params, now, days, Timestamp::MAX);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.self_signed(&key)?;
        Self::write(directory, ROOT, &certificate, &key)
    }

    /// Makes the issuing CA below this root. Its name has a part of its serial number, because a
    /// CRL is found by the name of its CA, and an issuing CA may have successors.
    pub(super) fn make_issuing(&self, directory: &Path, now: Timestamp) -> Result<Self, CertError> {
        let issuer = self.signer(now)?;
        if self.certificate.cas_below == Some(0) {
            return Err(self.unfit(
                "it allows no CA below it; make a CA with an issuing CA in another directory \
                 (--dir), and give the broker both until the devices have moved",
            ));
        }
        let serial = random_serial()?;
        let mark: String = serial.as_ref().iter().take(2).map(|b| format!("{b:02x}")).collect();
        let root: String = self.certificate.common_name.chars().take(48).collect();
        let mut params = CertificateParams::default();
        params.distinguished_name = names::common(&format!("{root}, issuing {mark}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(serial);
        valid(&mut params, now, ISSUING_DAYS, self.certificate.ends);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.signed_by(&key, &issuer)?;
        // Whoever moves its files away can still revoke it.
        ledger::record(directory, ISSUING, &certificate.pem())?;
        Self::write(directory, ISSUING, &certificate, &key)
    }

    fn write(
        directory: &Path,
        name: &'static str,
        certificate: &Certificate,
        key: &KeyPair,
    ) -> Result<Self, CertError> {
        let pair = Pair::of(directory, name);
        if let Some(path) = [&pair.key, &pair.cert].into_iter().find(|path| path.exists()) {
            return Err(CertError::CaExists(path.clone()));
        }
        files::write(&pair.key, &key.serialize_pem(), files::PRIVATE)?;
        files::write(&pair.cert, &certificate.pem(), files::PUBLIC)?;
        let made = Self::read(directory, name)?;
        Ok(made.expect("it was written a moment ago, under the lock"))
    }

    pub(super) fn has_key(&self) -> bool {
        self.pair.key.exists()
    }

    /// What signs in its name.
    pub(super) fn signer(&self, now: Timestamp) -> Result<Issuer<'static, KeyPair>, CertError> {
        let (begins, ends) = (self.certificate.begins, self.certificate.ends);
        if now < begins {
            return Err(self.unfit(&format!(
                "it begins at {begins}, and this machine's clock says {now}; set the clock right"
            )));
        }
        if now >= ends {
            return Err(self.unfit(&format!(
                "it ended at {ends} (the clock says {now}); docs/certificates.md says how a CA is \
                 replaced"
            )));
        }
        if !self.has_key() {
            return Err(CertError::NoCaKey(self.pair.key.clone()));
        }
        let key = key_pair(&self.pair)?;
        if key.subject_public_key_info() != self.certificate.public_key {
            let (key, cert) = (self.pair.key.clone(), self.pair.cert.clone());
            return Err(CertError::CaKey { key, cert });
        }
        let issuer = Issuer::from_ca_cert_pem(&self.pem, key)?;
        let (usages, wanted) = (issuer.key_usages(), KeyUsagePurpose::KeyCertSign);
        if !usages.is_empty() && !usages.contains(&wanted) {
            return Err(self.unfit("its key usage does not allow it to sign certificates"));
        }
        Ok(issuer)
    }

    /// What devices show beside their own certificate: the issuing CA's. The root's they have.
    pub(super) fn chain(&self) -> &str {
        if self.name == ISSUING { &self.pem } else { "" }
    }

    pub(super) fn unfit(&self, detail: &str) -> CertError {
        CertError::UnfitCa { path: self.pair.cert.clone(), detail: detail.to_owned() }
    }
}

/// The key of a pair.
pub(super) fn key_pair(pair: &Pair) -> Result<KeyPair, CertError> {
    // The library's own text could repeat what is in the file.
    KeyPair::from_pem(&files::read(&pair.key)?).map_err(|_| CertError::Unreadable {
        path: pair.key.clone(),
        detail: "it holds no private key in PEM that can be used".to_owned(),
    })
}

/// 127 random bits: positive, and of the same length always.
pub(super) fn random_serial() -> Result<SerialNumber, CertError> {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes).map_err(CertError::Random)?;
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

pub(super) fn serial_number(serial: &str) -> SerialNumber {
    SerialNumber::from(from_hexadecimal(serial).unwrap_or_default())
}

/// From yesterday, because the clocks of devices are not always right, for `days` in all, and
/// never longer than `at_most`: when the CA ends, so does all that it has signed.
pub(super) fn valid(
    params: &mut CertificateParams,
    now: Timestamp,
    days: u16,
    at_most: Timestamp,
) -> Timestamp {
    let begins = now.as_millis().saturating_sub(DAY_MS);
    let wanted = begins.saturating_add(i64::from(days) * DAY_MS);
    let ends = Timestamp::from_millis(wanted.min(at_most.as_millis()));
    let epoch = || rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch() + Timestamp::from_millis(begins).since(Timestamp::default());
    params.not_after = epoch() + ends.since(Timestamp::default());
    ends
}
