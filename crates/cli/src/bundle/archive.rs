//! The archive: gzip over tar, the same bytes for the same content, so that two bundles can be compared. Takes nothing
//! but [`Clean`] text.

use std::collections::BTreeMap;
use std::io;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::redact::Clean;

/// Largest file: logs are cut at the server, lists of a large parent here.
pub(crate) const MAX_FILE: usize = 2 * 1024 * 1024;
/// Largest bundle before it is packed; what comes after is left out and named.
pub(crate) const MAX_ALL: usize = 48 * 1024 * 1024;
/// Mode of each file: what is in it is for the person who made it.
const MODE: u32 = 0o600;

/// What goes in, by path.
#[derive(Debug, Default)]
pub(crate) struct Files {
    files: BTreeMap<String, Clean>,
    size: usize,
    left_out: Vec<String>,
}

impl Files {
    /// Adds one, cut to [`MAX_FILE`].
    pub(crate) fn add(&mut self, path: &str, content: &Clean) {
        let content = content.at_most(MAX_FILE);
        if self.size + content.as_str().len() > MAX_ALL {
            self.miss(path, "the bundle would be too large");
            return;
        }
        self.size += content.as_str().len();
        self.files.insert(path.to_owned(), content);
    }

    /// Notes what could not be had, and why.
    pub(crate) fn miss(&mut self, path: &str, why: &str) {
        self.left_out.push(format!("{path}: {why}"));
    }

    /// How many files there are, and what is not among them.
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.files.len(), self.left_out.len())
    }

    /// The bytes of the `.tar.gz`.
    ///
    /// # Errors
    /// Those of memory.
    pub(crate) fn pack(mut self, head: &str) -> io::Result<Vec<u8>> {
        self.left_out.sort();
        let left_out =
            if self.left_out.is_empty() { "nothing".to_owned() } else { self.left_out.join("\n  ") };
        self.files
            .insert("README.txt".to_owned(), Clean::text(&format!("{head}\n\nNot in it:\n  {left_out}\n")));
        // The default header of gzip holds no name and no time.
        let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
        for (path, content) in &self.files {
            let bytes = content.as_str().as_bytes();
            let mut header = tar::Header::new_ustar();
            header.set_size(u64::try_from(bytes.len()).unwrap_or_default());
            header.set_mode(MODE);
            header.set_mtime(0);
            archive.append_data(&mut header, format!("towline-support/{path}"), bytes)?;
        }
        archive.into_inner()?.finish()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn unpack(bytes: &[u8]) -> BTreeMap<String, String> {
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(bytes));
        let read = |entry: io::Result<tar::Entry<'_, _>>| {
            let mut entry: tar::Entry<'_, flate2::read::GzDecoder<&[u8]>> = entry.unwrap();
            assert_eq!((entry.header().mode().unwrap(), entry.header().mtime().unwrap()), (MODE, 0));
            let path = entry.path().unwrap().display().to_string();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            (path, text)
        };
        archive.entries().unwrap().map(read).collect()
    }

    #[test]
    fn the_same_content_is_the_same_bundle_and_reads_back() {
        let pack = |order: &[&str]| {
            let mut files = Files::default();
            for path in order {
                files.add(path, &Clean::text("content, token=hunter2"));
            }
            files.miss("hub.log", "forbidden");
            files.pack("head").unwrap()
        };
        let bytes = pack(&["b", "a"]);
        assert_eq!(bytes, pack(&["a", "b"]));
        let files = unpack(&bytes);
        assert_eq!(
            files.keys().collect::<Vec<_>>(),
            ["towline-support/README.txt", "towline-support/a", "towline-support/b"]
        );
        assert_eq!(files["towline-support/README.txt"], "head\n\nNot in it:\n  hub.log: forbidden\n");
        assert_eq!(files["towline-support/a"], "content, token=[cut]");
    }

    #[test]
    fn a_large_file_is_cut_and_a_large_bundle_ends() {
        let mut files = Files::default();
        let large = Clean::text(&"ä ".repeat(MAX_FILE));
        for index in 0..30 {
            files.add(&index.to_string(), &large);
        }
        let (there, missing) = files.counts();
        assert!(there >= 20 && missing > 0 && files.size <= MAX_ALL, "{there} {missing}");
        assert!(files.files["0"].as_str().ends_with("[the rest is cut]\n"));
    }
}
