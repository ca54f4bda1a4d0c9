//! Heads of requests and answers as text: what a person writes into a corpus, read as an HTTP library would.

use http::{HeaderMap, HeaderName, HeaderValue};

/// The first line, as text, and what follows it.
pub(crate) fn first_line(data: &[u8]) -> (&str, &[u8]) {
    let end = data.iter().position(|&byte| byte == b'\n');
    let (line, rest) = end.map_or((data, &[][..]), |end| (&data[..end], &data[end + 1..]));
    (std::str::from_utf8(line).unwrap_or_default(), rest)
}

/// Lines of `Name: value`. Those that no HTTP library would pass on are left out; so is blank space around a value.
pub(crate) fn headers(data: &[u8]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in data.split(|&byte| byte == b'\n') {
        let Some(colon) = line.iter().position(|&byte| byte == b':') else { continue };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            headers.append(name, value);
        }
    }
    headers
}

/// All values of a header, as bytes.
pub(crate) fn values<'a>(headers: &'a HeaderMap, name: &str) -> Vec<&'a [u8]> {
    headers.get_all(name).iter().map(HeaderValue::as_bytes).collect()
}

/// A name as whoever maps `_` to `-` reads it.
pub(crate) fn folded(name: &HeaderName) -> String {
    name.as_str().replace('_', "-")
}
