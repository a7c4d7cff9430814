//! Certificates for tests, made by openssl.

use std::path::Path;
use std::process::Command;

/// Makes `NAME.pem` and `NAME.key` in `folder`: `server` for localhost and 127.0.0.1, signed by itself; `ca`; `client`,
/// signed by `ca`.
pub fn certificates(folder: &Path) {
    let extensions = "[req]\ndistinguished_name = dn\n[dn]\n[root]\nbasicConstraints = critical,CA:TRUE\n[leaf]\n\
                      basicConstraints = critical,CA:FALSE\nsubjectAltName = DNS:localhost,IP:127.0.0.1\n\
                      [named]\nbasicConstraints = critical,CA:FALSE\n";
    let write = std::fs::write(folder.join("openssl.cnf"), extensions);
    write.expect("the test's folder is writable");
    for (name, kind, issuer) in [
        ("server", "leaf", ""),
        ("ca", "root", ""),
        ("client", "leaf", " -CA ca.pem -CAkey ca.key"),
    ] {
        openssl(folder, &format!("-config openssl.cnf -extensions {kind}{issuer}"), name);
    }
}

/// Makes `NAME.pem` and `NAME.key`, signed by `ca` of [`certificates`], for a device or an operator of that DNS name.
pub fn named_certificate(folder: &Path, name: &str) {
    let options = format!(
        "-config openssl.cnf -extensions named -addext subjectAltName=DNS:{name} -CA ca.pem -CAkey ca.key"
    );
    openssl(folder, &options, name);
}

fn openssl(folder: &Path, options: &str, name: &str) {
    let arguments = format!(
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN={name} \
         -keyout {name}.key -out {name}.pem {options}"
    );
    let output = Command::new("openssl")
        .args(arguments.split(' '))
        .current_dir(folder)
        .output()
        .expect("openssl is there");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
