//! Requests byte for byte: what no HTTP library would send.

use super::*;

/// Time for anything that has no limit of its own in the hub.
const PATIENCE: Duration = Duration::from_secs(30);
/// Sent behind the first answer on the same connection: whatever was left of the request before it comes to
/// light as an answer too many, or as none to this one.
pub(super) const PROBE: &[u8] = b"GET /livez HTTP/1.1\r\nHost: hub\r\nConnection: close\r\n\r\n";

/// One answer of the hub.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) head: String,
    pub(super) body: Vec<u8>,
}

impl Answer {
    /// Whether nothing behind it is read as another request.
    pub(super) fn ends_or_switches(&self) -> bool {
        self.status == 101 || self.head.to_ascii_lowercase().contains("\r\nconnection: close\r\n")
    }
}

/// What came back on a connection, without the answer to [`PROBE`].
#[derive(Debug)]
pub(super) struct Conversation(pub(super) Vec<Answer>);

impl Conversation {
    /// `200`, `200,401` for two answers, or `close`.
    pub(super) fn outcome(&self) -> String {
        if self.0.is_empty() {
            return "close".to_owned();
        }
        self.0.iter().map(|answer| answer.status.to_string()).collect::<Vec<_>>().join(",")
    }
}

/// Sends these bytes, reads one answer, then asks [`PROBE`] and reads to the end. With `fin` the connection is
/// closed for writing behind the bytes instead.
pub(super) async fn converse(stream: TlsStream<TcpStream>, bytes: &[u8], fin: bool) -> Conversation {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let head_only = bytes.starts_with(b"HEAD ");
    let said = async {
        // A hub that has closed already is no failure here: what counts is what it says.
        let _ = writer.write_all(bytes).await;
        let _ = writer.flush().await;
        if fin {
            let _ = writer.shutdown().await;
        }
    };
    let heard = async {
        let mut buffer = Vec::new();
        loop {
            if let Some((answer, used)) = parse(&buffer, head_only) {
                return (Some(answer), buffer.split_off(used));
            }
            let mut piece = vec![0; 16 * 1024];
            match reader.read(&mut piece).await {
                Ok(count) if count > 0 => buffer.extend_from_slice(&piece[..count]),
                _ => return (None, buffer),
            }
        }
    };
    let both = tokio::time::timeout(PATIENCE, futures::future::join(said, heard)).await;
    let ((), (first, mut rest)) = both.unwrap_or_else(|_| {
        panic!(
            "neither an answer nor an end to {:?}",
            String::from_utf8_lossy(&bytes[..bytes.len().min(400)])
        )
    });
    let mut answers: Vec<_> = first.into_iter().collect();
    if answers.iter().all(|first| first.status == 101) {
        return Conversation(answers);
    }
    let _ = writer.write_all(PROBE).await;
    let end = async { while matches!(reader.read_buf(&mut rest).await, Ok(count) if count > 0) {} };
    assert!(tokio::time::timeout(PATIENCE, end).await.is_ok(), "the connection stays open");
    while let Some((answer, used)) = parse(&rest, false) {
        answers.push(answer);
        rest.drain(..used);
    }
    if answers.len() > 1 && answers.last().is_some_and(|last| last.body == b"ok") {
        answers.pop();
    }
    Conversation(answers)
}

/// The first whole answer in the buffer and its length.
fn parse(buffer: &[u8], head_only: bool) -> Option<(Answer, usize)> {
    let end = buffer.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
    let status = head.split(' ').nth(1)?.parse().unwrap();
    if status == 100 {
        let (answer, used) = parse(&buffer[end..], head_only)?;
        return Some((answer, used + end));
    }
    let field = |name: &str| {
        head.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        })
    };
    let bodiless = head_only || status == 101 || status == 204 || status == 304;
    let (body, used) = if bodiless {
        (Vec::new(), end)
    } else if field("transfer-encoding").is_some() {
        let length = buffer[end..].windows(5).position(|window| window == b"0\r\n\r\n")? + 5;
        (buffer[end..end + length].to_vec(), end + length)
    } else {
        let length: usize = field("content-length").map_or(0, |length| length.parse().unwrap());
        (buffer.get(end..end + length)?.to_vec(), end + length)
    };
    Some((Answer { status, head, body }, used))
}

/// The bytes that a template stands for: `\r`, `\n`, `\t`, `\\`, `\xHH`, and `{name}` for a text or
/// `{text*count}` for a repetition.
pub(super) fn expand(template: &str, names: &[(&str, String)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = template;
    while let Some(at) = rest.find(['\\', '{']) {
        bytes.extend_from_slice(&rest.as_bytes()[..at]);
        let special = &rest[at..];
        if let Some(escape) = special.strip_prefix('\\') {
            let (byte, used) = match escape.as_bytes()[0] {
                b'r' => (b'\r', 1),
                b'n' => (b'\n', 1),
                b't' => (b'\t', 1),
                b'\\' => (b'\\', 1),
                b'{' => (b'{', 1),
                b'x' => (u8::from_str_radix(&escape[1..3], 16).unwrap(), 3),
                other => panic!("\\{} in {template:?}", char::from(other)),
            };
            bytes.push(byte);
            rest = &escape[used..];
        } else {
            let (name, after) = special[1..].split_once('}').unwrap();
            if let Some((_, text)) = names.iter().find(|(known, _)| *known == name) {
                bytes.extend(expand(text, names));
            } else {
                let (text, count) =
                    name.rsplit_once('*').unwrap_or_else(|| panic!("{{{name}}} in {template:?}"));
                bytes.extend(expand(text, names).repeat(count.parse().unwrap()));
            }
            rest = after;
        }
    }
    bytes.extend_from_slice(rest.as_bytes());
    bytes
}
