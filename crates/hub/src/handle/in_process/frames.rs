//! HTTP/2 frames by hand (RFC 9113 section 4, RFC 7541), for what no HTTP library would send.

use super::*;

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

pub(super) const END_STREAM: u8 = 1;
pub(super) const ACK: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;

pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// A header block of literals that are never indexed, exactly as given: any order, any case, any byte.
pub(super) fn block(fields: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.push(0);
        for text in [name, value] {
            integer(text.len(), &mut bytes);
            bytes.extend_from_slice(text);
        }
    }
    bytes
}

/// The same from text.
pub(super) fn fields(lines: &[(&str, &str)]) -> Vec<(Vec<u8>, Vec<u8>)> {
    lines.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec())).collect()
}

/// With a prefix of 7 bits (RFC 7541 section 5.1).
fn integer(mut value: usize, bytes: &mut Vec<u8>) {
    if value < 127 {
        return bytes.push(u8::try_from(value).unwrap());
    }
    bytes.push(127);
    value -= 127;
    while value >= 128 {
        bytes.push(u8::try_from(value % 128).unwrap() | 128);
        value /= 128;
    }
    bytes.push(u8::try_from(value).unwrap());
}

/// A header block in as many frames as its size needs.
pub(super) fn headers(stream: u32, flags: u8, block: &[u8]) -> Vec<u8> {
    let mut pieces = block.chunks(16 * 1024).peekable();
    let (mut bytes, mut kind, mut flags) = (Vec::new(), HEADERS, flags);
    while let Some(piece) = pieces.next() {
        let last = if pieces.peek().is_none() { END_HEADERS } else { 0 };
        bytes.extend(frame(kind, flags | last, stream, piece));
        (kind, flags) = (CONTINUATION, 0);
    }
    bytes
}

/// One frame that was read.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
    pub(super) payload: Vec<u8>,
}

/// The next frame; `None` at the end or a cut.
pub(super) async fn read<S: tokio::io::AsyncRead + Unpin>(stream: &mut S) -> Option<Frame> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.ok()?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
    let mut payload = vec![0; length as usize];
    stream.read_exact(&mut payload).await.ok()?;
    Some(Frame { kind: head[3], flags: head[4], stream: id, payload })
}

/// What became of stream 1: a status, `reset`, `goaway` or `close`. Answers SETTINGS and PING meanwhile.
pub(super) async fn outcome<S>(stream: &mut S) -> String
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    while let Some(got) = read(stream).await {
        match got.kind {
            HEADERS if got.stream == 1 => return status(&got.payload).to_string(),
            RST_STREAM if got.stream == 1 => return "reset".to_owned(),
            GOAWAY => return "goaway".to_owned(),
            SETTINGS | PING if got.flags & ACK == 0 => {
                let payload = if got.kind == PING { &got.payload[..] } else { &[] };
                if stream.write_all(&frame(got.kind, ACK, 0, payload)).await.is_err() {
                    return "close".to_owned();
                }
            }
            _ => {}
        }
    }
    "close".to_owned()
}

/// `:status` as the first field of the first block of a connection: an entry of the static table, or a
/// literal with its name from there.
fn status(block: &[u8]) -> u16 {
    let first = block[0];
    if first & 0x80 != 0 {
        return [200, 204, 206, 304, 400, 404, 500][usize::from(first & 0x7f) - 8];
    }
    let (length, text) = (block[1], &block[2..]);
    if length & 0x80 == 0 {
        return std::str::from_utf8(&text[..3]).unwrap().parse().unwrap();
    }
    // The digits of the Huffman code (RFC 7541 appendix B): 0 to 2 in five bits, the others in six.
    let bits: String = text.iter().take(3).map(|byte| format!("{byte:08b}")).collect();
    let (mut at, mut number) = (0, 0);
    for _ in 0..3 {
        let five = u16::from_str_radix(&bits[at..at + 5], 2).unwrap();
        if five < 3 {
            number = number * 10 + five;
            at += 5;
        } else {
            number = number * 10 + u16::from_str_radix(&bits[at..at + 6], 2).unwrap() - 0x19 + 3;
            at += 6;
        }
    }
    number
}
