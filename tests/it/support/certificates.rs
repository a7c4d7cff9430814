//! Certificates for tests, made by openssl.

use std::path::Path;
use std::process::Command;

/// Makes `NAME.pem` and `NAME.key` in `folder`: `server` for localhost and 127.0.0.1, signed by itself; `ca`; `client`,
/// signed by `ca`.
pub fn certificates(folder: &Path) {
    let extensions = "[req]\ndistinguished_name = dn\n[dn]\n[root]\nbasicConstraints = critical,CA:TRUE\n[leaf]\n\
                      basicConstraints = critical,CA:FALSE\nsubjectAltName = DNS:localhost,IP:127.0.0.1\n";
    std::fs::write(folder.join("openssl.cnf"), extensions).expect("the test's folder is writable");
    for (name, kind, issuer) in [
        ("server", "leaf", ""),
        ("ca", "root", ""),
        ("client", "leaf", " -CA ca.pem -CAkey ca.key"),
    ] {
        let arguments = format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN={name} \
             -config openssl.cnf -extensions {kind} -keyout {name}.key -out {name}.pem{issuer}"
        );
        let output = Command::new("openssl")
            .args(arguments.split(' '))
            .current_dir(folder)
            .output()
            .expect("openssl is there");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
