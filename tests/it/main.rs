//! Integration tests: the whole application over real sockets.
