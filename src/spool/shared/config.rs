use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sqlx::postgres::{PgConnectOptions, PgSslMode};

use crate::domain::{Fault, credential, duration};

/// Section `[shared]`: several devices work on one queue. Each keeps its own spool before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The PostgreSQL server, such as `postgres://cdal@db.example/cdal?sslmode=verify-full`. Without a password.
    pub url: String,
    /// Credentials file with the password, where the server wants one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<PathBuf>,
    /// Names this device to the others: letters, digits, `.`, `-` and `_`, different on each.
    pub device: String,
    /// When a sender is told that its object is safe.
    #[serde(default)]
    pub durability: Durability,
    /// How long a device that says nothing keeps what it has taken.
    #[serde(with = "duration", default = "default_lease")]
    #[schemars(with = "duration::Text")]
    pub lease: Duration,
    /// How often it says that it is still at work.
    #[serde(with = "duration", default = "default_heartbeat")]
    #[schemars(with = "duration::Text")]
    pub heartbeat: Duration,
    /// How often it looks for work where the server does not tell of it.
    #[serde(with = "duration", default = "default_poll")]
    #[schemars(with = "duration::Text")]
    pub poll: Duration,
    /// Longest wait for the server's answer, with a second for every MiB on top.
    #[serde(with = "duration", default = "default_timeout")]
    #[schemars(with = "duration::Text")]
    pub timeout: Duration,
}

/// What an acknowledgement promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// The object is on this device's disk; the shared queue gets its series once that is complete.
    #[default]
    Local,
    /// The object is on the server too. While that cannot be reached, objects are refused for the time being.
    Replicated,
}

fn default_lease() -> Duration {
    Duration::from_secs(30)
}

fn default_heartbeat() -> Duration {
    Duration::from_secs(5)
}

fn default_poll() -> Duration {
    Duration::from_secs(2)
}

fn default_timeout() -> Duration {
    Duration::from_secs(10)
}

impl Config {
    #[must_use]
    pub fn new(url: impl Into<String>, device: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            password: None,
            device: device.into(),
            durability: Durability::default(),
            lease: default_lease(),
            heartbeat: default_heartbeat(),
            poll: default_poll(),
            timeout: default_timeout(),
        }
    }

    #[must_use]
    pub fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        let mut check = |holds: bool, key: &str, problem: &str| {
            if !holds {
                faults.push(Fault::new(key, problem));
            }
        };
        let names = |name: &str| {
            (1..=64).contains(&name.len())
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        let problem = "must be 1 to 64 letters, digits, dots, dashes and underscores";
        check(names(&self.device), "device", problem);
        match (url::Url::parse(&self.url), PgConnectOptions::from_str(&self.url)) {
            (Ok(url), Ok(options)) if matches!(url.scheme(), "postgres" | "postgresql") => {
                let has_password =
                    url.password().is_some() || url.query_pairs().any(|(key, _)| key == "password");
                let problem = "holds a password; put that into a credentials file and name it in shared.password";
                check(!has_password, "url", problem);
                let is_verified =
                    matches!(options.get_ssl_mode(), PgSslMode::VerifyCa | PgSslMode::VerifyFull);
                let problem = "leads to another machine, and images would cross the network in the clear or to \
                               anybody; add sslmode=verify-full, and sslrootcert=FILE for an authority of your own";
                check(is_verified || is_here(&options), "url", problem);
            }
            _ => check(
                false,
                "url",
                "is not the address of a database, such as postgres://cdal@db.example/cdal?sslmode=verify-full",
            ),
        }
        check(
            (Duration::from_millis(100)..=Duration::from_hours(1)).contains(&self.lease),
            "lease",
            "must be 100ms to 1h",
        );
        check(
            !self.heartbeat.is_zero() && self.heartbeat <= self.lease / 3,
            "heartbeat",
            "must be longer than 0ms and at most a third of lease: two may get lost",
        );
        check(
            (Duration::from_millis(10)..=Duration::from_mins(10)).contains(&self.poll),
            "poll",
            "must be 10ms to 10m",
        );
        check(
            (Duration::from_millis(100)..=Duration::from_mins(10)).contains(&self.timeout),
            "timeout",
            "must be 100ms to 10m",
        );
        faults
    }

    /// How to reach the server, with the password as it is at this moment.
    pub(super) fn options(&self) -> Result<PgConnectOptions, String> {
        let options = PgConnectOptions::from_str(&self.url)
            .map_err(|_| "shared.url is not the address of a database".to_owned())?;
        let options = options
            .application_name(&format!("cdal {}", self.device))
            .options([("search_path", "cdal_spool")]);
        Ok(match &self.password {
            Some(path) => {
                let password = credential::read(path)
                    .map_err(|problem| format!("shared.password: {problem}"))?;
                options.password(password.trim_end_matches(['\r', '\n']))
            }
            None => options,
        })
    }
}

/// Whether the server is on this machine.
fn is_here(options: &PgConnectOptions) -> bool {
    let host = options.get_host().trim_matches(['[', ']']);
    options.get_socket().is_some()
        || host.starts_with('/')
        || host == "localhost"
        || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(url: &str) -> Vec<String> {
        Config::new(url, "mr-1").faults().into_iter().map(|fault| fault.problem).collect()
    }

    #[test]
    fn images_go_to_another_machine_under_a_verified_certificate_alone() {
        for url in [
            "postgres://cdal@db.example/cdal?sslmode=verify-full",
            "postgres://cdal@db.example/cdal?sslmode=verify-ca&sslrootcert=/etc/cdal/ca.pem",
            "postgres://cdal@127.0.0.1:5433/cdal",
            "postgres://cdal@[::1]/cdal",
            "postgres:///cdal?host=/run/postgresql",
        ] {
            assert_eq!(wrong(url), Vec::<String>::new(), "{url}");
        }
        for mode in ["", "?sslmode=disable", "?sslmode=prefer", "?sslmode=require"] {
            let found = wrong(&format!("postgres://cdal@db.example/cdal{mode}"));
            assert!(found.len() == 1 && found[0].contains("verify-full"), "{mode}: {found:?}");
        }
    }

    #[test]
    fn a_password_in_the_url_is_refused_and_not_repeated() {
        for url in
            ["postgres://cdal:hunter2@localhost/cdal", "postgres://localhost/cdal?password=hunter2"]
        {
            let found = wrong(url);
            assert!(found.len() == 1 && found[0].contains("shared.password"), "{found:?}");
            assert!(!found[0].contains("hunter2"));
        }
        assert_eq!(wrong("mysql://localhost/cdal").len(), 1);
    }

    #[test]
    fn two_heartbeats_may_get_lost() {
        let config = Config::new("postgres://localhost/cdal", "mr 1");
        let config = Config { heartbeat: config.lease / 2, ..config };
        let keys: Vec<_> = config.faults().into_iter().map(|fault| fault.key).collect();
        assert_eq!(keys, ["device", "heartbeat"]);
    }
}
