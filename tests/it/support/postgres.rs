//! A real PostgreSQL server.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::process::{Process, free_port};
use super::wait_for;

/// A PostgreSQL server of the test's own.
pub struct Cluster {
    server: Option<Process>,
    data: PathBuf,
    pub port: u16,
    /// Of its first database.
    pub url: String,
}

impl Cluster {
    pub fn make(folder: &Path) -> Self {
        let data = folder.join("data");
        fs::create_dir(&data).unwrap();
        // The server refuses to run as root.
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
        if is_root() {
            chown(&data, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let mut init = program("initdb");
        init.args(["--no-sync", "--auth=trust", "--username=cdal", "--pgdata"]).arg(&data);
        let output = init.output().expect("initdb starts; tests/peers.sh installs PostgreSQL");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let port = free_port();
        let url = format!("postgres://cdal@127.0.0.1:{port}/postgres?sslmode=disable");
        let mut cluster = Self { server: None, data, port, url };
        cluster.start();
        cluster
    }

    /// After `kill`, or at first.
    pub fn start(&mut self) {
        let mut command = program("postgres");
        command.arg("-D").arg(&self.data).args(["-p", &self.port.to_string()]);
        command.args(["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]);
        command.stderr(std::process::Stdio::null());
        let mut server = Process::start(&mut command);
        wait_for("PostgreSQL to listen", || {
            // It does not start while a process of the one before still ends.
            if server.child.try_wait().is_ok_and(|ended| ended.is_some()) {
                server = Process::start(&mut command);
            }
            std::net::TcpStream::connect(("127.0.0.1", self.port)).ok()
        });
        self.server = Some(server);
        let mut ready = program("pg_isready");
        ready.args(["-q", "-h", "127.0.0.1", "-p", &self.port.to_string()]);
        wait_for("PostgreSQL to be ready", || {
            ready.status().is_ok_and(|s| s.success()).then_some(())
        });
    }

    /// Without a shutdown, and up again.
    pub fn crash(&mut self) {
        let mut server = self.server.take().expect("it runs");
        server.signal("-QUIT");
        server.wait();
        self.start();
    }

    /// From now on it wants this password and TLS, and shows `localhost.pem` of `certificates`.
    pub fn secure(&mut self, certificates: &Path, password: &str) {
        self.sql(
            "postgres",
            &format!("ALTER ROLE cdal PASSWORD '{}'", password.replace('\'', "''")),
        );
        for name in ["localhost.pem", "localhost.key"] {
            let copy = self.data.join(name);
            fs::copy(certificates.join(name), &copy).unwrap();
            fs::set_permissions(&copy, fs::Permissions::from_mode(0o600)).unwrap();
            if is_root() {
                chown(&copy, Some(NOBODY), Some(NOBODY)).unwrap();
            }
        }
        let own = "ssl = on\nssl_cert_file = 'localhost.pem'\nssl_key_file = 'localhost.key'\n";
        let settings = self.data.join("postgresql.conf");
        let all = fs::read_to_string(&settings).unwrap() + own;
        fs::write(settings, all).unwrap();
        let rule = "hostssl all all 127.0.0.1/32 scram-sha-256\n";
        fs::write(self.data.join("pg_hba.conf"), rule).unwrap();
        self.crash();
    }

    /// `kill -9` of the server and all of its processes, as when the machine loses power.
    pub fn kill(&mut self) {
        let mut server = self.server.take().expect("it runs");
        let parent = server.child.id().to_string();
        let children = Command::new("pgrep").args(["-P", &parent]).output().expect("pgrep starts");
        server.signal("-KILL");
        for child in String::from_utf8_lossy(&children.stdout).split_whitespace() {
            let _ = Command::new("kill").args(["-KILL", child]).status();
        }
        server.wait();
        // Whatever wrote last has let go of the memory that it shared before a new one starts.
        let lock = self.data.join("postmaster.pid");
        wait_for("the killed server's lock to be removed", || {
            let _ = fs::remove_file(&lock);
            (!lock.exists()).then_some(())
        });
    }

    /// The URL of a new database.
    pub fn database(&self, name: &str) -> String {
        self.sql("postgres", &format!("CREATE DATABASE {name}"));
        format!("postgres://cdal@127.0.0.1:{}/{name}?sslmode=disable", self.port)
    }

    /// What `psql` prints of a statement.
    pub fn sql(&self, database: &str, statement: &str) -> String {
        let mut psql = program("psql");
        psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-U", "cdal"]);
        psql.args(["-p", &self.port.to_string(), "-d", database, "-c", statement]);
        let output = psql.output().expect("psql starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

const NOBODY: u32 = 65_534;

fn is_root() -> bool {
    rustix::process::getuid().is_root()
}

/// A program of PostgreSQL, which Debian keeps by version, of the newest that has all of them; as nobody where this is root.
fn program(name: &str) -> Command {
    use std::os::unix::process::CommandExt;

    const ALL: [&str; 4] = ["initdb", "postgres", "psql", "pg_isready"];
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = versions
        .filter_map(|version| Some((version.file_name().to_str()?.parse::<u32>().ok()?, version)))
        .map(|(number, version)| (number, version.path().join("bin")))
        .filter(|(_, bin)| ALL.iter().all(|name| bin.join(name).exists()))
        .max_by_key(|(number, _)| *number);
    let path = newest.map_or_else(|| name.into(), |(_, bin)| bin.join(name));
    let mut command = Command::new(path);
    if is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}
