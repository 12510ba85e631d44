//! Runs `envforge_api::properties::tunnel` on what libFuzzer thinks up.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| envforge_api::properties::tunnel(input));
