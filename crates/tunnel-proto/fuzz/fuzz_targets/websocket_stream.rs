//! Any bytes from the peer, to either side of the byte stream.

#![no_main]

#[path = "../replay.rs"]
mod replay;

libfuzzer_sys::fuzz_target!(|data: &[u8]| replay::websocket_stream(data));
