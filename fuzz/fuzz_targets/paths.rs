//! Runs `envforge_gateway::properties::paths` on what libFuzzer thinks up.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| envforge_gateway::properties::paths(input));
