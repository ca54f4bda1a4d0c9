//! The tunnel's own formats: any bytes as a hello, as its answer, and as WebSocket frames of either side.

use std::io::Cursor;

use tokio::io::AsyncReadExt as _;
use tunnel_proto::Hello;
use tunnel_proto::hello::parse_answer;
use tunnel_proto::limits::MESSAGE_MAX;
use tunnel_proto::websocket::{Side, WebSocketIo};

/// A hello that is read can be written, and reads the same again.
pub(crate) fn hello(data: &[u8]) {
    if let Ok(hello) = Hello::parse(data) {
        // Escapes can make it longer than what was read, and too long.
        if let Ok(written) = hello.encode() {
            assert_eq!(Hello::parse(&written).unwrap(), hello);
        }
    }
    if let Ok(Ok(welcome)) = parse_answer(&Hello::new("c", "i", "v"), data) {
        assert_eq!(welcome.protocol, 1);
    }
}

/// The stream gives no more bytes than came in, and ends.
pub(crate) fn websocket_stream(data: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    for side in [Side::Hub, Side::Agent] {
        runtime.block_on(async {
            let wire = tokio::io::join(Cursor::new(data), tokio::io::sink());
            let mut io = WebSocketIo::new(wire, side).await;
            let mut read = Vec::new();
            let _ended = io.read_to_end(&mut read).await;
            assert!(read.len() <= data.len() && read.len() <= MESSAGE_MAX.max(data.len()));
        });
    }
}
