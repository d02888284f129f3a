use std::fs;

use rcgen::{CertificateParams, KeyPair};
use tempfile::TempDir;

use super::*;
use crate::problem::chain;

/// Writes files and names them.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> Option<PathBuf> {
        let path = self.0.path().join(name);
        fs::write(&path, text).expect("it can be written");
        Some(path)
    }

    /// A certificate and its key.
    fn pair(&self, name: &str) -> [Option<PathBuf>; 2] {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(["localhost".to_owned()]).expect("a name");
        let certificate = params.self_signed(&key).expect("a certificate");
        [self.write(&format!("{name}.pem"), certificate.pem()), self.write(&format!("{name}.key"), key.serialize_pem())]
    }

    /// What is said of these files, with the folder's name left out.
    fn refusal(&self, files: Files) -> String {
        let error = Material::read(&files).map(drop).expect_err("it is wrong");
        chain(&error).replace(&format!("{}/", self.0.path().display()), "")
    }
}

#[test]
fn every_wrong_file_is_told_with_what_is_wrong_and_what_is_expected() {
    let folder = Folder::new();
    let [cert, key] = folder.pair("a");
    let [_, other] = folder.pair("b");
    let locked = folder
        .write("locked.key", "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n");
    let damaged = folder.write("damaged.pem", "-----BEGIN CERTIFICATE-----\nAA!A\n-----END CERTIFICATE-----\n");
    let nonsense = folder.write("nonsense.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let half = folder.write("half.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n");
    let empty = folder.write("empty", "");
    let binary = folder.write("binary", [0x30, 0x82, 0xff]);
    let absent = Some(folder.0.path().join("absent"));
    let pair = |cert: &Option<PathBuf>, key: &Option<PathBuf>| Files {
        cert: cert.clone(),
        key: key.clone(),
        ..Files::default()
    };
    let ca = |path: &Option<PathBuf>| Files { ca: path.clone(), ..Files::default() };
    for (files, right) in [
        (pair(&absent, &key), "--tls-cert: cannot read absent: No such file or directory (os error 2)"),
        (pair(&cert, &absent), "--tls-key: cannot read absent: No such file or directory (os error 2)"),
        (pair(&binary, &key), "--tls-cert: cannot read binary: stream did not contain valid UTF-8"),
        (pair(&empty, &key), "--tls-cert: empty holds no certificate; expected PEM with `-----BEGIN CERTIFICATE-----`"),
        (
            pair(&key, &cert),
            "--tls-cert: a.key holds no certificate but a key; expected PEM with `-----BEGIN CERTIFICATE-----`",
        ),
        (
            pair(&cert, &cert),
            "--tls-key: a.pem holds no private key but a certificate; expected PEM with `-----BEGIN PRIVATE KEY-----`",
        ),
        (pair(&cert, &empty), "--tls-key: empty holds no private key; expected PEM with `-----BEGIN PRIVATE KEY-----`"),
        (
            pair(&cert, &locked),
            "--tls-key: the key in locked.key is locked with a passphrase, for which nobody can be asked; write it \
             without one: openssl pkey -in locked.key -out NEW.key",
        ),
        (
            pair(&cert, &other),
            "--tls-key: the key in b.key does not belong to the first certificate in a.pem (--tls-cert); give the two \
             that were made together",
        ),
        (
            pair(&damaged, &key),
            "--tls-cert: damaged.pem is damaged: base64 decode error: InvalidCharacter(33); expected PEM, as `openssl` \
             writes it",
        ),
        (
            pair(&half, &key),
            "--tls-cert: half.pem is damaged: the line `-----END CERTIFICATE-----` is missing; expected PEM, as \
             `openssl` writes it",
        ),
        (
            pair(&nonsense, &key),
            "--tls-cert: nonsense.pem is damaged: invalid peer certificate: BadEncoding; expected PEM, as `openssl` \
             writes it",
        ),
        (pair(&cert, &None), "--tls-cert is given without --tls-key; a certificate and its key go together"),
        (pair(&None, &key), "--tls-key is given without --tls-cert; a certificate and its key go together"),
        (
            Files { client_ca: cert.clone(), ..Files::default() },
            "--tls-client-ca is given without --tls-cert and --tls-key; a service that asks for certificates needs one \
             of its own",
        ),
        (
            Files { client_ca: key.clone(), ..pair(&cert, &key) },
            "--tls-client-ca: a.key holds no certificate but a key; expected PEM with `-----BEGIN CERTIFICATE-----`",
        ),
        (ca(&absent), "--tls-ca: cannot read absent: No such file or directory (os error 2)"),
        (ca(&empty), "--tls-ca: empty holds no certificate; expected PEM with `-----BEGIN CERTIFICATE-----`"),
        (
            ca(&nonsense),
            "--tls-ca: nonsense.pem is damaged: invalid peer certificate: BadEncoding; expected PEM, as `openssl` \
             writes it",
        ),
    ] {
        assert_eq!(folder.refusal(files), right);
    }
}

#[test]
fn what_fits_is_read_and_its_end_is_known() {
    let folder = Folder::new();
    let [cert, key] = folder.pair("a");
    let files = Files { client_ca: cert.clone(), ca: cert.clone(), cert, key };
    let (material, texts) = Material::read(&files).map_err(|error| error.to_string()).expect("it fits");
    let identity = material.identity.expect("a certificate");
    assert_eq!(identity.expiry.expect("it can be told").to_string(), "4096-01-01T00:00:00Z");
    assert_eq!((texts.len(), material.trust.is_some()), (4, true));
}
