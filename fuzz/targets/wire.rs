//! See `watchbell::broker::fuzz::wire`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| watchbell::broker::fuzz::wire(bytes));
