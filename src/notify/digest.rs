//! What a message says that tells of several alerts.
