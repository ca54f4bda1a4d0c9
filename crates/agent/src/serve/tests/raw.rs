//! The hub's end of a tunnel by hand: WebSocket messages (RFC 6455 section 5.2) and HTTP/2 frames (RFC 9113
//! section 4, RFC 7541), for what no library would send.

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

pub(super) const BINARY: u8 = 0x82;

/// What a question behind a flood carries.
pub(super) const ARE_YOU: &[u8] = b"are you?";

/// One connection.
pub(super) struct Raw {
    pub(super) reader: Reader,
    pub(super) writer: tokio::io::WriteHalf<DuplexStream>,
}

pub(super) struct Reader {
    half: tokio::io::ReadHalf<DuplexStream>,
    /// Bytes of HTTP/2 that were not read as frames yet.
    inbox: Vec<u8>,
}

/// One HTTP/2 frame that was read.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
    pub(super) payload: Vec<u8>,
}

impl Raw {
    /// Has answered the agent's hello and sent the preface.
    pub(super) async fn open(world: &World) -> Self {
        let (half, mut writer) = tokio::io::split(world.wire());
        let mut reader = Reader { half, inbox: Vec::new() };
        let hello = reader.message().await.unwrap();
        let welcome = Welcome::answering(&Hello::parse(&hello).unwrap(), "t", "h", "0.1.0").unwrap();
        let start = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &frame(SETTINGS, 0, 0, &[])[..]].concat();
        writer.write_all(&message(BINARY, &welcome.encode().unwrap())).await.unwrap();
        writer.write_all(&message(BINARY, &start)).await.unwrap();
        Self { reader, writer }
    }

    /// Sends a request on stream 1 and tells what became of it: a status with the body, `reset`, `goaway` or
    /// `close`.
    pub(super) async fn ask(mut self, fields: &[(Vec<u8>, Vec<u8>)]) -> (String, Vec<u8>) {
        let sent = messages(&headers(1, END_STREAM, &block(fields)));
        let (mut reader, mut writer) = (self.reader, self.writer);
        let sending = async {
            let _ = writer.write_all(&sent).await;
        };
        let hearing = async {
            let (mut status, mut body) = (None, Vec::new());
            while let Some(got) = reader.frame().await {
                match got.kind {
                    HEADERS if got.stream == 1 => status = Some(code(&got.payload)),
                    DATA if got.stream == 1 => body.extend_from_slice(&got.payload),
                    RST_STREAM if got.stream == 1 && status.is_none() => return ("reset".to_owned(), body),
                    GOAWAY if status.is_none() => return ("goaway".to_owned(), body),
                    _ => {}
                }
                if let Some(status) = status
                    && got.stream == 1
                    && got.flags & END_STREAM != 0
                {
                    return (status.to_string(), body);
                }
            }
            ("close".to_owned(), body)
        };
        let ((), heard) =
            timeout(Duration::from_secs(30), futures::future::join(sending, hearing)).await.unwrap();
        self.writer = writer;
        heard
    }

    /// Sends bytes as they are, then asks whether the connection lives.
    pub(super) async fn lives_after(self, bytes: Vec<u8>) -> bool {
        let (mut reader, mut writer) = (self.reader, self.writer);
        let question = message(BINARY, &frame(PING, 0, 0, ARE_YOU));
        let sending = async {
            for piece in [bytes, question] {
                if writer.write_all(&piece).await.is_err() {
                    break;
                }
            }
        };
        let hearing = async {
            while let Some(frame) = reader.frame().await {
                match frame.kind {
                    GOAWAY => return false,
                    PING if frame.flags & ACK != 0 && frame.payload == ARE_YOU => return true,
                    _ => {}
                }
            }
            false
        };
        let ((), lives) =
            timeout(Duration::from_mins(1), futures::future::join(sending, hearing)).await.unwrap();
        lives
    }
}

impl Reader {
    /// The payload of the next data message; `None` at the end.
    async fn message(&mut self) -> Option<Vec<u8>> {
        loop {
            let mut head = [0; 2];
            self.half.read_exact(&mut head).await.ok()?;
            let length = match head[1] & 0x7f {
                126 => u64::from(self.half.read_u16().await.ok()?),
                127 => self.half.read_u64().await.ok()?,
                short => u64::from(short),
            };
            // An agent is a WebSocket client, and those mask.
            let mut mask = [0; 4];
            self.half.read_exact(&mut mask).await.ok()?;
            let mut payload = vec![0; usize::try_from(length).unwrap()];
            self.half.read_exact(&mut payload).await.ok()?;
            payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
            match head[0] & 0x0f {
                0..=2 => return Some(payload),
                8 => return None,
                _ => {}
            }
        }
    }

    /// The next frame; `None` at the end.
    pub(super) async fn frame(&mut self) -> Option<Frame> {
        loop {
            if let [a, b, c, kind, flags, s0, s1, s2, s3, rest @ ..] = &self.inbox[..] {
                let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
                if rest.len() >= length {
                    let stream = u32::from_be_bytes([*s0, *s1, *s2, *s3]);
                    let frame =
                        Frame { kind: *kind, flags: *flags, stream, payload: rest[..length].to_vec() };
                    self.inbox.drain(..9 + length);
                    return Some(frame);
                }
            }
            let more = self.message().await?;
            self.inbox.extend(more);
        }
    }
}

/// One WebSocket message of a server: its first byte as given, no mask.
pub(super) fn message(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        short @ 0..126 => bytes.push(u8::try_from(short).unwrap()),
        middle @ 126..65_536 => {
            bytes.push(126);
            bytes.extend(u16::try_from(middle).unwrap().to_be_bytes());
        }
        long => {
            bytes.push(127);
            bytes.extend((long as u64).to_be_bytes());
        }
    }
    bytes.extend_from_slice(payload);
    bytes
}

/// HTTP/2 bytes in as many messages as they need.
pub(super) fn messages(bytes: &[u8]) -> Vec<u8> {
    bytes.chunks(32 * 1024).flat_map(|piece| message(BINARY, piece)).collect()
}

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

/// `:status` as the first field of the first block of a connection: an entry of the static table, or a literal
/// with its name from there.
fn code(block: &[u8]) -> u16 {
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
