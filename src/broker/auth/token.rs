//! JSON Web Tokens (RFC 7519) in place of a password.
//!
//! A token is believed when all of this holds: its algorithm is in `algorithms`, which the operator
//! has to write down; one of the keys of that algorithm's family verifies it (so a public key is
//! never taken for an HMAC secret); `exp` is there and ahead, `nbf` is not; issuer and audience are
//! those of the configuration. What the header says of keys (`jwk`, `jku`, `x5c`) is not looked at,
//! and a header with `crit` is refused (RFC 7515, section 4.1.11).
//!
//! A JWKS file is read again when it has changed: looked at every [`LOOK_EVERY`], or, for a key id
//! that nobody knows, every [`LOOK_AGAIN_AFTER`]. One that cannot be read leaves the old keys.
//!
//! Invariant: claims are not looked at before the signature is verified, and nothing here reads a
//! clock for them: `now` is a parameter.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use base64::Engine as _;
use jsonwebtoken::jwk::{JwkSet, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Header, Validation};
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::time::Instant;

use super::GROUPS_MAX;
use super::certificate::is_name;
use crate::clock::Timestamp;
use crate::clock::wall::WallTime;
use crate::secret::SecretSource;
use crate::span::Span;

/// How often the JWKS files are looked at, when tokens come.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How soon they are looked at again because of a key id that nobody knows.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Largest JWKS file, bytes, and most keys in all: each may be tried for each token.
const JWKS_BYTES_MAX: u64 = 256 * 1024;
const KEYS_MAX: usize = 100;
/// RFC 7518, section 3.2: an HMAC key is at least as long as its hash.
const SECRET_BYTES_MIN: usize = 32;

/// `[auth.jwt]`: tokens as passwords.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The keys that sign tokens; none: no tokens. Default none, at most 16.
    pub keys: Vec<Key>,
    /// Which algorithms a token may be signed with; needed where there are keys: `HS256`, `HS384`,
    /// `HS512`, `RS256`, `RS384`, `RS512`, `PS256`, `PS384`, `PS512`, `ES256`, `ES384`, `EdDSA`.
    pub algorithms: Vec<String>,
    /// What `iss` has to be; empty: anything. Default empty.
    pub issuer: String,
    /// What `aud` has to be, or to have in it; empty: anything. Default empty.
    pub audience: String,
    /// How far the issuer's clock may be off; default 30s, at most 10m.
    pub leeway: Span,
    /// The claim that is the identity; default `sub`.
    pub identity_claim: String,
    /// The claim that is the client id; empty: `auth.client_ids` says which are the identity's.
    /// Default empty.
    pub client_id_claim: String,
    /// The claim that lists the groups; empty: none. Default `groups`.
    pub groups_claim: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            keys: Vec::new(),
            algorithms: Vec::new(),
            issuer: String::new(),
            audience: String::new(),
            leeway: Span::from_secs(30),
            identity_claim: "sub".to_owned(),
            client_id_claim: String::new(),
            groups_claim: "groups".to_owned(),
        }
    }
}

/// One entry of `keys`: exactly one of the three.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Key {
    /// A shared secret of at least 32 bytes, for HS256 and its like.
    pub secret: Option<SecretSource>,
    /// A file with one public key, PEM: RSA, P-256, P-384 or Ed25519.
    pub public_key: Option<PathBuf>,
    /// A JWKS file (RFC 7517); read again when it changes.
    pub jwks: Option<PathBuf>,
}

/// What a token says of its holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Claims {
    pub(super) identity: Arc<str>,
    /// The client id that it is for, where one claim says so.
    pub(super) client_id: Option<String>,
    pub(super) groups: Vec<Arc<str>>,
    /// When it is over, leeway included.
    pub(super) ends_at: Timestamp,
}

/// A token that is not believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unbelieved {
    pub(super) why: &'static str,
    /// Whose it is, where one of our keys has signed it: identity, issuer and key id.
    pub(super) holder: Option<String>,
}

impl From<&'static str> for Unbelieved {
    fn from(why: &'static str) -> Self {
        Self { why, holder: None }
    }
}

/// One key, ready to use.
struct Verifier {
    id: Option<String>,
    /// The only algorithm that it is for, where the JWKS says so.
    algorithm: Option<Algorithm>,
    key: DecodingKey,
}

/// A JWKS file, and what was last read of it.
struct Watched {
    path: PathBuf,
    /// When the file was changed that is in force, or was refused.
    seen: Mutex<Option<SystemTime>>,
    keys: ArcSwap<Vec<Verifier>>,
}

/// Verifies tokens.
pub(super) struct Tokens {
    config: Config,
    algorithms: Vec<Algorithm>,
    fixed: Vec<Verifier>,
    watched: Vec<Watched>,
    last_look: Mutex<Instant>,
}

impl Tokens {
    /// Reads the keys; `None` where there are none to be read.
    ///
    /// # Errors
    /// Everything that is wrong, by key of the configuration.
    pub(super) fn load(config: &Config) -> Result<Option<Self>, Vec<String>> {
        let mut problems = config.problems();
        let (mut fixed, mut watched) = (Vec::new(), Vec::new());
        for (index, key) in config.keys.iter().enumerate() {
            let wrong = |name: &str, what: String| format!("auth.jwt.keys[{index}]{name}: {what}");
            let sources = [key.secret.is_some(), key.public_key.is_some(), key.jwks.is_some()];
            if sources.iter().filter(|there| **there).count() != 1 {
                let what = "write one of secret, public_key and jwks".to_owned();
                problems.push(wrong("", what));
                continue;
            }
            if let Some(source) = &key.secret {
                match shared_secret(source) {
                    Ok(key) => fixed.push(Verifier { id: None, algorithm: None, key }),
                    Err(what) => problems.push(wrong(".secret", what)),
                }
            }
            if let Some(path) = &key.public_key {
                match public_key(path) {
                    Ok(key) => fixed.push(Verifier { id: None, algorithm: None, key }),
                    Err(what) => problems.push(wrong(".public_key", what)),
                }
            }
            if let Some(path) = &key.jwks {
                match read_jwks(path) {
                    Ok((keys, changed_at)) => watched.push(Watched {
                        path: path.clone(),
                        seen: Mutex::new(changed_at),
                        keys: ArcSwap::from_pointee(keys),
                    }),
                    Err(what) => problems.push(wrong(".jwks", what)),
                }
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let algorithms = config.algorithms.iter().filter_map(|name| name.parse().ok()).collect();
        let tokens = Self {
            config: config.clone(),
            algorithms,
            fixed,
            watched,
            last_look: Mutex::new(Instant::now()),
        };
        Ok((!config.keys.is_empty()).then_some(tokens))
    }

    /// Believes a token, or says why not.
    pub(super) async fn verify(&self, token: &str, now: Timestamp) -> Result<Claims, Unbelieved> {
        let (claims, key_id) = self.verified(token).await?;
        self.config.read(&claims, now).map_err(|why| {
            let text = |name: &str| claims.get(name).and_then(Value::as_str).unwrap_or_default();
            let holder = text(&self.config.identity_claim);
            let holder = format!("{holder} of {} {}", text("iss"), key_id.unwrap_or_default());
            Unbelieved { why, holder: Some(holder.trim_end().to_owned()) }
        })
    }

    /// What a token says that one of our keys has signed, and which key it names.
    async fn verified(
        &self,
        token: &str,
    ) -> Result<(Map<String, Value>, Option<String>), &'static str> {
        let header = jsonwebtoken::decode_header(token).map_err(|_| "the token's header is bad")?;
        if header.crit.is_some() {
            return Err("the token's header has `crit`");
        }
        if !self.algorithms.contains(&header.alg) {
            return Err("the token's algorithm is not in auth.jwt.algorithms");
        }
        self.look(LOOK_EVERY).await;
        let mut keys = self.keys_for(&header);
        if keys == 0 && self.look(LOOK_AGAIN_AFTER).await {
            keys = self.keys_for(&header);
        }
        if keys == 0 {
            return Err("there is no key for this token");
        }
        let claims = self.claims(token, &header).ok_or("the token's signature is wrong")?;
        Ok((claims, header.kid))
    }

    fn keys_for(&self, header: &Header) -> usize {
        let mut count = 0;
        self.try_each(header, |_| {
            count += 1;
            None::<()>
        });
        count
    }

    /// The claims, if one of the keys verifies the token.
    fn claims(&self, token: &str, header: &Header) -> Option<Map<String, Value>> {
        let mut validation = Validation::new(header.alg);
        // What the library checks of claims is optional where they are missing, and by its own
        // clock: `read` does it.
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_aud = false;
        self.try_each(header, |key| {
            jsonwebtoken::decode::<Map<String, Value>>(token, key, &validation).ok()
        })
        .map(|data| data.claims)
    }

    /// Tries the keys that may have signed such a token, until one has.
    fn try_each<T>(
        &self,
        header: &Header,
        mut attempt: impl FnMut(&DecodingKey) -> Option<T>,
    ) -> Option<T> {
        let fits = |key: &&Verifier| {
            let id_fits = match (&key.id, &header.kid) {
                (Some(id), Some(asked)) => id == asked,
                _ => true,
            };
            id_fits
                && key.key.family() == header.alg.family()
                && key.algorithm.is_none_or(|only| only == header.alg)
        };
        let found = self.fixed.iter().filter(fits).find_map(|key| attempt(&key.key));
        found.or_else(|| {
            self.watched.iter().find_map(|file| {
                let keys = file.keys.load();
                keys.iter().filter(fits).find_map(|key| attempt(&key.key))
            })
        })
    }

    /// Looks at the files where the last look is old enough. Says whether it did.
    async fn look(&self, after: Duration) -> bool {
        {
            let mut last = self.last_look.lock().unwrap_or_else(PoisonError::into_inner);
            if self.watched.is_empty() || last.elapsed() < after {
                return false;
            }
            *last = Instant::now();
        }
        for file in &self.watched {
            let path = file.path.clone();
            let modified = tokio::fs::metadata(&path).await.and_then(|found| found.modified()).ok();
            {
                let mut seen = file.seen.lock().unwrap_or_else(PoisonError::into_inner);
                if *seen == modified {
                    continue;
                }
                *seen = modified;
            }
            let read = tokio::task::spawn_blocking(move || read_jwks(&path)).await;
            match read.unwrap_or_else(|_| Err("reading it panicked".to_owned())) {
                Ok((keys, _)) => {
                    tracing::info!(path = %file.path.display(), keys = keys.len(), "the JWKS file is read again");
                    file.keys.store(Arc::new(keys));
                }
                Err(error) => tracing::error!(
                    path = %file.path.display(), error,
                    "the changed JWKS file is refused; its old keys stay in force"
                ),
            }
        }
        true
    }
}

impl Config {
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.keys.len() > 16 {
            problems.push(format!("auth.jwt.keys: at most 16, found {}", self.keys.len()));
        }
        if self.keys.is_empty() != self.algorithms.is_empty() {
            problems.push(
                "auth.jwt.algorithms: keys and algorithms need each other; name what your issuer \
                 signs with, as [\"ES256\"]"
                    .to_owned(),
            );
        }
        for (index, name) in self.algorithms.iter().enumerate() {
            if name.parse::<Algorithm>().is_err() {
                problems.push(format!(
                    "auth.jwt.algorithms[{index}]: unknown algorithm \"{name}\"; there are HS256, \
                     HS384, HS512, RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, EdDSA"
                ));
            }
        }
        if self.leeway > Span::from_secs(600) {
            problems.push(format!("auth.jwt.leeway: at most 10m, found {}", self.leeway));
        }
        if self.identity_claim.is_empty() {
            problems.push("auth.jwt.identity_claim: it names nobody; write sub".to_owned());
        }
        problems
    }

    /// What verified claims say.
    fn read(&self, claims: &Map<String, Value>, now: Timestamp) -> Result<Claims, &'static str> {
        let leeway = self.leeway.get();
        let ends_at = time(claims, "exp")?.ok_or("the token has no `exp`")?.plus(leeway);
        if ends_at <= now {
            return Err("the token has expired");
        }
        if time(claims, "nbf")?.is_some_and(|begins_at| begins_at > now.plus(leeway)) {
            return Err("the token is not valid yet");
        }
        let text = |name: &str| claims.get(name).and_then(Value::as_str);
        if !self.issuer.is_empty() && text("iss") != Some(&self.issuer) {
            return Err("the token is of another issuer");
        }
        let is_ours = |one: &Value| one.as_str() == Some(&self.audience);
        let for_us = match claims.get("aud") {
            Some(Value::Array(several)) => several.iter().any(is_ours),
            Some(one) => is_ours(one),
            None => false,
        };
        if !self.audience.is_empty() && !for_us {
            return Err("the token is for another audience");
        }
        let identity = text(&self.identity_claim).filter(|name| is_name(name));
        let identity = identity.ok_or("the token names nobody")?;
        let client_id = match &*self.client_id_claim {
            "" => None,
            name => Some(text(name).ok_or("the token names no client id")?.to_owned()),
        };
        let groups = match claims.get(&self.groups_claim) {
            Some(Value::Array(groups)) if groups.len() <= GROUPS_MAX => groups
                .iter()
                .map(|group| group.as_str().filter(|name| is_name(name)).map(Arc::from))
                .collect::<Option<Vec<_>>>()
                .ok_or("a group in the token is no name")?,
            Some(Value::String(group)) if is_name(group) => vec![group.as_str().into()],
            None | Some(Value::Null) => Vec::new(),
            Some(_) => return Err("the token's groups are no list of names"),
        };
        Ok(Claims { identity: identity.into(), client_id, groups, ends_at })
    }
}

/// A time of the token: seconds since 1970, with or without a fraction (RFC 7519, section 2).
fn time(claims: &Map<String, Value>, name: &str) -> Result<Option<Timestamp>, &'static str> {
    let Some(value) = claims.get(name) else {
        return Ok(None);
    };
    let secs = value.as_f64().filter(|secs| (0.0..1e13).contains(secs));
    let secs = secs.ok_or("a time in the token is no number of seconds")?;
    let said = WallTime::default().plus(Duration::from_secs_f64(secs));
    Ok(Some(said.ours()))
}

/// Whether a password looks like a token: three parts, the first a JSON object with `alg`.
pub(super) fn looks_like_one(password: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(password).ok()?;
    let (header, rest) = text.split_once('.')?;
    if rest.split('.').count() != 2 {
        return None;
    }
    let header = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(header).ok()?;
    let header: Map<String, Value> = serde_json::from_slice(&header).ok()?;
    header.contains_key("alg").then_some(text)
}

fn shared_secret(source: &SecretSource) -> Result<DecodingKey, String> {
    let secret = source.resolve().map_err(|error| error.to_string())?;
    if secret.expose().len() < SECRET_BYTES_MIN {
        return Err(format!(
            "at least {SECRET_BYTES_MIN} bytes; make one with `openssl rand -hex 32`"
        ));
    }
    Ok(DecodingKey::from_secret(secret.expose().as_bytes()))
}

fn public_key(path: &Path) -> Result<DecodingKey, String> {
    let at = |what: &str| format!("{}: {what}", path.display());
    let pem = std::fs::read(path).map_err(|error| unreadable(path, &error))?;
    // A private key would do as well, and has no place here.
    if String::from_utf8_lossy(&pem).contains("PRIVATE KEY-----") {
        return Err(at("a private key; write only the public one: `openssl pkey -pubout`"));
    }
    DecodingKey::from_ec_pem(&pem)
        .or_else(|_| DecodingKey::from_rsa_pem(&pem))
        .or_else(|_| DecodingKey::from_ed_pem(&pem))
        .map_err(|_| at("no public key in PEM form: RSA, P-256, P-384 or Ed25519"))
}

fn unreadable(path: &Path, error: &std::io::Error) -> String {
    format!("cannot read {}: {error}", path.display())
}

fn read_jwks(path: &Path) -> Result<(Vec<Verifier>, Option<SystemTime>), String> {
    let at = |what: String| format!("{}: {what}", path.display());
    let metadata = std::fs::metadata(path).map_err(|error| unreadable(path, &error))?;
    if metadata.len() > JWKS_BYTES_MAX {
        return Err(at(format!("at most {JWKS_BYTES_MAX} bytes")));
    }
    let text = std::fs::read(path).map_err(|error| unreadable(path, &error))?;
    // The library's words may repeat what is in the file, which may be a shared secret.
    let set: JwkSet = serde_json::from_slice(&text)
        .map_err(|error| at(format!("no JWKS (line {})", error.line())))?;
    let mut keys = Vec::new();
    for jwk in &set.keys {
        // Keys for other ends than signing stand in the same file at some issuers.
        if jwk.common.public_key_use.as_ref().is_some_and(|one| *one != PublicKeyUse::Signature) {
            continue;
        }
        let Ok(key) = DecodingKey::from_jwk(jwk) else { continue };
        let algorithm = match jwk.common.key_algorithm.map(Algorithm::try_from) {
            None => None,
            Some(Ok(algorithm)) => Some(algorithm),
            Some(Err(_)) => continue,
        };
        keys.push(Verifier { id: jwk.common.key_id.clone(), algorithm, key });
    }
    if keys.is_empty() || keys.len() > KEYS_MAX {
        return Err(at(format!("1 to {KEYS_MAX} keys for signatures, found {}", keys.len())));
    }
    Ok((keys, metadata.modified().ok()))
}
