//! Integration tests: the whole application over real sockets.
#![allow(clippy::unwrap_used, missing_docs)]

mod store;
