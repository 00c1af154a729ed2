//! See `watchbell::broker::fuzz::connect`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| watchbell::broker::fuzz::connect(bytes));
