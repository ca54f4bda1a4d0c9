//! Replays what stands in the corpora, so that what was found once is tried with every build, and keeps them small
//! enough for that.
#![allow(clippy::unwrap_used, reason = "a test ends at what it did not expect")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use fuzz::TARGETS;

/// More would not be replayed in seconds, nor read by anybody.
const MOST_FILES: usize = 200;
const MOST_BYTES: usize = 300 * 1024;
/// A corpus of less is none.
const FEWEST_FILES: usize = 8;

fn corpora() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn nothing_in_the_corpora_breaks_a_promise() {
    let mut broken = Vec::new();
    for target in TARGETS {
        for file in files(&corpora().join(target.name)) {
            let data = fs::read(&file).unwrap();
            if std::panic::catch_unwind(|| (target.run)(&data)).is_err() {
                broken.push(file);
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn every_target_has_a_small_corpus_and_every_corpus_a_target() {
    let named: BTreeSet<String> =
        files(&corpora()).iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    assert_eq!(named, TARGETS.map(|target| target.name.to_owned()).into());
    for target in TARGETS {
        let files = files(&corpora().join(target.name));
        let bytes: usize = files.iter().map(|file| fs::read(file).unwrap().len()).sum();
        assert!((FEWEST_FILES..=MOST_FILES).contains(&files.len()), "{}: {} files", target.name, files.len());
        assert!(bytes <= MOST_BYTES, "{}: {bytes} bytes", target.name);
    }
}
