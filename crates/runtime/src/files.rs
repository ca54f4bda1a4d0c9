//! Small files that somebody else writes: certificates, keys, a configuration. Never reads without end, and never waits
//! for a pipe.

use std::io::Read as _;
use std::path::Path;

/// Largest file that is read: a ConfigMap or Secret takes no more.
const MAX: u64 = 1024 * 1024;

/// Reads a regular file of at most 1 MiB. A pipe would keep a process from starting for ever.
///
/// # Errors
/// There is none, or it is something else, or too large.
pub fn read_small(path: &Path) -> std::io::Result<String> {
    let not = |why: &str| Err(std::io::Error::other(why.to_owned()));
    // Asked before it is opened, since opening a pipe waits for its other end.
    if !std::fs::metadata(path)?.is_file() {
        return not("it is no regular file");
    }
    let file = std::fs::File::open(path)?;
    // In one piece: a buffer that grows leaves copies behind, and this may be a key.
    let length = usize::try_from(file.metadata()?.len().min(MAX)).unwrap_or_default();
    let mut text = String::with_capacity(length + 1);
    file.take(MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX {
        return not("it is larger than 1 MiB; certificates, keys and configurations take a few KiB");
    }
    Ok(text)
}
