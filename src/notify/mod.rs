//! Alerts -> messages: who hears of it, where, and in which order of channels.
//!
//! Pure: it is given an alert, the directory of contacts and the time, and gives messages. It
//! never sends, stores or retries; the same input always gives the same messages with the same ids.

pub mod contact;
pub mod plan;
