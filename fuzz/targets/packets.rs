//! See `watchbell::broker::fuzz::packets`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| watchbell::broker::fuzz::packets(bytes));
