//! See `watchbell::broker::fuzz::filters`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| watchbell::broker::fuzz::filters(bytes));
