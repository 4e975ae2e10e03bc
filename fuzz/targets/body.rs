#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| millstream::upstream::openai::fuzzing::body(bytes));
