//! Why a certificate could not be made, read or revoked: what, where, and what next.
//!
//! Never repeats what is in a key file.

use std::io;
use std::path::PathBuf;

/// Why a certificate could not be made, read or revoked.
#[derive(Debug, thiserror::Error)]
pub enum CertError {
    /// A file or directory.
    #[error("{path}: {error}{next}", path = .path.display(), next = next(error))]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// It is there, and nobody said that it may go.
    #[error(
        "{path} exists; --force replaces it, `watchbell certs renew {name}` makes a new certificate for the same key",
        path = .path.display()
    )]
    Exists {
        /// Which.
        path: PathBuf,
        /// Whose.
        name: String,
    },
    /// Its files are elsewhere, and it still counts.
    #[error(
        "{name} has a certificate until {ends} (serial {serial}), whose files are not here; `watchbell certs renew {name}` makes another for the same key, --force one with a new key"
    )]
    Issued {
        /// Whose.
        name: String,
        /// Which.
        serial: String,
        /// When it ends.
        ends: String,
    },
    /// A key that would no longer be that of the certificate beside it.
    #[error(
        "{path} is the key of an earlier certificate, and a request brings a key of its own; move it away first",
        path = .0.display()
    )]
    KeyInTheWay(PathBuf),
    /// Some of what the server needs is there and some is not: nothing is guessed.
    #[error(
        "{missing} is missing beside {there}; put it back, or make the server's certificate anew with `watchbell certs init --force`",
        missing = .missing.display(), there = .there.display()
    )]
    Incomplete {
        /// What is not there.
        missing: PathBuf,
        /// What is.
        there: PathBuf,
    },
    /// A CA's key without its certificate: neither is guessed or replaced.
    #[error(
        "{missing} is missing beside {there}; put it back, or move the key away to start with a new CA",
        missing = .missing.display(), there = .there.display()
    )]
    CaIncomplete {
        /// What is not there.
        missing: PathBuf,
        /// What is.
        there: PathBuf,
    },
    /// What was asked concerns a CA that is made, and it is there already.
    #[error(
        "{path} exists and is never replaced, because every certificate hangs on it: leave out --name and --days, or name another directory with --dir",
        path = .0.display()
    )]
    CaExists(PathBuf),
    /// There is no CA to sign with.
    #[error("{path} is missing; run `watchbell certs init` first", path = .0.display())]
    NoCa(PathBuf),
    /// There is a CA whose key is elsewhere.
    #[error(
        "{path} is missing, so nothing can be signed by that CA; put the key there for as long as this takes, or name another directory with --dir",
        path = .0.display()
    )]
    NoCaKey(PathBuf),
    /// Certificate and key of the CA are not a pair.
    #[error(
        "{key} is not the key of {cert}; put the right one there, perhaps from a backup",
        key = .key.display(), cert = .cert.display()
    )]
    CaKey {
        /// The key.
        key: PathBuf,
        /// The certificate.
        cert: PathBuf,
    },
    /// It may not sign what was asked.
    #[error("{path}: {detail}", path = .path.display())]
    UnfitCa {
        /// The CA's certificate.
        path: PathBuf,
        /// Why, and what next.
        detail: String,
    },
    /// A name that cannot be a file and an identity.
    #[error(
        "`{0}` cannot name a certificate; use 1 to 64 letters, digits, `-`, `_` and `.`, beginning with a letter or digit, and none of ca, issuing, server and crl"
    )]
    BadName(String),
    /// A CA's name.
    #[error("`{0}` cannot name a CA; use 1 to 48 characters, no control characters")]
    BadCaName(String),
    /// A host name that cannot stand in a certificate.
    #[error("`{0}` is no host name or IP address")]
    BadHost(String),
    /// A URI that cannot stand in a certificate.
    #[error("`{0}` is no URI; write as in urn:site:kiel:pump-7, at most 255 characters of ASCII")]
    BadUri(String),
    /// A server without a name that a client could compare.
    #[error(
        "`{0}` is no host name, so clients would have nothing to compare; add --dns NAME or --ip ADDRESS"
    )]
    NoHost(String),
    /// A file that is no certificate, key or CRL.
    #[error("{path}: {detail}", path = .path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// A certificate signing request that is refused.
    #[error("the certificate request: {0}")]
    BadRequest(&'static str),
    /// Nothing of that name or serial has been issued here.
    #[error("{directory} has no certificate `{wanted}`; `watchbell certs list` shows them", directory = .directory.display())]
    NoSuch {
        /// What was asked for.
        wanted: String,
        /// Where.
        directory: PathBuf,
    },
    /// It is, all of it.
    #[error("{0} is revoked already, or has ended; `watchbell certs list` shows when")]
    NothingToRevoke(String),
    /// A revoked certificate is not renewed.
    #[error(
        "the certificate of {0} is revoked; `watchbell certs issue {0}` makes one with a new key"
    )]
    Revoked(String),
    /// A CA is not renewed.
    #[error(
        "{0} is a CA, and a CA is replaced, not renewed: docs/certificates.md, `When a CA ends`"
    )]
    RenewCa(String),
    /// Certificate and key of a name are not a pair.
    #[error(
        "{key} is not the key of {cert}; `watchbell certs renew {name} --new-key` makes both anew",
        key = .key.display(), cert = .cert.display()
    )]
    KeyDiffers {
        /// The key.
        key: PathBuf,
        /// The certificate.
        cert: PathBuf,
        /// Whose.
        name: String,
    },
    /// Signed by a CA that is not here.
    #[error(
        "{name} (serial {serial}) is signed by none of the CAs in {directory}; only the CA that has signed it can revoke it: name its directory with --dir",
        directory = .directory.display()
    )]
    OtherCa {
        /// Whose.
        name: String,
        /// Which.
        serial: String,
        /// Where.
        directory: PathBuf,
    },
    /// The library cannot make the certificate.
    #[error("making a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// No random numbers.
    #[error("the system has no random numbers: {0}")]
    Random(getrandom::Error),
}

fn next(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "; run this as the user whom the directory belongs to, or name another with --dir"
        }
        io::ErrorKind::NotFound => "; name the right directory with --dir",
        _ => "",
    }
}
