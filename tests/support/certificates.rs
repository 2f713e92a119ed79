//! Certificates of the tests' own authorities.

use std::path::{Path, PathBuf};

use governance_stream::{
    config::{TlsConfig, TlsIdentity},
    simulator::SimulatorTls,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, date_time_ymd,
};

/// Who vouches for others.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, PEM.
#[derive(Clone)]
pub struct Pair {
    pub certificate: String,
    pub key: String,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = params(name, &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("a CA"))
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A service's certificate for these names and addresses.
    pub fn server(&self, names: &[&str]) -> Pair {
        self.issue(
            params("governance", names),
            ExtendedKeyUsagePurpose::ServerAuth,
        )
    }

    /// One that has expired.
    pub fn expired_server(&self, names: &[&str]) -> Pair {
        let mut params = params("governance", names);
        params.not_before = date_time_ymd(2001, 1, 1);
        params.not_after = date_time_ymd(2002, 1, 1);
        self.issue(params, ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// A node's certificate.
    pub fn client(&self) -> Pair {
        self.issue(
            params("node-1", &["node-1"]),
            ExtendedKeyUsagePurpose::ClientAuth,
        )
    }

    fn issue(&self, mut params: CertificateParams, usage: ExtendedKeyUsagePurpose) -> Pair {
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.0).expect("signed");
        Pair {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        }
    }
}

fn params(name: &str, names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let mut params = CertificateParams::new(names).expect("valid names");
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

/// A node's files: `ca.pem`, and `node.pem` with `node.key` where it has a certificate.
pub struct Files(tempfile::TempDir);

impl Files {
    pub fn new(ca: &Authority, identity: Option<&Pair>) -> Self {
        let files = Self(tempfile::tempdir().expect("a directory"));
        files.write("ca.pem", &ca.pem());
        if let Some(pair) = identity {
            files.write("node.pem", &pair.certificate);
            files.write("node.key", &pair.key);
        }
        files
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory().join(name)
    }

    pub fn directory(&self) -> &Path {
        self.0.path()
    }

    pub fn write(&self, name: &str, contents: &str) {
        std::fs::write(self.path(name), contents).expect("written");
    }

    /// What a node needs to use them.
    pub fn tls(&self) -> TlsConfig {
        let (cert_file, key_file) = (self.path("node.pem"), self.path("node.key"));
        TlsConfig {
            identity: cert_file.exists().then_some(TlsIdentity {
                cert_file,
                key_file,
            }),
            ..TlsConfig::new(self.path("ca.pem"))
        }
    }
}

/// A service that shows this certificate, and demands one of `nodes` where that is given.
pub fn served(pair: &Pair, nodes: Option<&Authority>) -> SimulatorTls {
    SimulatorTls {
        client_ca: nodes.map(Authority::pem),
        ..SimulatorTls::new(&pair.certificate, &pair.key)
    }
}
