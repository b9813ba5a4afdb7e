//! What clients, backends, the host and the machine may do to the whole loop.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tinylb::fuzzing::balancer(bytes));
