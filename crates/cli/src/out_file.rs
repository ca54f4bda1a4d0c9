//! A file for a secret: made with mode 0600 before anything is asked for, filled in one go, and gone again
//! if the command fails.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use crate::failure::{Exit, Failure};

/// A file that does not count until it is written.
#[derive(Debug)]
pub(crate) struct OutFile {
    file: File,
    /// Where the file is now.
    at: PathBuf,
    /// Where it shall be.
    to: PathBuf,
    done: bool,
}

impl OutFile {
    /// Makes the file. Without `force`, a file that exists is left alone and is an error.
    pub(crate) fn create(to: &Path, force: bool) -> Result<Self, Failure> {
        // With --force the text goes beside the old file and replaces it at the end, so that neither its
        // mode, nor a link, nor a half-written text is left.
        let at = if force { beside(to) } else { to.to_owned() };
        // A device or a directory must not be replaced, and behind a link is a file that nobody has named.
        if force && fs::symlink_metadata(to).is_ok_and(|there| !there.is_file()) {
            return Err(Failure::new(Exit::Error, format!("{} is no plain file", to.display()))
                .next("name the file itself; to print to the terminal leave --out away"));
        }
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        match options.open(&at) {
            Ok(file) => Ok(Self { file, at, to: to.to_owned(), done: false }),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                Err(Failure::new(Exit::Error, format!("{} exists already", at.display()))
                    .next("choose another name, or add --force to replace it"))
            }
            Err(error) => Err(unwritable(to, &error)),
        }
    }

    /// Writes the text and makes the file count.
    pub(crate) fn finish(mut self, text: &str) -> Result<(), Failure> {
        let written = self
            .file
            .write_all(text.as_bytes())
            .and_then(|()| self.file.sync_all())
            .and_then(|()| if self.at == self.to { Ok(()) } else { fs::rename(&self.at, &self.to) });
        written.map_err(|error| unwritable(&self.to, &error))?;
        self.done = true;
        Ok(())
    }
}

impl Drop for OutFile {
    fn drop(&mut self) {
        if !self.done {
            // The command has failed and says why; an empty file that stays is the smaller trouble.
            drop(fs::remove_file(&self.at));
        }
    }
}

fn beside(to: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(to.file_name().unwrap_or_default());
    name.push(format!(".{}", std::process::id()));
    to.with_file_name(name)
}

fn unwritable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(Exit::Error, format!("could not write {}: {error}", path.display()))
        .next("name another file: --out FILE")
}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("towline-cli-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            drop(fs::remove_dir_all(&self.0));
        }
    }

    #[test]
    fn a_secret_is_for_its_owner_alone() {
        let folder = Folder::new("mode");
        let path = folder.0.join("agent.yaml");
        OutFile::create(&path, false).unwrap().finish("x").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_to_string(&path).unwrap(), "x");
    }

    #[test]
    fn a_file_that_exists_is_kept_unless_forced() {
        let folder = Folder::new("exists");
        let path = folder.0.join("agent.yaml");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(OutFile::create(&path, false).unwrap_err().exit(), Exit::Error);
        drop(OutFile::create(&path, true).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "old", "a command that failed changes nothing");
        OutFile::create(&path, true).unwrap().finish("new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 1);
    }

    #[test]
    fn what_is_no_plain_file_is_neither_written_nor_replaced() {
        let folder = Folder::new("kinds");
        let (target, link, dangling) =
            (folder.0.join("target"), folder.0.join("link"), folder.0.join("dangling"));
        fs::write(&target, "old").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        std::os::unix::fs::symlink(folder.0.join("nowhere"), &dangling).unwrap();
        for place in [&link, &dangling, &folder.0, Path::new("/dev/stdout"), Path::new("/dev/null")] {
            for force in [false, true] {
                let failure = OutFile::create(place, force).unwrap_err();
                assert_eq!(failure.exit(), Exit::Error, "{place:?}");
            }
        }
        assert_eq!(fs::read_to_string(&target).unwrap(), "old");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 3, "nothing is left beside them");
    }

    #[test]
    fn a_command_that_fails_leaves_no_file() {
        let folder = Folder::new("drop");
        drop(OutFile::create(&folder.0.join("agent.yaml"), false).unwrap());
        assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 0);
    }
}
