//! The words everything speaks: publish, alert, message, attempt, and their ids.
//!
//! Data only: nothing here reads a clock, a socket or a disk. What is stored is stored as these
//! types, so a field that is added needs a serde default, and one that is renamed needs an upgrade.

pub mod tell;
pub mod why;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::clock::Timestamp;
use crate::topic::TopicName;

/// MQTT quality of service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Qos {
    /// Fire and forget.
    AtMostOnce = 0,
    /// Acknowledged by PUBACK.
    AtLeastOnce = 1,
    /// Acknowledged by PUBREC, PUBREL, PUBCOMP.
    ExactlyOnce = 2,
}

/// Whether `text` may name a rule or a contact: 1 to 64 of `a-z`, `0-9`, `-`, `_`, `.`, so that it
/// can stand in a URL, a metric label and a shell command as it is.
pub fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b))
}

/// One application message as a device published it.
#[derive(Clone, Debug)]
pub struct Publish {
    /// Checked topic name: no wildcards, within the length and level limits.
    pub topic: TopicName,
    /// The payload as it came.
    pub payload: Bytes,
    /// The publisher's quality of service.
    pub qos: Qos,
    /// RETAIN as the publisher set it.
    pub retain: bool,
    /// An upstream broker had kept it and sent it because we subscribed: it says what was, not what
    /// has just happened.
    pub replayed: bool,
    /// The publisher's client id.
    pub client_id: Arc<str>,
    /// Whom the publisher authenticated as; `None` for an anonymous one.
    pub identity: Option<Arc<str>>,
    /// When it was read from the socket.
    pub received_at: Timestamp,
    /// MQTT 5 properties that a subscriber must get, unchanged; `None` where there are none.
    pub properties: Option<Box<PublishProperties>>,
}

/// How an upstream stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UpstreamState {
    /// Its name in the configuration.
    #[serde(skip)]
    pub name: Arc<str>,
    /// Whether it is connected and has answered the subscriptions.
    pub connected: bool,
    /// Since when.
    pub since: String,
    /// The address last tried.
    pub address: String,
    /// Why it is not connected.
    pub reason: Option<String>,
    /// Filters that it refuses, each with its reason: nothing comes by these.
    pub refused: Vec<String>,
    /// Whether rules and subscribers are to hear of it: not before every address was tried, and
    /// not of a connection that ends each time as soon as it is made.
    #[serde(skip)]
    pub is_news: bool,
}

/// MQTT 5 publish properties that are passed on to subscribers (MQTT 5, 3.3.2.3).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishProperties {
    /// Payload Format Indicator: true for UTF-8.
    pub utf8: Option<bool>,
    /// Message Expiry Interval, seconds from `received_at`.
    pub expires_after_secs: Option<u32>,
    /// Content Type.
    pub content_type: Option<String>,
    /// Response Topic.
    pub response_topic: Option<String>,
    /// Correlation Data.
    pub correlation_data: Option<Vec<u8>>,
    /// User Properties, in order.
    pub user: Vec<(String, String)>,
}

/// An allocation takes no less.
const ALLOCATED_BYTES_MIN: usize = 24;

impl PublishProperties {
    /// What they take in memory. A User Property of a few bytes takes a hundred.
    pub fn bytes(&self) -> usize {
        let text = |text: &str| text.len().max(ALLOCATED_BYTES_MIN);
        let user = self
            .user
            .iter()
            .map(|(name, value)| size_of::<(String, String)>() + text(name) + text(value));
        size_of::<Self>()
            + self.content_type.as_ref().map_or(0, String::len)
            + self.response_topic.as_ref().map_or(0, String::len)
            + self.correlation_data.as_ref().map_or(0, Vec::len)
            + user.sum::<usize>()
    }
}

macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$variant_meta])* #[serde(rename = $word)] $variant,)+
        }

        impl $name {
            /// Every value, in the order of the declaration.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The word used in files, labels, the API and logs.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = UnknownWord;
            fn from_str(word: &str) -> Result<Self, UnknownWord> {
                Self::ALL.iter().copied().find(|value| value.as_str() == word).ok_or_else(|| {
                    let known: Vec<_> = Self::ALL.iter().map(|value| value.as_str()).collect();
                    UnknownWord { word: word.to_owned(), known: known.join(", ") }
                })
            }
        }
    };
}

/// A word that is not one of a closed set.
#[derive(Debug, thiserror::Error)]
#[error("unknown word `{word}`; known are {known}")]
pub struct UnknownWord {
    word: String,
    known: String,
}

words! {
    /// How urgent an alert is; ordered, so that the worst is the greatest.
    #[derive(Default)]
    Severity {
        /// Worth knowing.
        Info = "info",
        /// Someone should look at it.
        #[default]
        Warning = "warning",
        /// Someone must act now.
        Critical = "critical",
    }
}

words! {
    /// A way to reach a person or a machine.
    Channel {
        /// Text message to a phone number.
        Sms = "sms",
        /// WhatsApp message to a phone number.
        Whatsapp = "whatsapp",
        /// Push notification to an app's registration token.
        Push = "push",
        /// Signed HTTP POST to a URL (Standard Webhooks).
        Webhook = "webhook",
    }
}

words! {
    /// Where an alert instance stands.
    AlertState {
        /// The condition holds.
        Firing = "firing",
        /// The condition no longer holds.
        Cleared = "cleared",
    }
}

words! {
    /// Where a message stands. [`Status::advance`] is the one table of what may follow what.
    Status {
        /// On disk, waiting for its turn.
        Queued = "queued",
        /// An attempt has been started and has no outcome yet.
        Sending = "sending",
        /// A provider has taken it.
        Sent = "sent",
        /// The provider says that it reached the handset, or the receiver itself took it.
        Delivered = "delivered",
        /// The person has opened it.
        Read = "read",
        /// The provider took it and later said that it did not arrive.
        Undelivered = "undelivered",
        /// Dead-lettered: nobody will try again unless an operator says so.
        Failed = "failed",
        /// Its time ran out before a provider took it.
        Expired = "expired",
        /// Withdrawn before a provider took it.
        Canceled = "canceled",
    }
}

impl Status {
    /// Whether the outbox has nothing more to do for it.
    pub const fn is_final(self) -> bool {
        !matches!(self, Self::Queued | Self::Sending)
    }

    /// The status after hearing `news`, or `None` if `news` is late, repeated or out of order and
    /// must change nothing.
    pub fn advance(self, news: Self) -> Option<Self> {
        use Status::{
            Canceled, Delivered, Expired, Failed, Queued, Read, Sending, Sent, Undelivered,
        };
        let allowed = match self {
            Queued => matches!(news, Sending | Sent | Failed | Expired | Canceled),
            // A lost attempt goes back to the queue.
            Sending => matches!(
                news,
                Queued | Sent | Delivered | Read | Undelivered | Failed | Expired | Canceled
            ),
            Sent => matches!(news, Delivered | Read | Undelivered),
            // A handset that was off may take it after the provider had given up.
            Undelivered => matches!(news, Delivered | Read),
            Delivered => matches!(news, Read),
            // An operator may put a dead letter back; a receipt may still prove it wrong.
            Failed | Expired | Canceled => matches!(news, Queued | Delivered | Read),
            Read => false,
        };
        allowed.then_some(news)
    }
}

words! {
    /// Why something was refused, dropped, retried or ended: metric label, API code, log field.
    Reason {
        /// The bytes are no MQTT packet.
        MalformedPacket = "malformed_packet",
        /// A packet that MQTT does not allow here.
        ProtocolError = "protocol_error",
        /// The client asked for a protocol version that is not 3.1.1 or 5.0.
        UnsupportedVersion = "unsupported_version",
        /// The packet or payload is over the limit.
        PacketTooLarge = "packet_too_large",
        /// An upstream closed the connection each time that it was sent this publish.
        UpstreamRefused = "upstream_refused",
        /// The HTTP request makes no sense.
        BadRequest = "bad_request",
        /// The topic is empty, too long, too deep, or holds a wildcard or control character.
        BadTopic = "bad_topic",
        /// The topic filter breaks MQTT's rules or the limits.
        BadFilter = "bad_filter",
        /// The client id is empty, too long or holds a reserved character.
        BadClientId = "bad_client_id",
        /// Unknown user or wrong password; or: the provider refuses our credentials.
        BadCredentials = "bad_credentials",
        /// The access rules do not allow it.
        NotAuthorized = "not_authorized",
        /// The client, its user, identity or address is banned.
        Banned = "banned",
        /// The token that let the client in has expired.
        CredentialExpired = "credential_expired",
        /// Who the client is could not be found out in time: the hook, or too many passwords.
        AuthUnavailable = "auth_unavailable",
        /// The TLS handshake failed.
        TlsFailed = "tls_failed",
        /// The client's certificate is no longer accepted: its CA is gone, or it is revoked.
        CertificateRefused = "certificate_refused",
        /// No PROXY protocol header, or from somebody who may not send one.
        BadProxyHeader = "bad_proxy_header",
        /// No TLS handshake or CONNECT within its time.
        ConnectTimeout = "connect_timeout",
        /// No packet within one and a half keep-alive intervals.
        KeepAliveTimeout = "keep_alive_timeout",
        /// Another connection took the session over.
        TakenOver = "taken_over",
        /// The connection broke.
        ConnectionLost = "connection_lost",
        /// The client said DISCONNECT.
        ClientDisconnect = "client_disconnect",
        /// An operator had the client disconnected.
        AdminDisconnect = "admin_disconnect",
        /// A limit of connections, sessions, subscriptions or retained messages is reached.
        TooMany = "too_many",
        /// The client sends faster than its limit.
        RateLimited = "rate_limited",
        /// The subscriber's queue is full.
        QueueFull = "queue_full",
        /// What handed it its publishes has died; with `broker.fanout = "router"` only.
        FanoutFailed = "fanout_failed",
        /// It waited for its subscriber longer than `broker.queue_age_max`.
        QueueAge = "queue_age",
        /// The message's MQTT expiry passed while it waited.
        MessageExpired = "message_expired",
        /// The peer does not read what is written to it.
        WriteTimeout = "write_timeout",
        /// The outbox is full.
        OutboxFull = "outbox_full",
        /// Free disk space is below the low-water mark.
        DiskLow = "disk_low",
        /// The store could not write.
        StoreFailed = "store_failed",
        /// This process is stopping.
        ShuttingDown = "shutting_down",
        /// The payload could not be decoded as the rule asks.
        UndecodablePayload = "undecodable_payload",
        /// A rule's expression failed on this publish.
        ExpressionFailed = "expression_failed",
        /// A rule's text could not be rendered.
        TemplateFailed = "template_failed",
        /// The rule's `skip` holds: the publish is none of its readings.
        Skipped = "skipped",
        /// A publish with the same `dedupe` value was taken before.
        Duplicate = "duplicate",
        /// The reading is older than the rule's `max_age`: history that was sent late.
        TooOld = "too_old",
        /// An upstream had kept the reading: it sets state and raises nothing.
        Replayed = "replayed",
        /// The rule only counts what it would do (`mode = "shadow"`).
        Shadow = "shadow",
        /// A silence covers the alert.
        Silenced = "silenced",
        /// The contact's quiet hours.
        QuietHours = "quiet_hours",
        /// Another alert, which explains it, fires.
        Inhibited = "inhibited",
        /// The instance was told of less than its rule's `cooldown` ago.
        Cooldown = "cooldown",
        /// The rule's or the contact's `max` of messages is reached.
        QuotaReached = "quota_reached",
        /// It waits for the other alerts of its group.
        Grouped = "grouped",
        /// Too many alerts under one topic: one message tells of all.
        Storm = "storm",
        /// Its state changes too often.
        Flapping = "flapping",
        /// It was over before anybody was told that it had begun.
        Over = "over",
        /// A later message says how it stands now.
        Superseded = "superseded",
        /// The rule means something else since it was loaded again.
        RuleChanged = "rule_changed",
        /// The rule is gone.
        RuleRemoved = "rule_removed",
        /// An operator had the instance forgotten, or its `forget` time is over.
        Forgotten = "forgotten",
        /// The rule names nobody, or the contact has no address on any of its channels.
        NoRecipient = "no_recipient",
        /// No provider is configured for the channel.
        NoProvider = "no_provider",
        /// The provider asks for a slower pace.
        Throttled = "throttled",
        /// The provider answers with an error of its own (5xx and the like).
        ProviderUnavailable = "provider_unavailable",
        /// No connection to the provider.
        ConnectFailed = "connect_failed",
        /// This machine has run out of open files, memory or ports: the provider was not asked.
        OutOfResources = "out_of_resources",
        /// The request left and no answer was read: it may have been sent.
        NoAnswer = "no_answer",
        /// The provider's answer makes no sense.
        BadAnswer = "bad_answer",
        /// The provider refuses account, sender, permission or configuration.
        ProviderRefused = "provider_refused",
        /// The provider account has no credit.
        NoCredit = "no_credit",
        /// The address does not exist or cannot take this channel.
        BadRecipient = "bad_recipient",
        /// The recipient has opted out.
        OptedOut = "opted_out",
        /// The recipient cannot be reached now.
        Unreachable = "unreachable",
        /// The content is refused.
        ContentRefused = "content_refused",
        /// WhatsApp's 24-hour window is closed: only a template may be sent.
        WindowClosed = "window_closed",
        /// The receiver has said that it is gone (HTTP 410, unregistered token).
        RecipientGone = "recipient_gone",
        /// Its time to live ran out.
        Expired = "expired",
        /// An operator or the sender withdrew it.
        Canceled = "canceled",
        /// Every attempt that the configuration allows has failed.
        AttemptsExhausted = "attempts_exhausted",
        /// It had no success within `fallback_after`.
        NotInTime = "not_in_time",
    }
}

macro_rules! id {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// From a UUID.
            pub const fn new(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// The UUID.
            pub const fn as_uuid(&self) -> &Uuid {
                &self.0
            }

            /// The partition that its rows are in: its last six bits.
            pub const fn partition(&self) -> u8 {
                self.0.as_bytes()[15] & 63
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl std::str::FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    };
}

id! {
    /// One alert: one time that a rule instance fired. UUID v7, so ids sort by time.
    AlertId
}
id! {
    /// One message. Derived from alert, recipient and channel ([`MessageId::derive`]), so that
    /// planning the same alert twice makes no second message.
    MessageId
}
id! {
    /// One run of the process; says which attempts were cut off by a crash.
    RunId
}

impl MessageId {
    /// The id of the message that `alert` sends to `address` by `channel` in state `state`.
    ///
    /// Keeps the alert's 48-bit UUID v7 time, so that messages sort by it; the rest is a hash.
    pub fn derive(alert: AlertId, state: AlertState, channel: Channel, address: &Address) -> Self {
        Self::derive_nth(alert, state, 0, channel, address)
    }

    /// The same for the message that tells of an alert the `nth` time more: a repetition, another
    /// level. The first is 0.
    pub fn derive_nth(
        alert: AlertId,
        state: AlertState,
        nth: u32,
        channel: Channel,
        address: &Address,
    ) -> Self {
        let mut hash = Fnv::new();
        if nth > 0 {
            hash.write(&nth.to_be_bytes());
        }
        for part in [
            alert.0.as_bytes().as_slice(),
            state.as_str().as_bytes(),
            channel.as_str().as_bytes(),
            address.expose().as_bytes(),
        ] {
            hash.write(part);
            hash.write(&[0xff]);
        }
        Self(in_partition(uuid_v7(alert.0.as_bytes(), hash.0), alert.partition()))
    }
}

impl AlertId {
    /// A new id for an alert of this rule and instance, in their partition.
    pub fn next(ids: &mut IdSource, now: Timestamp, rule: &str, key: &str) -> Self {
        Self(in_partition(ids.next(now), partition(rule, key)))
    }

    /// When it was made, which is not after its alert fired: a UUID v7 begins with its time. After
    /// the clock was set back it is the time of the id before it, see [`IdSource`].
    pub fn made_at(&self) -> Timestamp {
        let mut millis = [0_u8; 8];
        millis.iter_mut().skip(2).zip(self.0.as_bytes()).for_each(|(to, from)| *to = *from);
        Timestamp::from_millis(i64::from_be_bytes(millis))
    }
}

/// The partition, 0 to 63, of all rows of one rule and instance key.
pub fn partition(rule: &str, key: &str) -> u8 {
    let mut hash = Fnv::new();
    hash.write(rule.as_bytes());
    hash.write(&[0]);
    hash.write(key.as_bytes());
    (hash.0 & 63) as u8
}

fn in_partition(uuid: Uuid, partition: u8) -> Uuid {
    let mut bytes = uuid.into_bytes();
    bytes[15] = (bytes[15] & !63) | partition;
    Uuid::from_bytes(bytes)
}

/// Makes UUID v7 ids from a time, a random seed and a counter: no clock, no system call an id.
///
/// Invariant: each id sorts after the one before it, also when the clock was set back, because the
/// order of a raise and its clear in dispatch depends on it.
#[derive(Debug)]
pub struct IdSource {
    seed: u64,
    /// The milliseconds and the order of the last id: never less than those of the id before it.
    last: (u64, u16),
}

/// Ids of one millisecond: a UUID v7 has 12 bits for their order.
const IDS_PER_MILLISECOND: u16 = 1 << 12;

impl IdSource {
    /// `seed` must be random once a process run, so that two runs never make the same id.
    pub const fn new(seed: u64) -> Self {
        Self { seed, last: (0, 0) }
    }

    /// The next UUID v7 for `now` (RFC 9562, section 5.7). Its time is that of the id before it
    /// while the clock is behind that, and a later one where a millisecond has no ids left.
    pub fn next(&mut self, now: Timestamp) -> Uuid {
        let now = u64::try_from(now.as_millis()).unwrap_or(0);
        self.last = match self.last {
            (last, _) if now > last => (now, 0),
            (last, order) if order + 1 < IDS_PER_MILLISECOND => (last, order + 1),
            (last, _) => (last + 1, 0),
        };
        let (millis, order) = self.last;
        let mut head = [0_u8; 16];
        head[..6].copy_from_slice(&millis.to_be_bytes()[2..]);
        head[6..8].copy_from_slice(&order.to_be_bytes());
        let mut hash = Fnv::new();
        hash.write(&self.seed.to_be_bytes());
        hash.write(&head[..8]);
        uuid_v7(&head, hash.0)
    }
}

/// The first eight bytes of `head`, then `tail`, with version 7 and the RFC's variant set.
fn uuid_v7(head: &[u8; 16], tail: u64) -> Uuid {
    let mut bytes = *head;
    bytes[8..].copy_from_slice(&tail.to_be_bytes());
    bytes[6] = (bytes[6] & 0x0f) | 0x70;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    Uuid::from_bytes(bytes)
}

/// FNV-1a with a final mix: stable between versions and machines, which `std`'s hashers are not.
#[derive(Debug)]
pub struct Fnv(u64);

impl Fnv {
    /// The empty hash.
    pub const fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    /// Adds bytes.
    pub fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        // FNV's high bits are weak for short input: fold them (MurmurHash3's finalizer step).
        self.0 ^= self.0 >> 33;
        self.0 = self.0.wrapping_mul(0xff51_afd7_ed55_8ccd);
        self.0 ^= self.0 >> 33;
    }

    /// The hash of all that was written.
    pub const fn finish(&self) -> u64 {
        self.0
    }
}

impl Default for Fnv {
    fn default() -> Self {
        Self::new()
    }
}

/// A phone number in E.164 form: `+`, then 7 to 15 digits, the first not zero (ITU-T E.164).
#[derive(Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct E164(Arc<str>);

impl E164 {
    /// The number with its `+`. For the wire only: everything that people read uses `Display`.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The digits without `+`, as some providers want them.
    pub fn digits(&self) -> &str {
        self.0.strip_prefix('+').unwrap_or(&self.0)
    }
}

impl std::str::FromStr for E164 {
    type Err = BadNumber;
    fn from_str(text: &str) -> Result<Self, BadNumber> {
        let digits = text.strip_prefix('+').ok_or(BadNumber)?;
        let ok = (7..=15).contains(&digits.len())
            && digits.bytes().all(|byte| byte.is_ascii_digit())
            && !digits.starts_with('0');
        if ok { Ok(Self(text.into())) } else { Err(BadNumber) }
    }
}

impl<'de> Deserialize<'de> for E164 {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Not an E.164 number. Does not repeat the text, which may be a person's number.
#[derive(Debug, thiserror::Error)]
#[error(
    "not a phone number in E.164 form; write + and country code, 7 to 15 digits, no spaces: +4915112345678"
)]
pub struct BadNumber;

impl fmt::Display for E164 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&mask(&self.0))
    }
}

impl fmt::Debug for E164 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Keeps the first and last three characters: `+49…678`.
pub fn mask(text: &str) -> String {
    let characters: Vec<char> = text.chars().collect();
    if characters.len() <= 6 {
        return "…".to_owned();
    }
    let head: String = characters.iter().take(3).collect();
    let tail: String = characters.iter().skip(characters.len() - 3).collect();
    format!("{head}…{tail}")
}

/// Where a message goes on its channel: a number, a push token or a URL.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Address {
    /// For SMS and WhatsApp.
    Phone(E164),
    /// For push: the registration token or `topic:NAME`.
    Token(Arc<str>),
    /// For webhooks.
    Url(Arc<str>),
}

impl Address {
    /// The address in full. For the wire only: everything that people read uses `Display`.
    pub fn expose(&self) -> &str {
        match self {
            Self::Phone(number) => number.expose(),
            Self::Token(text) | Self::Url(text) => text,
        }
    }
}

/// Masked.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Phone(number) => fmt::Display::fmt(number, f),
            Self::Token(token) => f.write_str(&mask(token)),
            // Path and query may hold a token; scheme and host help to recognise it.
            Self::Url(url) => {
                if !url.contains("://") {
                    return f.write_str(&mask(url));
                }
                let host_end = url.splitn(4, '/').take(3).map(str::len).sum::<usize>() + 2;
                f.write_str(url.get(..host_end).unwrap_or(url))?;
                if url.len() > host_end { f.write_str("/…") } else { Ok(()) }
            }
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One place to reach a contact, on one channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// By which channel.
    pub channel: Channel,
    /// Where on it.
    pub address: Address,
}

/// What an alert is about and what it says: made by the rules, read by notify.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Alert {
    /// Its id.
    pub id: AlertId,
    /// The rule's name.
    pub rule: Arc<str>,
    /// The instance: the values of the rule's `key`, joined by `/`; empty for a rule without key.
    pub key: Arc<str>,
    /// How urgent.
    pub severity: Severity,
    /// Firing, or cleared.
    pub state: AlertState,
    /// The captured levels of its topic by name, sorted: what silences, groups and `[[suppress]]`
    /// compare.
    #[serde(default, skip_serializing_if = "no_labels")]
    pub labels: Labels,
    /// The topic of the publish that changed the state.
    pub topic: TopicName,
    /// When it fired.
    pub fired_at: Timestamp,
    /// When it changed last: the time of this firing or clearing.
    pub changed_at: Timestamp,
    /// The rendered text.
    pub text: Arc<str>,
}

/// Names and values, sorted by name.
pub type Labels = Arc<[(Arc<str>, Arc<str>)]>;

fn no_labels(labels: &Labels) -> bool {
    labels.is_empty()
}

impl Alert {
    /// The value of a label.
    pub fn label(&self, name: &str) -> Option<&str> {
        let found = self.labels.iter().find(|(known, _)| known.as_ref() == name);
        found.map(|(_, value)| value.as_ref())
    }
}

/// What a message says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// A short headline, for channels that show one (push).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<Arc<str>>,
    /// The text.
    pub text: Arc<str>,
    /// A provider's template in place of the text (WhatsApp).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<Template>,
}

/// A template that the provider has approved, with its parameters in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Template {
    /// Its name at the provider.
    pub name: String,
    /// Its language code, as `en` or `en_US`.
    pub language: String,
    /// The values of its body's parameters.
    #[serde(default)]
    pub parameters: Vec<String>,
}

/// How an SMS is cut (3GPP TS 23.038, 23.040).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segments {
    /// GSM-7 or UCS-2.
    pub encoding: SmsEncoding,
    /// How many parts are billed.
    pub count: u32,
    /// Septets (GSM-7) or 16-bit units (UCS-2) in all.
    pub units: u32,
}

words! {
    /// An SMS alphabet.
    SmsEncoding {
        /// GSM 7-bit default alphabet with its extension table: 160 a part, 153 when joined.
        Gsm7 = "gsm7",
        /// UCS-2: 70 a part, 67 when joined.
        Ucs2 = "ucs2",
    }
}

/// Which alert a message tells of. A copy, so that a message explains itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlertRef {
    /// The alert.
    pub id: AlertId,
    /// The rule's name.
    pub rule: Arc<str>,
    /// The instance key.
    pub key: Arc<str>,
    /// What the message tells: that it fires, or that it is over.
    pub state: AlertState,
    /// The topic of the publish.
    pub topic: TopicName,
    /// What else it tells of.
    #[serde(default, skip_serializing_if = "Tells::is_alert")]
    pub tells: Tells,
}

/// What a message tells of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tells {
    /// How its alert stands.
    #[default]
    Alert,
    /// An alert of a rule without a condition: there is nothing more to it.
    Event,
    /// Other alerts too, or something that is no alert: no other message says the same.
    More,
}

impl Tells {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
    fn is_alert(&self) -> bool {
        *self == Self::Alert
    }
}

/// One thing to say to one recipient on one channel: a row of the outbox.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Its id.
    pub id: MessageId,
    /// The alert it tells of; `None` for one that came through the HTTP API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alert: Option<AlertRef>,
    /// The contact's name, where it came from one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contact: Option<Arc<str>>,
    /// Channel and address.
    #[serde(flatten)]
    pub target: Target,
    /// The contact's next channels, in order, should this one fail for good or have no success in
    /// time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub then: Vec<Target>,
    /// How long it may be without success before the next channel sends too, where its rule or
    /// contact says; zero for never. `None`: `notify.fallback_after` of its severity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback_after: Option<Duration>,
    /// How it stands to the messages that say the same to the contact on other channels; `None` in
    /// the plain case, in which there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<Box<Fallback>>,
    /// How urgent: the most urgent leaves first.
    pub severity: Severity,
    /// What it says.
    pub content: Content,
    /// For SMS: how it is cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segments: Option<Segments>,
    /// When it entered the outbox; where it goes on with one that failed, when that did.
    pub created_at: Timestamp,
    /// After this no attempt is started.
    pub expires_at: Timestamp,
    /// Where it stands.
    pub status: Status,
    /// Why it stands there, where there is something to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// The provider's or our own words on it, masked, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// When the next attempt is due.
    pub due_at: Timestamp,
    /// When this row changed last.
    pub updated_at: Timestamp,
    /// How many attempts have been started, more than `attempts` may keep.
    #[serde(default)]
    pub attempt_count: u32,
    /// The latest attempts, oldest first; at most [`Message::ATTEMPTS_KEPT`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attempts: Vec<Attempt>,
    /// What it stands for besides itself, where it waited long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_out: Option<Box<LeftOut>>,
    /// It had expired by a clock that nobody could be sure of, and may live a little longer for that:
    /// once.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub extended: bool,
    /// The provider that took it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<Arc<str>>,
    /// The provider's id for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider_ref: Option<String>,
}

/// What a message that waited long stands for: earlier ones of its instance, which were left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// Messages, itself included.
    pub count: u32,
    /// When the first of them happened.
    pub from: Timestamp,
    /// When the last did.
    pub until: Timestamp,
    /// Somebody was told that the instance fires, and one of them said that it is over.
    pub told: bool,
    /// The message's own text, without the line that says all this.
    pub text: Arc<str>,
}

/// How a message stands to those that say the same to one contact on other channels, and what came
/// of its time without success.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fallback {
    /// The message on the channel before, which had failed or had no success in time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<MessageId>,
    /// The message on the next channel, which sends too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<MessageId>,
    /// Since when its time without success runs, where that is not since it was made: a message
    /// that goes on with an older one keeps that one's place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// When it was found that no channel is left: those of `notify.fallback` hear of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unheard_at: Option<Timestamp>,
    /// An operator has put it back after its end: it stands for itself, and no other makes it needless.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_alone: bool,
    /// It tells the contacts of `notify.fallback` who could not be reached.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_digest: bool,
    /// What happened, in words for people, the oldest first; at most [`Fallback::NOTES_KEPT`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<Note>,
}

/// What happened to a message between the channels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// When.
    pub at: Timestamp,
    /// In words, for people.
    pub text: Arc<str>,
}

impl Fallback {
    /// How many notes a row keeps.
    pub const NOTES_KEPT: usize = 8;

    /// Adds a note; one that is there already is not said again.
    pub fn note(&mut self, text: &str, at: Timestamp) {
        let is_known = self.notes.iter().any(|known| &*known.text == text);
        if !is_known && self.notes.len() < Self::NOTES_KEPT {
            self.notes.push(Note { at, text: text.into() });
        }
    }
}

impl Message {
    /// How many attempts a row keeps.
    pub const ATTEMPTS_KEPT: usize = 20;

    /// About how many bytes it takes, in memory or as a row: what it says, and some for the rest.
    pub fn size(&self) -> usize {
        let left_out = self.left_out.as_ref().map_or(0, |sum| sum.text.len());
        let parameters = self.content.template.iter().flat_map(|template| &template.parameters);
        let detail = self.detail.as_ref().map_or(0, String::len);
        800 + self.content.text.len()
            + left_out
            + detail
            + parameters.map(String::len).sum::<usize>()
            + 200 * self.attempts.len()
    }

    /// Since when it is due, all holds being over: from then on its time without success runs.
    pub fn began_at(&self) -> Timestamp {
        self.fallback.as_ref().and_then(|fallback| fallback.since).unwrap_or(self.created_at)
    }
}

/// One provider call. Durable before the request leaves, so that a crash is told from silence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Counted from 1.
    pub number: u32,
    /// The provider's name in the configuration.
    pub provider: Arc<str>,
    /// The process run that started it.
    pub run: RunId,
    /// When it started.
    pub started_at: Timestamp,
    /// When its outcome was known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// What came of it; `None` while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<AttemptOutcome>,
}

/// What came of an attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum AttemptOutcome {
    /// The provider took it.
    Accepted {
        /// The provider's id.
        provider_ref: Option<String>,
    },
    /// Worth another try.
    Retry {
        /// Why.
        reason: Reason,
        /// In words.
        detail: String,
    },
    /// Refused for good.
    Rejected {
        /// Why.
        reason: Reason,
        /// In words.
        detail: String,
    },
    /// The request left and no answer was read: it may have been sent, and may be sent again.
    Unknown {
        /// In words.
        detail: String,
        /// Somebody answered that it went well, and it was not the provider, or could not be read:
        /// it is not sent there again.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        answered: bool,
        /// The process ended during the attempt: nobody knows whether the request had left.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        cut_off: bool,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_one_source_sort_by_creation() {
        let mut ids = IdSource::new(7);
        let now = Timestamp::from_millis(1_790_000_000_000);
        let made: Vec<Uuid> = (0..1000).map(|_| ids.next(now)).collect();
        assert!(made.is_sorted());
        assert_eq!(made[0].get_version_num(), 7);
        assert_ne!(IdSource::new(8).next(now), made[0]);
    }

    /// After 4,096 ids of one millisecond the order began again at 0.
    #[test]
    fn five_thousand_ids_of_one_millisecond_sort_by_creation() {
        let mut ids = IdSource::new(7);
        let now = Timestamp::from_millis(1_790_000_000_000);
        let made: Vec<Uuid> = (0..5_000).map(|_| ids.next(now)).collect();
        assert!(made.is_sorted_by(|one, next| one < next));
        // What did not fit is of the next millisecond, and that goes on when the clock comes to it.
        let next = ids.next(now.plus(Duration::from_millis(1)));
        assert!(made.iter().all(|one| *one < next));
        let made_at = |id: &Uuid| AlertId(*id).made_at();
        assert_eq!((made_at(&made[4_095]), made_at(&made[4_096])), (now, made_at(&next)));
        assert_eq!(made_at(&next), now.plus(Duration::from_millis(1)));
    }

    /// The order of a raise and its clear went with the clock.
    #[test]
    fn ids_sort_by_creation_when_the_clock_was_set_back_by_an_hour() {
        let mut ids = IdSource::new(7);
        let now = Timestamp::from_millis(1_790_000_000_000);
        let hour_ago = Timestamp::from_millis(now.as_millis() - 3_600_000);
        let mut made = vec![ids.next(now)];
        made.extend((0..5_000).map(|_| ids.next(hour_ago)));
        made.push(ids.next(now.plus(Duration::from_secs(1))));
        assert!(made.is_sorted_by(|one, next| one < next));
        // Before 1970, as a clock that was never set can be, is not before the last either.
        let before_1970 = ids.next(Timestamp::from_millis(-5));
        assert!(made.iter().all(|one| *one < before_1970));
    }

    #[test]
    fn a_message_id_depends_on_everything_that_makes_the_message() {
        let alert = AlertId::new(IdSource::new(1).next(Timestamp::from_millis(1)));
        let ana = Address::Phone("+4915112345678".parse().expect("valid"));
        let ben = Address::Phone("+4915112345679".parse().expect("valid"));
        let first = MessageId::derive(alert, AlertState::Firing, Channel::Sms, &ana);
        assert_eq!(first, MessageId::derive(alert, AlertState::Firing, Channel::Sms, &ana));
        assert_ne!(first, MessageId::derive(alert, AlertState::Firing, Channel::Sms, &ben));
        assert_ne!(first, MessageId::derive(alert, AlertState::Cleared, Channel::Sms, &ana));
        assert_ne!(first, MessageId::derive(alert, AlertState::Firing, Channel::Whatsapp, &ana));
    }

    #[test]
    fn e164_takes_numbers_and_nothing_else() {
        for good in ["+4915112345678", "+15005550006", "+1234567"] {
            assert!(good.parse::<E164>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "+",
            "4915112345678",
            "+0123456789",
            "+49 151 123",
            "+123456",
            "+1234567890123456",
            "+49x5112345678",
            "+٤٩١٥١١٢٣٤٥٦",
        ] {
            assert!(bad.parse::<E164>().is_err(), "{bad}");
        }
    }

    #[test]
    fn people_see_masked_addresses() {
        let number: E164 = "+4915112345321".parse().expect("valid");
        assert_eq!(format!("{number} {number:?}"), "+49…321 +49…321");
        let url = Address::Url("https://hooks.example.org/in/s3cret?x=1".into());
        assert_eq!(url.to_string(), "https://hooks.example.org/…");
        let no_scheme = Address::Url("hooks.example.org/in/s3cret".into());
        assert_eq!(no_scheme.to_string(), "hoo…ret");
    }

    #[test]
    fn a_receipt_never_moves_a_status_back() {
        assert_eq!(Status::Delivered.advance(Status::Sent), None);
        assert_eq!(Status::Read.advance(Status::Delivered), None);
        assert_eq!(Status::Sent.advance(Status::Delivered), Some(Status::Delivered));
        assert_eq!(Status::Undelivered.advance(Status::Delivered), Some(Status::Delivered));
        assert_eq!(Status::Sent.advance(Status::Queued), None);
    }
}
