//! What two sockets may do to the relay between them, and when the relay is told of it.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tinylb::fuzzing::relay(bytes));
