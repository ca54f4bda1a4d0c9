//! The hub's configuration: what is refused, all at once, and what each flag makes of the settings.

use super::*;

/// With the one flag that everybody has to give.
fn config(args: &[&str]) -> Config {
    let given = args.iter().any(|arg| arg.starts_with("--public-url"));
    let public = if given { &[][..] } else { &["--public-url=https://parent"] };
    Config::try_parse_from([&["towline-hub"], public, args].concat()).unwrap()
}

#[test]
fn a_hub_has_to_know_an_address_for_agents() {
    let check = |args: &[&str]| Config::try_parse_from([&["towline-hub"], args].concat()).unwrap().check();
    let Mistakes(wrong) = check(&[]).unwrap_err();
    assert!(wrong.len() == 1 && wrong[0].starts_with("--public-url is missing: "), "{wrong:?}");
    assert!(check(&["--intranet-url=https://10.0.0.1:6443"]).is_ok());
}

#[test]
fn a_certificate_is_for_the_names_by_which_the_gateway_is_reached() {
    let directory = std::env::temp_dir().join(format!("towline-gateway-names-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let (cert, key) = (directory.join("tls.crt"), directory.join("tls.key"));
    let names = ["hub.example.com", "*.k8s.example.com", "192.0.2.1"].map(str::to_owned);
    let pair = rcgen::generate_simple_self_signed(names).unwrap();
    std::fs::write(&cert, pair.cert.pem()).unwrap();
    std::fs::write(&key, pair.signing_key.serialize_pem()).unwrap();
    let check = |more: &[&str]| {
        let files = [
            "--gateway-listen=127.0.0.1:0".to_owned(),
            format!("--gateway-cert-file={}", cert.display()),
            format!("--gateway-key-file={}", key.display()),
        ];
        let args: Vec<&str> = files.iter().map(String::as_str).chain(more.iter().copied()).collect();
        config(&args).check().map(drop).map_err(|Mistakes(wrong)| wrong)
    };
    let good = [
        &["--gateway-url=https://hub.example.com:8444", "--gateway-domain=k8s.example.com"][..],
        &["--gateway-url=https://192.0.2.1"],
        &[],
    ]
    .map(check);
    let bad = check(&["--gateway-url=https://other.example.com", "--gateway-domain=other.net"]);
    std::fs::remove_dir_all(&directory).unwrap();
    assert_eq!(good, [Ok(()), Ok(()), Ok(())]);
    let wrong = bad.unwrap_err();
    assert_eq!(wrong.len(), 2, "{wrong:?}");
    for told in
        ["is for hub.example.com, *.k8s.example.com", "not for other.example.com", "correct --gateway-url"]
    {
        assert!(wrong[0].contains(told), "{told}: {wrong:?}");
    }
    assert!(wrong[1].contains("not for *.other.net (--gateway-domain)"), "{wrong:?}");
}

#[test]
fn all_mistakes_are_told_at_once() {
    let Mistakes(wrong) = config(&[
        "--listen=nowhere",
        "--public-url=http://example.com",
        "--intranet-url=https://user:pw@example.com",
        "--parent-ca-file=/does/not/exist",
        "--max-invitation-ttl=1s",
        "--log-format=xml",
    ])
    .check()
    .unwrap_err();
    assert_eq!(wrong.len(), 6, "{wrong:#?}");
}

#[test]
fn what_cannot_be_listened_on_is_told() {
    for listen in ["0.0.0.0:99999", "[::]", "0.0.0.0", "/run/hub.sock", "", "localhost:8443"] {
        let Mistakes(wrong) = config(&[&format!("--listen={listen}")]).check().unwrap_err();
        assert!(wrong.len() == 1 && wrong[0].contains("--listen"), "{wrong:#?}");
    }
}

#[test]
fn no_mistake_shows_a_password() {
    for url in [
        "https://user:hunter2@example.com",
        "http://user:hunter2@example.com",
        "https://user:hunter2@example.com?a=b",
        "https://user:hunter2@example.com:99999",
        "https://user:hunter2@exa mple.com",
        "user:hunter2@example.com",
        "https://user:hunter2@",
    ] {
        let Mistakes(wrong) = config(&[&format!("--public-url={url}")]).check().unwrap_err();
        assert!(wrong.len() == 1 && !wrong[0].contains("hunter2"), "{wrong:#?}");
    }
}

#[test]
fn a_ca_file_that_is_none_is_named_at_once_and_not_shown() {
    let folder = std::env::temp_dir().join(format!("towline-hub-ca-files-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let pipe = folder.join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let certificate = rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap().cert.pem();
    let file = |name: &str, text: &str| {
        std::fs::write(folder.join(name), text).unwrap();
        folder.join(name)
    };
    let large = certificate.repeat(1024 * 1024 / certificate.len() + 1);
    for path in [
        folder.clone(),
        pipe,
        "/dev/zero".into(),
        file("large", &large),
        file("empty", ""),
        file("text", "hunter2"),
        file("key", "-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----\n"),
    ] {
        let Mistakes(wrong) = config(&[&format!("--parent-ca-file={}", path.display())]).check().unwrap_err();
        let named = wrong[0].contains(&path.display().to_string());
        assert!(wrong.len() == 1 && named && !wrong[0].contains("hunter2"), "{wrong:#?}");
    }
    assert_eq!(read_certificates(&file("good", &certificate)).unwrap(), certificate);
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn defaults_are_right() {
    let settings = config(&["--public-url=https://k8s.example.com:6443/"]).check().unwrap();
    assert_eq!(settings.public_url.as_deref(), Some("https://k8s.example.com:6443"));
    assert_eq!(settings.listen.port(), 8443);
    assert!(!settings.hub_id.is_empty());
}

#[test]
fn a_gateway_needs_a_certificate_that_can_serve_and_a_domain_that_is_one() {
    let wrong = |args: &[&str]| config(args).check().unwrap_err().0.join("; ");
    let files = ["--gateway-cert-file=/does/not/exist", "--gateway-key-file=/does/not/exist"];
    assert!(wrong(&files).contains("there is no --gateway-listen"));
    assert!(wrong(&["--gateway-listen=0.0.0.0:8444"]).contains("needs --gateway-cert-file"));
    assert!(wrong(&["--gateway-listen=0.0.0.0:8444", files[0]]).contains("are needed both"));
    let all = wrong(
        &[&files[..], &["--gateway-listen=x", "--gateway-domain=a..b", "--gateway-url=https://a_b"]].concat(),
    );
    for told in
        ["--gateway-listen \"x\"", "--gateway-domain \"a..b\"", "/does/not/exist", "\"a_b\" is no host"]
    {
        assert!(all.contains(told), "{told}: {all}");
    }

    let directory = std::env::temp_dir().join(format!("towline-gateway-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let (one, two) = (pair(), pair());
    let (cert, key) = (directory.join("tls.crt"), directory.join("tls.key"));
    std::fs::write(&cert, one.cert.pem()).unwrap();
    std::fs::write(&key, two.signing_key.serialize_pem()).unwrap();
    let args = [
        "--gateway-listen=127.0.0.1:0".to_owned(),
        format!("--gateway-cert-file={}", cert.display()),
        format!("--gateway-key-file={}", key.display()),
        "--gateway-domain=K8s.Example.com.".to_owned(),
    ];
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let mismatch = wrong(&args);
    std::fs::write(&key, one.signing_key.serialize_pem()).unwrap();
    let settings = config(&args).check();
    std::fs::remove_dir_all(&directory).unwrap();
    assert!(mismatch.contains("does not fit the certificate") && !mismatch.contains("PRIVATE"), "{mismatch}");
    assert_eq!(settings.unwrap().gateway.unwrap().domain.as_deref(), Some("k8s.example.com"));
}

#[test]
fn without_files_the_hub_makes_a_certificate_for_the_names_that_it_is_told() {
    let names = |args: &[&str]| {
        let settings = config(&[&["--gateway-listen=0.0.0.0:8444"], args].concat()).check();
        settings.map(|settings| settings.gateway.unwrap().names()).map_err(|wrong| wrong.0.join("; "))
    };
    let named = |all: &[&str]| Ok(all.iter().map(ToString::to_string).collect::<Vec<_>>());
    assert_eq!(names(&["--gateway-url=https://Hub.example.com:8444"]), named(&["hub.example.com"]));
    assert_eq!(names(&["--gateway-url=https://192.0.2.1"]), named(&["192.0.2.1"]));
    assert_eq!(names(&["--gateway-url=https://[2001:DB8:0::1]:8444"]), named(&["2001:db8::1"]));
    assert_eq!(
        names(&["--gateway-url=https://hub", "--gateway-domain=k8s.example.com"]),
        named(&["hub", "k8s.example.com", "*.k8s.example.com"])
    );
    let certificate = std::env::temp_dir().join(format!("towline-gateway-ca-{}", std::process::id()));
    std::fs::write(&certificate, pair().cert.pem()).unwrap();
    let ca = format!("--gateway-ca-file={}", certificate.display());
    let refused = names(&["--gateway-url=https://hub", &ca]);
    std::fs::remove_file(&certificate).unwrap();
    assert!(refused.unwrap_err().contains("makes both itself"));
    let among =
        names(&["--gateway-url=https://Hub.k8s.example.com:8444", "--gateway-domain=k8s.example.com"]);
    assert!(among.unwrap_err().contains("each host is a cluster's"));
    assert!(names(&["--gateway-url=https://k8s.example.com", "--gateway-domain=k8s.example.com"]).is_ok());
    let lost = names(&["--gateway-domain=k8s.example.com", "--agents-use-gateway"]);
    assert!(lost.unwrap_err().contains("--agents-use-gateway needs --gateway-url"));
}

#[test]
fn a_key_file_is_read_as_far_as_a_key_can_be_long() {
    let path = std::env::temp_dir().join(format!("towline-gateway-key-{}", std::process::id()));
    std::fs::write(&path, "x".repeat(2 << 20)).unwrap();
    let read = read_pair(&(path.clone(), path.clone())).map(drop);
    std::fs::remove_file(&path).unwrap();
    assert!(format!("{:#}", read.unwrap_err()).contains("larger than 1 MiB"));
    assert!(read_pair(&("/dev/zero".into(), "/dev/zero".into())).is_err());
}

fn pair() -> rcgen::CertifiedKey<rcgen::KeyPair> {
    rcgen::generate_simple_self_signed(["a", "*.k8s.example.com"].map(str::to_owned)).unwrap()
}

#[test]
fn a_replica_with_peers_says_where_it_is_and_has_a_name_that_can_be_certified() {
    let peers = |args: &[&str]| {
        let settings = config(&[&["--hub-id=hub-1"], args].concat()).check();
        settings.map(|settings| settings.peers).map_err(|wrong| wrong.0.join("; "))
    };
    assert_eq!(peers(&[]), Ok(None));
    for address in ["10.0.0.7:9000", "10.0.0.7", "fd00::7", "[fd00::7]:9000"] {
        let there =
            peers(&["--peer-listen=0.0.0.0:9000", &format!("--peer-address={address}")]).unwrap().unwrap();
        assert_eq!((there.listen.port(), there.address.port()), (9000, 9000), "{address}");
    }
    assert!(peers(&["--peer-listen=0.0.0.0:9000"]).unwrap_err().contains("both"));
    for address in ["0.0.0.0", "pod", "10.0.0.7:0", "[::]:9000"] {
        let wrong = peers(&["--peer-listen=0.0.0.0:9000", &format!("--peer-address={address}")]).unwrap_err();
        assert!(wrong.contains("--peer-address"), "{wrong}");
    }
    for id in ["controllers", "Hub", "a_b", "-a", &"a.".repeat(100)] {
        let all = ["--peer-listen=0.0.0.0:9000", "--peer-address=10.0.0.7", &format!("--hub-id={id}")];
        assert!(config(&all).check().unwrap_err().0.join("; ").contains("--hub-id"), "{id}");
    }
}

#[test]
fn durations_have_a_unit() {
    for (text, seconds) in [
        ("90s", Some(90)),
        ("2h", Some(7200)),
        ("7d", Some(604_800)),
        ("5", None),
        ("", None),
        ("h", None),
        ("99999999999999999999d", None),
    ] {
        assert_eq!(duration(text).map(|d| d.as_secs()), seconds, "{text}");
    }
}
