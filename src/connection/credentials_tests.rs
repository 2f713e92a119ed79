//! What counts as a change, and what is refused.

use super::*;
use crate::config::{Secret, TokenSource};

/// Credentials that differ by their number alone.
fn credentials(number: u8) -> Credentials {
    Credentials {
        authorization: None,
        tls: None,
        fingerprint: Fingerprint(sha256::Hash::hash(&[number])),
        token_expires: None,
        certificate_expires: None,
    }
}

fn fault(value: &str) -> ConfigFault {
    ConfigFault::new(KEY, value, "another one")
}

/// `R` for renewed, `F` for faulty, `O` for restored, `-` for nothing.
fn changes(looks: impl IntoIterator<Item = Result<u8, &'static str>>) -> String {
    let mut observed = Observed::default();
    let looks =
        looks.into_iter().map(
            |look| match observed.look(look.map(credentials).map_err(fault)) {
                Some(CredentialChange::Renewed(_)) => 'R',
                Some(CredentialChange::Faulty(_)) => 'F',
                Some(CredentialChange::Restored) => 'O',
                None => '-',
            },
        );
    looks.collect()
}

#[test]
fn each_change_is_told_once() {
    assert_eq!(changes([Ok(1), Ok(1), Ok(2), Ok(2), Ok(1)]), "R-R-R");
    assert_eq!(
        changes([Ok(1), Err("a"), Err("a"), Err("b"), Ok(1)]),
        "RF-FO"
    );
    assert_eq!(changes([Ok(1), Err("a"), Ok(2), Ok(2)]), "RFR-");
    assert_eq!(changes([Err("a"), Err("a"), Ok(1), Ok(1)]), "F-R-");
}

/// A token whose claims are these.
fn jwt(claims: &str) -> String {
    format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))
}

#[test]
fn a_token_that_is_a_jwt_says_when_it_ends() {
    let at = |seconds| Some(UNIX_EPOCH + Duration::from_secs(seconds));
    assert_eq!(
        expiry_of_jwt(&jwt(r#"{"exp":1700000000}"#)),
        at(1_700_000_000)
    );
    assert_eq!(expiry_of_jwt(&jwt(r#"{"sub":"n","exp":5.0}"#)), at(5));
    for other in [
        jwt("{}"),
        jwt(r#"{"exp":"soon"}"#),
        jwt(r#"{"exp":-1}"#),
        jwt(r#"{"exp":1e300}"#),
        "opaque".to_owned(),
        "a.b".to_owned(),
        "a.b.c.d".to_owned(),
        "..".to_owned(),
    ] {
        assert_eq!(expiry_of_jwt(&other), None, "{other}");
    }
}

fn with_token(token: &str) -> ConnectionConfig {
    ConnectionConfig {
        token: Some(TokenSource::Inline(Secret::new(token))),
        ..ConnectionConfig::new(Vec::new())
    }
}

#[test]
fn a_fingerprint_follows_the_contents_and_neither_shows_them() {
    let read = |token| Credentials::read(&with_token(token)).expect("usable");
    let (one, other) = (read("hunter2-hunter2"), read("hunter3-hunter3"));
    assert_eq!(one.fingerprint, read("hunter2-hunter2").fingerprint);
    assert_ne!(one.fingerprint, other.fingerprint);
    let shown = format!("{one:?} {:?} {:?}", one.authorization, one.fingerprint);
    assert!(!shown.contains("hunter2"), "{shown}");
}

/// A directory with a CA, a certificate of it and its key.
struct Files {
    directory: tempfile::TempDir,
    ca: rcgen::CertifiedIssuer<'static, rcgen::KeyPair>,
}

impl Files {
    fn new() -> Self {
        let mut params = rcgen::CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().expect("a key");
        let ca = rcgen::CertifiedIssuer::self_signed(params, key).expect("a CA");
        let files = Self {
            directory: tempfile::tempdir().expect("a directory"),
            ca,
        };
        files.write("ca.pem", &files.ca.pem());
        let (certificate, key) = files.issue(2100);
        files.write("node.pem", &certificate);
        files.write("node.key", &key);
        files
    }

    fn issue(&self, last_year: i32) -> (String, String) {
        let mut params = rcgen::CertificateParams::new(Vec::new()).expect("no names");
        params.not_after = rcgen::date_time_ymd(last_year, 1, 1);
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.ca).expect("signed");
        (certificate.pem(), key.serialize_pem())
    }

    fn write(&self, name: &str, contents: &str) {
        fs::write(self.directory.path().join(name), contents).expect("written");
    }

    fn config(&self) -> ConnectionConfig {
        let at = |name| self.directory.path().join(name);
        ConnectionConfig {
            tls: Some(TlsConfig {
                identity: Some(TlsIdentity {
                    cert_file: at("node.pem"),
                    key_file: at("node.key"),
                }),
                ..TlsConfig::new(at("ca.pem"))
            }),
            credentials_interval: Duration::from_secs(5),
            ..ConnectionConfig::new(Vec::new())
        }
    }

    fn fault(&self) -> String {
        let read = Credentials::read(&self.config());
        read.expect_err("of no use").to_string()
    }
}

#[test]
fn a_certificate_of_ours_says_when_it_ends() {
    let files = Files::new();
    let read = Credentials::read(&files.config()).expect("usable");
    // The first of January 2100.
    let expected = UNIX_EPOCH + Duration::from_secs(4_102_444_800);
    assert_eq!(read.certificate_expires, Some(expected));
    assert!(read.tls.is_some());
}

#[test]
fn what_cannot_be_used_is_refused_with_its_file_and_never_shown() {
    let files = Files::new();
    let (certificate, key) = files.issue(2100);
    files.write("node.key", &key);
    let fault = files.fault();
    assert!(fault.contains("node.key (another one's key)"), "{fault}");
    files.write("node.pem", &certificate);
    Credentials::read(&files.config()).expect("they fit again");

    let (expired, of_it) = files.issue(2001);
    files.write("node.pem", &expired);
    files.write("node.key", &of_it);
    let fault = files.fault();
    assert!(
        fault.contains("node.pem (expired at 2001-01-01T00:00:00Z)"),
        "{fault}"
    );

    files.write("node.pem", &certificate);
    for broken in ["", "-----BEGIN PRIVATE KEY-----\nc2VjcmV0", "secret"] {
        files.write("node.key", broken);
        let fault = files.fault();
        assert!(fault.contains("node.key (no private key)"), "{fault}");
        assert!(
            !fault.contains("c2VjcmV0") && !fault.contains("secret"),
            "{fault}"
        );
    }
    files.write("node.key", &key);
    files.write("ca.pem", "");
    let fault = files.fault();
    assert!(fault.contains("ca.pem (no certificate in it)"), "{fault}");
    fs::remove_file(files.directory.path().join("ca.pem")).expect("there");
    assert!(files.fault().contains("ca.pem"), "{}", files.fault());
}

#[tokio::test(start_paused = true)]
async fn a_rotation_is_reported_when_it_is_whole() {
    let files = Files::new();
    let (changes, mut reported) = tokio::sync::mpsc::unbounded_channel();
    let watching = tokio::spawn(watch(files.config(), move |change| {
        let _ = changes.send(change);
    }));
    let first = reported.recv().await.expect("watches");
    let CredentialChange::Renewed(first) = first else {
        panic!("{first:?}");
    };
    let (certificate, key) = files.issue(2100);
    files.write("node.pem", &certificate);
    let half = reported.recv().await.expect("watches");
    assert!(matches!(half, CredentialChange::Faulty(_)), "{half:?}");
    files.write("node.key", &key);
    let whole = reported.recv().await.expect("watches");
    let CredentialChange::Renewed(whole) = whole else {
        panic!("{whole:?}");
    };
    assert_ne!(first.fingerprint, whole.fingerprint);
    watching.abort();
}
