//! Container images made by hand, without a container engine: one uncompressed layer, a configuration and a
//! manifest, as a docker archive or as an OCI archive. Pure: the same input gives the same bytes, so a digest can be
//! compared between machines.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use aws_lc_rs::digest::{SHA256, digest};
use serde_json::{Value, json};

use crate::process::run;

/// The image of test pods and, because `sleep` is all that it takes, of the pods' sandboxes.
pub const BUSYBOX: &str = "towline.test/busybox:1";

/// What an image is made of.
#[derive(Debug, Clone, Default)]
pub struct Image {
    /// The full name with tag, as pods ask for it.
    pub name: String,
    /// What is in the only layer, in this order; a directory stands before what it holds.
    pub entries: Vec<Entry>,
    /// The program that runs when a pod names none.
    pub entrypoint: Vec<String>,
    /// The user, `uid:gid`; empty is root.
    pub user: String,
    /// Labels (OCI annotations of the image, also in its configuration).
    pub labels: Vec<(String, String)>,
}

/// One thing in the layer. Paths are relative to the root and at most 100 bytes long.
#[derive(Debug, Clone)]
pub enum Entry {
    /// A directory with its mode.
    Directory(String, u32),
    /// A file with its mode and content.
    File(String, u32, Vec<u8>),
    /// A symbolic link and where it points.
    Link(String, String),
}

impl Image {
    /// The form that `docker load` and `ctr image import` take.
    ///
    /// # Errors
    /// When a path is too long for the archive.
    pub fn docker_archive(&self) -> Result<Vec<u8>> {
        let layer = tar(&self.entries)?;
        let config = self.config(&layer).to_string().into_bytes();
        let config_name = format!("{}.json", hex_sha256(&config));
        let manifest = json!([{ "Config": config_name, "RepoTags": [self.name], "Layers": ["layer.tar"] }]);
        tar(&[
            Entry::File(config_name, 0o644, config),
            Entry::File("layer.tar".to_owned(), 0o644, layer),
            Entry::File("manifest.json".to_owned(), 0o644, manifest.to_string().into_bytes()),
        ])
    }

    /// The OCI image layout (image-spec, `image-layout.md`) as an archive, and the digest of its manifest.
    ///
    /// # Errors
    /// When a path is too long for the archive.
    pub fn oci_archive(&self) -> Result<(Vec<u8>, String)> {
        let layer = tar(&self.entries)?;
        let config = self.config(&layer).to_string().into_bytes();
        let layer = gzip(&layer)?;
        let annotations: Value =
            self.labels.iter().map(|(k, v)| (k.clone(), Value::from(v.as_str()))).collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &layer)],
            "annotations": annotations,
        })
        .to_string()
        .into_bytes();

        let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
        let tag = self.name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
        entry["annotations"] = json!({ "io.containerd.image.name": full_name(&self.name), "org.opencontainers.image.ref.name": tag });
        entry["platform"] = json!({ "architecture": architecture(), "os": "linux" });
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [entry],
        });
        let digest = format!("sha256:{}", hex_sha256(&manifest));

        let mut blobs: Vec<Entry> = [config, layer, manifest]
            .into_iter()
            .map(|blob| Entry::File(format!("blobs/sha256/{}", hex_sha256(&blob)), 0o644, blob))
            .collect();
        let mut entries = vec![
            Entry::Directory("blobs".to_owned(), 0o755),
            Entry::Directory("blobs/sha256".to_owned(), 0o755),
        ];
        entries.append(&mut blobs);
        entries.push(Entry::File("index.json".to_owned(), 0o644, index.to_string().into_bytes()));
        entries.push(Entry::File(
            "oci-layout".to_owned(),
            0o644,
            br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
        ));
        Ok((tar(&entries)?, digest))
    }

    /// Layers are told apart by what is in them, whatever compresses them (OCI image-spec, `config.md`, `diff_ids`).
    fn config(&self, layer: &[u8]) -> Value {
        let labels: Value = self.labels.iter().map(|(k, v)| (k.clone(), Value::from(v.as_str()))).collect();
        let mut config =
            json!({ "Env": ["PATH=/bin:/usr/bin:/sbin:/"], "WorkingDir": "/", "Labels": labels });
        if !self.entrypoint.is_empty() {
            config["Entrypoint"] = json!(self.entrypoint);
        }
        if !self.user.is_empty() {
            config["User"] = json!(self.user);
        }
        json!({
            "architecture": architecture(),
            "os": "linux",
            "created": "1970-01-01T00:00:00Z",
            "config": config,
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", hex_sha256(layer))] },
            "history": [{ "created": "1970-01-01T00:00:00Z", "created_by": "towline image" }],
        })
    }
}

/// An image with busybox, all its applets, and a page for `httpd`.
///
/// # Errors
/// When busybox cannot be run or read.
pub fn busybox(program: &Path) -> Result<Image> {
    let content = std::fs::read(program).with_context(|| program.display().to_string())?;
    let applets = run(&program.to_string_lossy(), &["--list"])?;
    let directory = |path: &str| Entry::Directory(path.to_owned(), 0o755);
    let file = |path: &str, mode, content: &[u8]| Entry::File(path.to_owned(), mode, content.to_vec());
    let mut entries = vec![
        directory("bin"),
        file("bin/busybox", 0o755, &content),
        directory("etc"),
        file("etc/passwd", 0o644, b"root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n"),
        file("etc/group", 0o644, b"root:x:0:\nnobody:x:65534:\n"),
        Entry::Directory("tmp".to_owned(), 0o1777),
        directory("www"),
        file("www/index.html", 0o644, b"hello from a pod behind NAT\n"),
    ];
    let links = applets.lines().filter(|applet| *applet != "busybox");
    entries.extend(links.map(|applet| Entry::Link(format!("bin/{applet}"), "busybox".to_owned())));
    // A sandbox runs its image's own program until the pod ends.
    let entrypoint = ["/bin/sleep", "2147483647"].map(str::to_owned).to_vec();
    Ok(Image { name: BUSYBOX.to_owned(), entries, entrypoint, ..Image::default() })
}

/// Compressed, with neither a name nor a time in its head.
fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    use std::io::Write as _;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}

/// A USTAR archive (POSIX.1-1988): owner root, time zero, so equal content gives equal bytes.
fn tar(entries: &[Entry]) -> Result<Vec<u8>> {
    const BLOCK: usize = 512;
    let mut out = Vec::new();
    for entry in entries {
        let (name, mode, kind, link, content): (String, u32, u8, &str, &[u8]) = match entry {
            Entry::Directory(path, mode) => (format!("{path}/"), *mode, b'5', "", &[]),
            Entry::File(path, mode, content) => (path.clone(), *mode, b'0', "", content),
            Entry::Link(path, target) => (path.clone(), 0o777, b'2', target, &[]),
        };
        if name.len() > 100 || link.len() > 100 {
            bail!("a path in an image has at most 100 bytes: {name}");
        }
        let fields: [(usize, Vec<u8>); 10] = [
            (0, name.into_bytes()),
            (100, format!("{mode:07o}").into_bytes()),
            (108, b"0000000".to_vec()),
            (116, b"0000000".to_vec()),
            (124, format!("{:011o}", content.len()).into_bytes()),
            (136, b"00000000000".to_vec()),
            // The sum is taken with spaces in its own place.
            (148, b"        ".to_vec()),
            (156, vec![kind]),
            (157, link.as_bytes().to_vec()),
            (257, b"ustar\x0000".to_vec()),
        ];
        let mut header = [0u8; BLOCK];
        for (offset, bytes) in &fields {
            header[*offset..offset + bytes.len()].copy_from_slice(bytes);
        }
        let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        out.extend_from_slice(&header);
        out.extend_from_slice(content);
        out.resize(out.len().next_multiple_of(BLOCK), 0);
    }
    out.resize(out.len() + 2 * BLOCK, 0);
    Ok(out)
}

/// The name under which a kubelet looks for an image: without a registry it is one of Docker's library
/// (distribution/reference, `ParseNormalizedNamed`).
fn full_name(name: &str) -> String {
    match name.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => name.to_owned(),
        Some(_) => format!("docker.io/{name}"),
        None => format!("docker.io/library/{name}"),
    }
}

fn descriptor(media_type: &str, blob: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": format!("sha256:{}", hex_sha256(blob)), "size": blob.len() })
}

fn hex_sha256(bytes: &[u8]) -> String {
    digest(&SHA256, bytes).as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Image {
        Image {
            name: "a.test/b:1".to_owned(),
            entries: vec![
                Entry::Directory("bin".to_owned(), 0o755),
                Entry::File("bin/x".to_owned(), 0o755, b"content".to_vec()),
                Entry::Link("bin/y".to_owned(), "x".to_owned()),
            ],
            user: "65532:65532".to_owned(),
            ..Image::default()
        }
    }

    #[test]
    fn equal_input_gives_equal_bytes() {
        assert_eq!(sample().oci_archive().unwrap(), sample().oci_archive().unwrap());
    }

    #[test]
    fn tar_reads_what_was_written() {
        use std::io::Write as _;
        use std::process::{Command, Stdio};
        let mut child = Command::new("tar")
            .args(["-tvzf", "-", "--numeric-owner"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(&gzip(&tar(&sample().entries).unwrap()).unwrap()).unwrap();
        let output = child.wait_with_output().unwrap();
        let listing = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{listing}");
        assert!(listing.contains("-rwxr-xr-x 0/0") && listing.contains("bin/y -> x"), "{listing}");
    }

    #[test]
    fn a_name_is_the_one_that_a_kubelet_looks_for() {
        for (name, full) in [
            ("towline:1", "docker.io/library/towline:1"),
            ("some/towline:1", "docker.io/some/towline:1"),
            ("a.test/b:1", "a.test/b:1"),
            ("localhost/b:1", "localhost/b:1"),
        ] {
            assert_eq!(full_name(name), full);
        }
    }

    #[test]
    fn a_path_that_does_not_fit_is_refused() {
        assert!(tar(&[Entry::Directory("x".repeat(100), 0o755)]).is_err());
    }
}
