//! What an upstream's connection failed of, in words that say what to do.
//!
//! Never holds a password: rumqttc's errors have none.

use rumqttc::v5;

use crate::telemetry::{chain, words};

/// Why a connection ended, or could not be made.
pub(super) struct Loss {
    pub(super) reason: String,
    /// The upstream has closed it without a reason of its own, such as a stop: perhaps for what it
    /// was sent.
    pub(super) is_close: bool,
}

impl From<&str> for Loss {
    fn from(reason: &str) -> Self {
        Self { reason: reason.to_owned(), is_close: false }
    }
}

/// Why a connection by MQTT 3.1.1 ended, or could not be made.
pub(super) fn v311(error: &rumqttc::ConnectionError) -> Loss {
    use rumqttc::{ConnectionError, StateError};
    let is_close = match error {
        ConnectionError::MqttState(StateError::ConnectionAborted) => true,
        ConnectionError::Io(error) | ConnectionError::MqttState(StateError::Io(error)) => {
            closes(error)
        }
        _ => false,
    };
    Loss { reason: reason_v311(error), is_close }
}

fn reason_v311(error: &rumqttc::ConnectionError) -> String {
    use rumqttc::{ConnectReturnCode, ConnectionError, StateError};
    match error {
        ConnectionError::Io(error) => io(error),
        ConnectionError::MqttState(StateError::Io(error)) => io(error),
        ConnectionError::NetworkTimeout | ConnectionError::FlushTimeout => NO_ANSWER.to_owned(),
        ConnectionError::ConnectionRefused(code) => match code {
            ConnectReturnCode::BadUserNamePassword | ConnectReturnCode::NotAuthorized => {
                format!("the upstream refuses us: {}; {LOGIN}", words(code))
            }
            code => format!("the upstream refuses us: {}", words(code)),
        },
        ConnectionError::MqttState(StateError::AwaitPingResp) => NO_PONG.to_owned(),
        ConnectionError::MqttState(StateError::ConnectionAborted) => CLOSED.to_owned(),
        ConnectionError::MqttState(StateError::Deserialization(error)) => of_packet(error),
        ConnectionError::Tls(error) => tls(error),
        error => chain(error),
    }
}

/// Why a connection by MQTT 5.0 ended, or could not be made.
pub(super) fn v5(error: &v5::ConnectionError) -> Loss {
    use v5::{ConnectionError, StateError};
    let is_close = match error {
        ConnectionError::MqttState(StateError::ConnectionAborted) => true,
        ConnectionError::MqttState(StateError::ServerDisconnect { reason_code, .. }) => {
            is_for_a_packet(*reason_code)
        }
        ConnectionError::Io(error) | ConnectionError::MqttState(StateError::Io(error)) => {
            closes(error)
        }
        _ => false,
    };
    Loss { reason: reason_v5(error), is_close }
}

/// Whether a DISCONNECT may be the answer to something that was sent, and not to the upstream's own
/// troubles.
fn is_for_a_packet(code: v5::mqttbytes::v5::DisconnectReasonCode) -> bool {
    use v5::mqttbytes::v5::DisconnectReasonCode as Code;
    matches!(
        code,
        Code::UnspecifiedError
            | Code::MalformedPacket
            | Code::ProtocolError
            | Code::ImplementationSpecificError
            | Code::NotAuthorized
            | Code::TopicNameInvalid
            | Code::PacketTooLarge
            | Code::PayloadFormatInvalid
            | Code::RetainNotSupported
            | Code::QoSNotSupported
    )
}

fn reason_v5(error: &v5::ConnectionError) -> String {
    use v5::mqttbytes::v5::ConnectReturnCode;
    use v5::{ConnectionError, StateError};
    let refused = |code: &ConnectReturnCode| match code {
        ConnectReturnCode::BadUserNamePassword | ConnectReturnCode::NotAuthorized => {
            format!("the upstream refuses us: {}; {LOGIN}", words(code))
        }
        ConnectReturnCode::UnsupportedProtocolVersion
        | ConnectReturnCode::RefusedProtocolVersion => {
            "the upstream speaks no MQTT 5.0; set version = \"3.1.1\"".to_owned()
        }
        code => format!("the upstream refuses us: {}", words(code)),
    };
    match error {
        ConnectionError::Io(error) => io(error),
        ConnectionError::MqttState(StateError::Io(error)) => io(error),
        ConnectionError::Timeout(_) => NO_ANSWER.to_owned(),
        ConnectionError::ConnectionRefused(code) => refused(code),
        ConnectionError::MqttState(StateError::ConnFail { reason }) => refused(reason),
        ConnectionError::MqttState(StateError::AwaitPingResp) => NO_PONG.to_owned(),
        ConnectionError::MqttState(StateError::ConnectionAborted) => CLOSED.to_owned(),
        ConnectionError::MqttState(StateError::ServerDisconnect { reason_code, .. }) => {
            match words(reason_code).as_str() {
                "session taken over" => {
                    "the upstream ended the connection: another client came with the same client_id; each instance needs its own".to_owned()
                }
                reason => format!("the upstream ended the connection: {reason}"),
            }
        }
        ConnectionError::MqttState(StateError::Deserialization(error)) => of_packet_v5(error),
        ConnectionError::Tls(error) => tls(error),
        error => chain(error),
    }
}

const LOGIN: &str = "see user, password and cert";
const NO_ANSWER: &str = "no answer in time (connect_timeout)";
const NO_PONG: &str = "no answer to a ping";
/// Where it closes before CONNACK.
pub(super) const EARLY: &str = "; that was before it answered CONNECT: see its log, and whether this port speaks TLS, with mqtts";
const CLOSED: &str = "the upstream closed the connection";

fn closes(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(
        error.kind(),
        ErrorKind::ConnectionReset
            | ErrorKind::UnexpectedEof
            | ErrorKind::ConnectionAborted
            | ErrorKind::BrokenPipe
    )
}

fn io(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "nothing listens there".to_owned(),
        _ if closes(error) => CLOSED.to_owned(),
        _ => with_next(error.to_string()),
    }
}

fn tls(error: &(dyn std::error::Error + 'static)) -> String {
    format!("TLS: {}", with_next(chain(error)))
}

/// What to do about a fault of TLS, which also comes as one of the socket.
fn with_next(text: String) -> String {
    let next = if text.contains("UnknownIssuer") || text.contains("BadSignature") {
        "its certificate comes from a CA that is not in `ca`"
    } else if text.contains("NotValidForName") || text.contains("not valid for name") {
        "its certificate has another name than the host in `url`"
    } else if text.contains("CertificateRequired") {
        "it wants a client certificate: set cert and key"
    } else if text.contains("handshake eof") {
        "it closed the connection in the middle; does this port speak TLS?"
    } else if text.contains("failed to lookup address") {
        "the host in `url` has no address"
    } else {
        return text;
    };
    format!("{text}; {next}")
}

fn too_large(bytes: usize) -> String {
    format!(
        "a packet of {bytes} bytes is larger than packet_bytes_max; nothing more comes until that is raised or the publish is gone from the upstream"
    )
}

fn of_packet(error: &rumqttc::mqttbytes::Error) -> String {
    match error {
        rumqttc::mqttbytes::Error::PayloadSizeLimitExceeded(bytes) => too_large(*bytes),
        rumqttc::mqttbytes::Error::Io(error) => io(error),
        error => format!("what came is not MQTT as it should be: {error}"),
    }
}

fn of_packet_v5(error: &v5::mqttbytes::Error) -> String {
    match error {
        v5::mqttbytes::Error::PayloadSizeLimitExceeded { pkt_size, .. } => too_large(*pkt_size),
        v5::mqttbytes::Error::Io(error) => io(error),
        error => format!("what came is not MQTT as it should be: {error}"),
    }
}
