//! A certificate authority that lives as long as a test, and the files that it makes.

use std::path::{Path, PathBuf};

use muster_shared::tls::{Files, Tls};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use tempfile::TempDir;

/// The names at which services of a test are called.
pub(crate) const HERE: [&str; 2] = ["localhost", "127.0.0.1"];

pub(crate) struct Authority {
    folder: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Writes its own certificate as `ca.pem`.
    pub(crate) fn new(name: &str) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let folder = tempfile::tempdir().expect("a folder");
        let certificate = params.self_signed(&key).expect("a certificate");
        std::fs::write(folder.path().join("ca.pem"), certificate.pem()).expect("it can be written");
        Self { folder, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The same as a flag takes it.
    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("a path of letters").to_owned()
    }

    /// Makes `NAME.pem` and `NAME.key` for these names; gives the certificate's bytes.
    pub(crate) fn make(&self, name: &str, names: &[&str]) -> Vec<u8> {
        self.make_with(name, names, |_| ())
    }

    /// The same with something about it changed.
    pub(crate) fn make_with(&self, name: &str, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        change(&mut params);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        private(&self.path(&format!("{name}.key")), &key.serialize_pem());
        std::fs::write(self.path(&format!("{name}.pem")), certificate.pem()).expect("it can be written");
        certificate.der().to_vec()
    }

    /// One that ended long ago.
    pub(crate) fn make_expired(&self, name: &str) {
        self.make_with(name, &HERE, |params| {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2021, 1, 1);
        });
    }

    /// Flags of a service that shows a certificate, and wants one of all who call.
    pub(crate) fn flags(&self, name: &str) -> Vec<String> {
        let mut flags = self.open_flags(name);
        flags.extend(["--tls-client-ca".to_owned(), self.text("ca.pem")]);
        flags
    }

    /// Flags of one that shows a certificate, and wants none.
    pub(crate) fn open_flags(&self, name: &str) -> Vec<String> {
        let files = [("--tls-cert", "pem"), ("--tls-key", "key")];
        let mut flags: Vec<String> =
            files.iter().flat_map(|(flag, end)| [(*flag).to_owned(), self.text(&format!("{name}.{end}"))]).collect();
        flags.extend(["--tls-ca".to_owned(), self.text("ca.pem")]);
        flags
    }

    /// What a client of this authority trusts, and the certificate that it shows.
    pub(crate) fn client(&self, shown: Option<(&Authority, &str)>) -> Tls {
        let file = |end: &str| shown.map(|(authority, name)| authority.path(&format!("{name}.{end}")));
        let files = Files { cert: file("pem"), key: file("key"), ca: Some(self.path("ca.pem")), client_ca: None };
        Tls::load(files).expect("the files are good")
    }
}

/// Writes a file that nobody else may read.
fn private(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt as _;

    std::fs::write(path, text).expect("it can be written");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("it is ours");
}
