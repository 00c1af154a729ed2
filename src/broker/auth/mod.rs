//! Who a client is, and which client ids are its.
//!
//! | it shows | who decides | who it is then | its groups |
//! |---|---|---|---|
//! | a certificate | TLS; its name by `identity_from` | identity | its OUs |
//! | a user name, and a token for a password | [`token`], where `[auth.jwt]` has keys | identity | a claim |
//! | a user name of the store | [`password`] | user | `device add --group` |
//! | another user name | [`hook`], where `[auth.http]` has a URL | user, and identity if it says so | its answer |
//! | neither | `anonymous` | nobody | none |
//!
//! The first of the three that knows a user name decides, and nobody is asked after a "no". A
//! certificate and a user name both have to be right, and must not name two identities. A token is
//! looked at before the store, so that its cost does not show which user names there are.
//!
//! Invariant: nothing is read from, or changed in, a session before its client is authenticated
//! and the client id is known to be its own.

mod certificate;
mod hook;
mod password;
mod token;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use self::certificate::IdentityFrom;
pub(crate) use self::certificate::{Holder, holder};
use self::hook::{Answer, Hook, Question};
use self::password::{Checked, Passwords};
use self::token::{Claims, Tokens, Unbelieved};
use super::acl::{Client, glob_matches};
use super::bans::{FailedLogins, Refused, Source};
use super::config;
use super::protocol::code;
use super::protocol::connect::Password;
use crate::clock::{Clock, Timestamp};
use crate::model::Reason;
use crate::password::{HashError, Origin};
use crate::store::{Device, Store};

/// Longest identity or group, characters.
const NAME_CHARS_MAX: usize = 256;
/// Most groups of one client.
const GROUPS_MAX: usize = 64;
/// Most client ids that a hook's answer lists.
const CLIENT_IDS_MAX: usize = 64;

/// Who may come without a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Anonymous {
    /// Peers on this machine.
    Loopback,
    /// Nobody.
    Never,
}

/// Hashes a password that somebody has chosen, as the store keeps it.
///
/// # Errors
/// The system has no random numbers.
pub fn hash_password(password: &str) -> Result<String, HashError> {
    crate::password::hash(password, Origin::Chosen)
}

/// `[auth]`: how clients are told apart.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where in a client certificate the identity is looked for, in this order. Default `san_dns`,
    /// `san_uri`, `cn`.
    pub identity_from: Vec<IdentityFrom>,
    /// Which client ids an identity may use: exact, or with `*`; `{identity}` is filled in.
    /// Default `["{identity}"]`. With `["*"]` each identity can throw every other one out.
    pub client_ids: Vec<String>,
    /// How long a password that was right needs no check again, while its device stays what it is;
    /// default 1h, 0s: not at all, at most 24h.
    pub password_cache: crate::span::Span,
    /// Most such passwords, some 60 bytes each; default 20000, 1 to 1000000.
    pub password_cache_max: usize,
    /// Tokens as passwords.
    pub jwt: token::Config,
    /// A web service that knows who clients are.
    pub http: hook::Config,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            identity_from: vec![IdentityFrom::SanDns, IdentityFrom::SanUri, IdentityFrom::Cn],
            client_ids: vec![IDENTITY.to_owned()],
            password_cache: crate::span::Span::from_secs(3600),
            password_cache_max: 20_000,
            jwt: token::Config::default(),
            http: hook::Config::default(),
        }
    }
}

impl Config {
    /// Everything wrong with the values, and with the files and secrets that they name, which are
    /// read for it.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = self.own_problems();
        problems.extend(Tokens::load(&self.jwt).err().unwrap_or_default());
        problems.extend(Hook::load(&self.http).err().unwrap_or_default());
        problems
    }

    fn own_problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.identity_from.is_empty() {
            problems.push(
                "auth.identity_from: no certificate has a name then; write san_uri, san_dns or cn"
                    .to_owned(),
            );
        }
        if self.client_ids.is_empty() || self.client_ids.len() > CLIENT_IDS_MAX {
            problems.push(format!(
                "auth.client_ids: 1 to {CLIENT_IDS_MAX} patterns, as \"{{identity}}\" or \
                 \"{{identity}}-*\""
            ));
        }
        for (index, pattern) in self.client_ids.iter().enumerate() {
            let rest = pattern.replace(IDENTITY, "");
            if pattern.is_empty() || rest.contains(['{', '}', '/', '+', '#', '$']) {
                problems.push(format!(
                    "auth.client_ids[{index}]: `{pattern}` fits no client id; the placeholder is \
                     {{identity}}, and / + # $ cannot be in one"
                ));
            }
        }
        if self.password_cache > crate::span::Span::from_secs(24 * 3600) {
            let found = self.password_cache;
            problems.push(format!("auth.password_cache: at most 24h, found {found}"));
        }
        if !(1..=1_000_000).contains(&self.password_cache_max) {
            let found = self.password_cache_max;
            problems.push(format!("auth.password_cache_max: 1 to 1000000, found {found}"));
        }
        problems
    }
}

/// The placeholder in `client_ids`.
const IDENTITY: &str = "{identity}";

/// Who a client is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Principal {
    /// The name in its certificate or token, or what the hook said.
    pub(crate) identity: Option<Arc<str>>,
    /// Its user name, where that has been verified.
    pub(crate) user: Option<Arc<str>>,
}

impl Principal {
    /// The name it authenticated with; `None` for an anonymous client.
    pub(crate) fn name(&self) -> Option<&Arc<str>> {
        self.identity.as_ref().or(self.user.as_ref())
    }
}

/// What a client shows of itself.
pub(crate) struct Credentials {
    /// What the certificate says that TLS has verified.
    pub(crate) holder: Option<Holder>,
    pub(crate) user: Option<String>,
    pub(crate) password: Option<Password>,
    /// As it asks for; empty: one is chosen for it.
    pub(crate) client_id: String,
    pub(crate) peer: IpAddr,
    /// Whether its failed logins count.
    pub(crate) is_limited: bool,
    /// By which listener it came, for the hook.
    pub(crate) listener: Arc<str>,
    /// Who may come without a name there.
    pub(crate) anonymous: Anonymous,
}

/// A client that may come in.
#[derive(Debug, Default)]
pub(crate) struct Admitted {
    pub(crate) principal: Principal,
    /// Empty: one has to be made up.
    pub(crate) client_id: String,
    pub(crate) groups: Vec<Arc<str>>,
    /// When what let it in is over.
    pub(crate) ends_at: Option<Timestamp>,
}

impl Admitted {
    /// What the access rules ask about.
    pub(crate) fn as_client<'a>(&'a self, client_id: &'a str) -> Client<'a> {
        Client {
            client_id,
            identity: self.principal.identity.as_deref(),
            user: self.principal.user.as_deref(),
            groups: &self.groups,
        }
    }
}

/// Why a client is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Denied {
    pub(crate) reason: Reason,
    /// The MQTT 5 reason code.
    pub(crate) code: u8,
    pub(crate) what: &'static str,
}

impl Denied {
    const CREDENTIALS: Self = Self::credentials("unknown user or wrong password");
    const ANONYMOUS: Self = Self::not_authorized("anonymous clients are not let in here");
    const CLIENT_ID: Self =
        Self::not_authorized("the client id does not belong to this user or identity");
    const TWO_IDENTITIES: Self =
        Self::not_authorized("certificate and login are of two different identities");
    const STORE: Self = Self {
        reason: Reason::StoreFailed,
        code: code::UNAVAILABLE,
        what: "the list of devices cannot be read",
    };
    const BUSY: Self = Self {
        reason: Reason::AuthUnavailable,
        code: code::BUSY,
        what: "too many passwords wait to be checked; come again",
    };
    const UNANSWERED: Self = Self {
        reason: Reason::AuthUnavailable,
        code: code::UNAVAILABLE,
        what: "who this client is cannot be found out now; come again",
    };
    const TOKEN_OUT: Self = Self {
        reason: Reason::RateLimited,
        code: code::CONNECTION_RATE,
        what: "too many failed logins with this token or others like it; a good one is let in",
    };
    const OUT: Self = Self {
        reason: Reason::RateLimited,
        code: code::CONNECTION_RATE,
        what: "too many failed logins of this user or from this address",
    };

    const fn credentials(what: &'static str) -> Self {
        Self { reason: Reason::BadCredentials, code: code::BAD_CREDENTIALS, what }
    }

    const fn not_authorized(what: &'static str) -> Self {
        Self { reason: Reason::NotAuthorized, code: code::NOT_AUTHORIZED, what }
    }
}

/// Checks credentials.
pub(crate) struct Authenticator {
    store: Store,
    clock: Clock,
    client_ids: Vec<String>,
    passwords: Passwords,
    /// How long a login waits for its turn.
    patience: Duration,
    tokens: Option<Tokens>,
    hook: Option<Hook>,
    failed: FailedLogins,
    /// Tokens from where too many came that were none are verified one at a time.
    turn: Semaphore,
}

impl Authenticator {
    /// Reads keys and secrets.
    ///
    /// # Errors
    /// Everything that is wrong with the configuration.
    pub(crate) fn new(
        config: &config::Config,
        store: Store,
        clock: Clock,
    ) -> Result<Self, Vec<String>> {
        let auth = &config.auth;
        let remember_for = auth.password_cache.get();
        let passwords =
            Passwords::new(config.password_checks_max, remember_for, auth.password_cache_max);
        let (tokens, hook) = (Tokens::load(&auth.jwt), Hook::load(&auth.http));
        let mut problems = auth.own_problems();
        match (passwords, tokens, hook) {
            (Ok(passwords), Ok(tokens), Ok(hook)) if problems.is_empty() => Ok(Self {
                store,
                clock,
                client_ids: auth.client_ids.clone(),
                passwords,
                patience: config.connect_timeout.get(),
                tokens,
                hook,
                failed: FailedLogins::new(config),
                turn: Semaphore::new(1),
            }),
            (passwords, tokens, hook) => {
                problems.extend(passwords.err());
                problems.extend(tokens.err().unwrap_or_default());
                problems.extend(hook.err().unwrap_or_default());
                Err(problems)
            }
        }
    }

    /// Says who it is and under which client id it goes.
    pub(crate) async fn check(&self, credentials: Credentials) -> Result<Admitted, Denied> {
        let client_id = credentials.client_id.clone();
        let mut admitted = match &credentials.user {
            Some(user) => self.login_within_limits(user, &credentials).await?,
            None => Admitted { client_id, ..Admitted::default() },
        };
        if let Some(Holder { identity, groups }) = credentials.holder {
            let other = admitted.principal.identity.as_ref().is_some_and(|one| *one != identity);
            if other {
                return Err(Denied::TWO_IDENTITIES);
            }
            bind(&mut admitted.client_id, &self.client_ids, &identity)?;
            admitted.principal.identity = Some(identity);
            admitted.groups.extend(groups);
        }
        let may_be_anonymous = match credentials.anonymous {
            Anonymous::Loopback => credentials.peer.to_canonical().is_loopback(),
            Anonymous::Never => false,
        };
        if admitted.principal.name().is_none() && !may_be_anonymous {
            return Err(Denied::ANONYMOUS);
        }
        Ok(admitted)
    }

    async fn login_within_limits(
        &self,
        user: &str,
        credentials: &Credentials,
    ) -> Result<Admitted, Denied> {
        let now = Instant::now();
        let identity = credentials.holder.as_ref().map(|holder| &*holder.identity);
        let source = Source::new(credentials.peer, identity);
        let password = credentials.password.as_ref().map(|password| &password.0[..]);
        if let Some(token) = password.and_then(token::looks_like_one) {
            if let Some(tokens) = &self.tokens {
                return self.token_within_limits(tokens, token, source, credentials).await;
            }
            if self.hook.is_some() && matches!(self.store.device(user), Ok(None)) {
                return self.asked_within_limits(user, token, source, credentials).await;
            }
        }
        if credentials.is_limited {
            if self.failed.is_user_out(source, user, now) {
                return Err(Denied::OUT);
            }
            // Behind one address are also those who do nothing wrong. Who was right a short while
            // ago gets in without a check; guesses at that count against the user name.
            if self.failed.is_source_out(source, now) && !self.is_remembered(user, credentials) {
                self.failed.note_user(source, user, now);
                return Err(Denied::OUT);
            }
        }
        let result = self.login(user, credentials).await;
        if let Err(Denied { reason: Reason::BadCredentials, .. }) = result
            && credentials.is_limited
        {
            self.failed.note(source, user, Instant::now());
        }
        result
    }

    /// A token that we can verify. A good one is let in, whatever others have sent from where it
    /// comes: nobody guesses a signature. So failures decide on the answer alone, and on how much
    /// verifying costs us.
    async fn token_within_limits(
        &self,
        tokens: &Tokens,
        token: &str,
        source: Source<'_>,
        credentials: &Credentials,
    ) -> Result<Admitted, Denied> {
        let is_limited = credentials.is_limited;
        let _turn = if is_limited && self.failed.sends_garbage(source, Instant::now()) {
            let turn = tokio::time::timeout(self.patience, self.turn.acquire()).await;
            Some(turn.map_err(|_| Denied::BUSY)?)
        } else {
            None
        };
        let claims = match tokens.verify(token, self.clock.now()).await {
            Ok(claims) => claims,
            Err(Unbelieved { why, holder }) => {
                let shown = holder.as_deref().map(Refused::Of);
                let shown = shown.unwrap_or(Refused::Garbage(token.as_bytes()));
                let is_out = is_limited && self.failed.note_token(source, shown, Instant::now());
                return Err(if is_out { Denied::TOKEN_OUT } else { Denied::credentials(why) });
            }
        };
        self.by_token(claims, credentials)
    }

    /// A token that only the hook can tell from garbage. One that it has refused too often is not
    /// asked about; nor, while too many are refused from there, one that it has not just accepted.
    async fn asked_within_limits(
        &self,
        user: &str,
        token: &str,
        source: Source<'_>,
        credentials: &Credentials,
    ) -> Result<Admitted, Denied> {
        let (shown, now) = (Refused::Garbage(token.as_bytes()), Instant::now());
        if credentials.is_limited {
            let is_flooded = self.failed.sends_garbage(source, now);
            if self.failed.is_token_out(source, shown, now)
                || is_flooded && !self.is_remembered(user, credentials)
            {
                return Err(Denied::TOKEN_OUT);
            }
        }
        let result = self.login(user, credentials).await;
        match result {
            Err(Denied { reason: Reason::BadCredentials, .. })
                if credentials.is_limited
                    && self.failed.note_token(source, shown, Instant::now()) =>
            {
                Err(Denied::TOKEN_OUT)
            }
            result => result,
        }
    }

    fn is_remembered(&self, user: &str, credentials: &Credentials) -> bool {
        let Some(password) = &credentials.password else { return false };
        match (self.store.device(user), &self.hook) {
            (Ok(Some(device)), _) => {
                self.passwords.is_remembered(&device, &password.0, Instant::now())
            }
            (Ok(None), Some(hook)) => {
                let peer = credentials.peer.to_canonical().to_string();
                let question = question(user, &peer, credentials);
                question.is_ok_and(|question| hook.is_remembered(&question))
            }
            (Ok(None), None) | (Err(_), _) => false,
        }
    }

    async fn login(&self, user: &str, credentials: &Credentials) -> Result<Admitted, Denied> {
        let password = credentials.password.as_ref().map(|password| &password.0[..]);
        let device = self.store.device(user).map_err(|error| {
            tracing::error!(error = %error, "the list of devices cannot be read");
            Denied::STORE
        })?;
        match (&device, &self.hook) {
            (None, Some(hook)) => self.by_hook(hook, user, credentials).await,
            _ => self.by_password(user, device, password, credentials).await,
        }
    }

    async fn by_password(
        &self,
        user: &str,
        device: Option<Device>,
        password: Option<&[u8]>,
        credentials: &Credentials,
    ) -> Result<Admitted, Denied> {
        let remembered = match (&device, password) {
            (Some(device), Some(password)) => {
                self.passwords.is_remembered(device, password, Instant::now())
            }
            _ => false,
        };
        if !remembered {
            let given = password.unwrap_or_default();
            match self.passwords.check(device.as_ref(), given, self.patience).await {
                Checked::Right => {}
                Checked::Wrong => return Err(Denied::CREDENTIALS),
                Checked::NotInTime => return Err(Denied::BUSY),
            }
        }
        let (Some(device), Some(_)) = (device, password) else {
            return Err(Denied::CREDENTIALS);
        };
        let mut client_id = credentials.client_id.clone();
        bind(&mut client_id, &device.client_ids, user)?;
        Ok(Admitted {
            principal: Principal { identity: None, user: Some(user.into()) },
            client_id,
            groups: device.groups.iter().map(|group| group.as_str().into()).collect(),
            ends_at: None,
        })
    }

    fn by_token(&self, claims: Claims, credentials: &Credentials) -> Result<Admitted, Denied> {
        let mut client_id = credentials.client_id.clone();
        match claims.client_id {
            Some(own) if client_id.is_empty() => client_id = own,
            Some(own) if own == client_id => {}
            Some(_) => return Err(Denied::CLIENT_ID),
            None => bind(&mut client_id, &self.client_ids, &claims.identity)?,
        }
        Ok(Admitted {
            // The user name beside a token is nobody's: whoever has a token could write any.
            principal: Principal { identity: Some(claims.identity), user: None },
            client_id,
            groups: claims.groups,
            ends_at: Some(claims.ends_at),
        })
    }

    async fn by_hook(
        &self,
        hook: &Hook,
        user: &str,
        credentials: &Credentials,
    ) -> Result<Admitted, Denied> {
        let peer = credentials.peer.to_canonical().to_string();
        let question = question(user, &peer, credentials)?;
        let yes = match hook.ask(&question).await {
            Ok(Answer::Yes(yes)) => yes,
            Ok(Answer::No) => return Err(Denied::CREDENTIALS),
            Err(_) => return Err(Denied::UNANSWERED),
        };
        let name = yes.identity.as_deref().unwrap_or(user);
        let mut client_id = credentials.client_id.clone();
        bind(&mut client_id, yes.client_ids.as_deref().unwrap_or(&self.client_ids), name)?;
        Ok(Admitted {
            principal: Principal {
                identity: yes.identity.as_deref().map(Arc::from),
                user: Some(user.into()),
            },
            client_id,
            groups: yes.groups.iter().map(|group| group.as_str().into()).collect(),
            ends_at: None,
        })
    }
}

/// What the hook is asked of a client.
fn question<'a>(
    user: &'a str,
    peer: &'a str,
    credentials: &'a Credentials,
) -> Result<Question<'a>, Denied> {
    let password = credentials.password.as_ref().map_or(&[][..], |password| &password.0);
    // JSON has no bytes.
    let password = std::str::from_utf8(password).map_err(|_| Denied::CREDENTIALS)?;
    Ok(Question {
        client_id: &credentials.client_id,
        user,
        password,
        identity: credentials.holder.as_ref().map(|holder| &*holder.identity),
        peer,
        listener: &credentials.listener,
    })
}

/// Checks that `client_id` is one of `name`'s, or chooses one where it is empty.
fn bind(client_id: &mut String, patterns: &[String], name: &str) -> Result<(), Denied> {
    if client_id.is_empty() {
        // A made-up id would be none of its own, unless it may have any.
        match patterns.iter().find(|pattern| !pattern.contains('*')) {
            Some(own) => *client_id = own.replace(IDENTITY, name),
            None if patterns.iter().any(|pattern| pattern == "*") => {}
            None => return Err(Denied::CLIENT_ID),
        }
        return Ok(());
    }
    let fits = |pattern: &String| {
        let filled_in = pattern.replace(IDENTITY, name);
        if !pattern.contains('*') {
            return filled_in == *client_id;
        }
        // A `*` in the name would stand for any characters, which nobody has meant.
        let widened = pattern.contains(IDENTITY) && name.contains('*');
        !widened && glob_matches(&filled_in, client_id)
    };
    if patterns.iter().any(fits) { Ok(()) } else { Err(Denied::CLIENT_ID) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_id_is_bound_to_its_name() {
        for (client_id, patterns, name, expected) in [
            ("pump", &["{identity}"][..], "pump", Some("pump")),
            ("pump-1", &["{identity}"], "pump", None),
            ("", &["{identity}"], "pump", Some("pump")),
            ("pump-1", &["{identity}", "{identity}-*"], "pump", Some("pump-1")),
            ("pumpx", &["{identity}", "{identity}-*"], "pump", None),
            ("", &["{identity}-*"], "pump", None),
            ("", &["gw-*", "gw"], "pump", Some("gw")),
            ("anything", &["*"], "pump", Some("anything")),
            ("", &["*"], "pump", Some("")),
            // The name of a wildcard certificate.
            ("*.site", &["{identity}"], "*.site", Some("*.site")),
            ("a.site", &["{identity}"], "*.site", None),
            ("a.site-1", &["{identity}-*"], "*.site", None),
        ] {
            let patterns: Vec<String> = patterns.iter().map(|text| (*text).to_owned()).collect();
            let mut id = client_id.to_owned();
            let bound = bind(&mut id, &patterns, name).ok().map(|()| id);
            assert_eq!(bound.as_deref(), expected, "{client_id} {patterns:?} {name}");
        }
    }

    #[test]
    fn everything_wrong_is_said_at_once() {
        let config: Config = toml::from_str(
            "identity_from = []\nclient_ids = ['{name}']\npassword_cache = '25h'\n\
             [jwt]\nalgorithms = ['none', 'HS256']\nkeys = [{}, { secret = 'short' }]\n\
             [http]\nurl = 'http://elsewhere/'\ntimeout = '0s'",
        )
        .expect("valid TOML");
        let problems = config.problems();
        for part in [
            "auth.identity_from: ",
            "auth.client_ids[0]: ",
            "auth.password_cache: ",
            "auth.jwt.algorithms[0]: unknown algorithm \"none\"",
            "auth.jwt.keys[0]: write one of",
            "auth.jwt.keys[1].secret: at least 32 bytes",
            "auth.http.url: passwords would travel",
            "auth.http.timeout: 100ms to 30s",
        ] {
            assert!(problems.iter().any(|what| what.starts_with(part)), "{part}: {problems:#?}");
        }
        assert_eq!(problems.len(), 8, "{problems:#?}");
        assert!(Config::default().problems().is_empty());
    }
}
