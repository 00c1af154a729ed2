//! What operators see of the engine, and do to it: alerts, silences, and why.
//!
//! Plain values made on the engine's thread, for the HTTP edge to answer. Invariant: looking changes
//! nothing, and what it builds is bounded by the limit that it is given.

pub mod alerts;
pub mod silences;
pub mod why;
