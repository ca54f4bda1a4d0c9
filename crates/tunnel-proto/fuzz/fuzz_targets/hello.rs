//! Any bytes as a hello and as its answer.

#![no_main]

#[path = "../replay.rs"]
mod replay;

libfuzzer_sys::fuzz_target!(|data: &[u8]| replay::hello(data));
