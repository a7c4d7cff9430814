//! The collector as devices and operators meet it: real processes over mutual TLS.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cdal::durable::hex;
use cdal::fleet::collect::{ClientConfig, Collector, Config, Reporter, Standing, WithoutCollector};
use cdal::fleet::rollout::{Failure, Named, Phase, Proof, Report};
use cdal::fleet::{Probation, Release, Rollout, SCHEMA, Wave};
use cdal::tls;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::project::root;
use crate::support::certificates::{certificates, named_certificate};
use crate::support::http::{Answer, get, request, request_tls};
use crate::support::process::{self, Process, rendered};
use crate::support::wait_for;

const TOKEN: &str = "3f0c62b1d3c0f2b57a9d8a0f6f0f4a1b";

/// A collector's folder with certificates, a release and an operator's token.
struct Site {
    folder: TempDir,
    release: Named,
    collector: Process,
    address: SocketAddr,
    page: SocketAddr,
}

pub fn release(counter: u64) -> Release {
    let wave = Wave { up_to: 1.0, after: Duration::ZERO, duration: Duration::ZERO };
    Release {
        schema: SCHEMA,
        counter,
        name: format!("r{counter}"),
        cdal: semver::VersionReq::STAR,
        hardware: vec!["x86-64-cpu".into()],
        groups: vec!["lab".into(), "ward".into()],
        configuration: None,
        bundles: BTreeMap::new(),
        rollout: Rollout {
            start_ms: 0,
            canary: vec!["lab".into()],
            waves: vec![wave],
            failure_threshold: 0.5,
            silence: Duration::from_hours(1),
        },
        probation: Probation {
            healthy: Duration::from_mins(1),
            jobs: 1,
            failures: 0,
            slowdown: 2.0,
            boots: 3,
        },
    }
}

fn start(folder: &Path) -> (Process, SocketAddr, SocketAddr) {
    let mut command = process::cdal();
    command.args(["fleet", "collect", "--config"]).arg(folder.join("collector.toml"));
    let process = Process::start(command.stderr(fs::File::create(folder.join("log")).unwrap()));
    let ready = process.json();
    let address = |key: &str| ready[key].as_str().unwrap().parse().unwrap();
    let (collector, page) = (address("collector"), address("page"));
    (process, collector, page)
}

impl Site {
    fn open(devices: &[&str], more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        certificates(folder.path());
        for device in devices {
            named_certificate(folder.path(), device);
        }
        fs::create_dir(path("releases")).unwrap();
        let manifest = serde_json::to_vec(&release(4)).unwrap();
        fs::write(path("releases/4.json"), &manifest).unwrap();
        secret(&path("tokens"), &format!("ann {}\n", hex(&Sha256::digest(TOKEN))));
        secret(&path("token"), TOKEN);
        let tls = format!(
            "[tls]\ncertificate = \"{0}/server.pem\"\nkey = \"{0}/server.key\"\nclients = \"{0}/ca.pem\"\n",
            folder.path().display()
        );
        let text = format!(
            "listen = \"127.0.0.1:0\"\npage = \"127.0.0.1:0\"\ndatabase = \"fleet.db\"\nreleases = \"releases\"\n\
             operators = [\"operator.example\"]\ntokens = \"{}\"\n{more}\n{tls}",
            path("tokens").display()
        );
        fs::write(path("collector.toml"), text).unwrap();
        let (collector, address, page) = start(folder.path());
        let release = Named { counter: 4, digest: hex(&Sha256::digest(&manifest)) };
        Self { folder, release, collector, address, page }
    }

    fn restart(&mut self) {
        self.collector.signal("-KILL");
        self.collector.wait();
        (self.collector, self.address, self.page) = start(self.folder.path());
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What `name` shows; nothing under no name.
    fn tls(&self, name: &str) -> tls::Client {
        let own = |end: &str| (!name.is_empty()).then(|| self.path(&format!("{name}.{end}")));
        let server_name = Some("localhost".into());
        let ca = self.path("server.pem");
        tls::Client { ca, certificate: own("pem"), key: own("key"), server_name }
    }

    fn client(&self, name: &str) -> Collector {
        let url = format!("https://{}", self.address);
        Collector::new(ClientConfig::new(url, self.tls(name), None))
    }

    fn post(&self, name: &str, body: &[u8]) -> Result<Answer, String> {
        request_tls(self.address, &self.tls(name), "POST", "/v1/reports", &[], body)
    }

    fn say(&self, report: &Report) -> Answer {
        self.post(&report.device, &serde_json::to_vec(report).unwrap()).unwrap()
    }

    fn report(&self, device: &str, phase: Phase) -> Report {
        Report {
            device: device.into(),
            group: "ward".into(),
            hardware: "x86-64-cpu".into(),
            cdal: "0.1.0".into(),
            running: None,
            target: Some(self.release.clone()),
            phase,
            waits_for: None,
            failed: None,
            counters: BTreeMap::from([("jobs_done".to_owned(), 7)]),
            audit: Proof::default(),
        }
    }

    fn fleet(&self) -> Value {
        get(self.page, "/v1/fleet").json()
    }

    /// `cdal fleet …` as an operator with `arguments` calls it.
    fn operator(&self, what: &str, arguments: &[&str]) -> (bool, String, String) {
        let mut command = process::cdal();
        command.args(["fleet", what, "--collector", &format!("https://{}", self.address)]);
        command.args(["--server-name", "localhost", "--ca", "server.pem"]).args(arguments);
        let output = command.current_dir(self.folder.path()).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.success(), text(&output.stdout), text(&output.stderr))
    }
}

/// Fills a file that others may not read.
fn secret(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(path, mode).unwrap();
}

#[test]
fn a_device_speaks_for_itself_alone_and_what_it_says_is_read_strictly() {
    let site = Site::open(&["device-1", "device-2"], "min_interval = \"0ms\"");
    let own = site.report("device-1", Phase::Downloading);
    let bytes = serde_json::to_vec(&own).unwrap();
    let answer = site.post("device-1", &bytes).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["go"], true);

    let other = serde_json::to_vec(&site.report("device-2", Phase::Trial)).unwrap();
    let refused = site.post("device-1", &other).unwrap();
    assert_eq!((refused.status, refused.json_code().unwrap().as_str()), (403, "not_yourself"));
    let shouted = serde_json::to_vec(&site.report("Device-1", Phase::Trial)).unwrap();
    assert_eq!(
        site.post("device-1", &shouted).unwrap().status,
        403,
        "no second one by its spelling"
    );
    let nameless = site.post("", &bytes).unwrap();
    assert_eq!((nameless.status, nameless.json_code().unwrap().as_str()), (401, "no_certificate"));
    assert!(site.post("server", &bytes).is_err(), "a certificate of another root");
    let sees =
        request_tls(site.address, &site.tls("device-1"), "GET", "/v1/fleet", &[], b"").unwrap();
    assert_eq!(sees.status, 401, "a device is no operator");

    let mut odd = serde_json::to_value(&own).unwrap();
    odd["extra"] = 1.into();
    for (body, status) in [
        (odd.to_string().into_bytes(), 422),
        (b"{".to_vec(), 422),
        (Vec::new(), 422),
        (serde_json::to_vec(&Report { cdal: "new".into(), ..own.clone() }).unwrap(), 422),
        (serde_json::to_vec(&Report { group: "a/b".into(), ..own.clone() }).unwrap(), 422),
        (serde_json::to_vec(&Report { waits_for: Some("a\nb".into()), ..own }).unwrap(), 422),
        (vec![b' '; 100 << 10], 413),
    ] {
        let answer = site.post("device-1", &body).unwrap();
        assert_eq!(answer.status, status, "{}", answer.text());
    }
    let table = site.fleet()["account"]["table"].clone();
    assert_eq!(table.as_array().unwrap().len(), 1, "{table}");
    assert_eq!(
        (table[0]["device"].as_str(), table[0]["class"].as_str()),
        (Some("device-1"), Some("under_way"))
    );
}

#[test]
fn the_example_is_right_and_a_wrong_configuration_is_told_in_full() {
    let example = root().join("configs/collector.toml");
    let config = Config::read(&example).unwrap();
    assert_eq!(config.max_devices, 1000);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.toml");
    let text = fs::read_to_string(&example).unwrap();
    let text = text.replace("127.0.0.1:8080", "0.0.0.0:8080").replace("= 1000", "= 0");
    fs::write(&path, text.replace("clients = ", "# ")).unwrap();
    let output =
        process::cdal().args(["fleet", "collect", "--config"]).arg(&path).output().unwrap();
    assert_eq!(output.status.code(), Some(78));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    for key in
        ["page must be an address on the loopback", "tls.clients is missing", "max_devices must be"]
    {
        assert!(told.contains(key), "{told}");
    }
    fs::write(&path, "listen = \"127.0.0.1:0\"\nlisen = 1\n").unwrap();
    let error = Config::read(&path).unwrap_err().to_string();
    assert!(error.contains("lisen"), "{error}");
}

#[test]
fn devices_and_their_reports_are_bounded() {
    let site = Site::open(&["device-1", "device-2"], "min_interval = \"1h\"\nmax_devices = 1");
    let said = |device: &str| {
        let answer = site.say(&site.report(device, Phase::Idle));
        (answer.status, answer.header("retry-after").map(str::to_owned))
    };
    assert_eq!(said("device-1"), (200, None));
    let (status, wait) = said("device-1");
    assert_eq!(status, 429);
    assert!((1..=3600).contains(&wait.unwrap().parse::<u32>().unwrap()));
    assert_eq!(said("device-2").0, 503);
}

#[test]
fn an_operator_pauses_and_resumes_and_a_kill_forgets_nothing() {
    let mut site =
        Site::open(&["device-1", "device-2", "operator.example"], "min_interval = \"0ms\"");
    let waiting = site.report("device-1", Phase::WaitingWave);
    assert_eq!(site.say(&waiting).json()["go"], true);

    let (done, _, told) =
        site.operator("pause", &["--token", "token", "--words", "the link is slow"]);
    assert!(done, "{told}");
    assert_eq!(told, "release 4: paused\n");
    let held = site.say(&waiting).json();
    assert_eq!(held["go"], false);
    assert!(held["reason"].as_str().unwrap().starts_with("paused by ann at "), "{held}");
    let failed =
        Failure { release: site.release.clone(), reason: "the golden case differs".into() };
    site.say(&Report {
        failed: Some(failed),
        target: None,
        ..site.report("device-2", Phase::Idle)
    });

    let before = site.fleet();
    site.restart();
    let after = site.fleet();
    assert_eq!(after["account"], before["account"], "as it was before the kill");
    assert_eq!(site.say(&waiting).json(), held);

    let (done, out, _) = site.operator("watch", &["--token", "token", "--once"]);
    assert!(done);
    assert!(
        out.contains("release 4 r4: paused by ann at ") && out.contains(": the link is slow; "),
        "{out}"
    );
    assert!(out.contains("1 waiting, 1 rolled back of 2 devices\n"), "{out}");
    let of_device = out.lines().find(|line| line.starts_with("device-2 ")).unwrap();
    assert!(
        of_device.contains("rolled back") && of_device.ends_with("the golden case differs"),
        "{out}"
    );
    let by_certificate = ["--certificate", "operator.example.pem", "--key", "operator.example.key"];
    let (done, out, _) =
        site.operator("watch", &[&by_certificate[..], &["--once", "--json"]].concat());
    assert!(done);
    let told: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(told["account"]["classes"]["rolled_back"], 1);

    // Nobody else can.
    secret(&site.path("wrong"), "0123456789abcdef0123456789abcdef");
    for who in
        [vec!["--token", "wrong"], vec!["--certificate", "device-1.pem", "--key", "device-1.key"]]
    {
        let (done, _, told) = site.operator("resume", &who);
        assert!(!done && told.contains("HTTP status 401"), "{told}");
    }
    let resume = request(site.page, "POST", "/v1/rollouts/4/resume", &[], b"");
    assert_eq!(resume.status, 404, "the page's address is for looking");
    assert_eq!(request(site.page, "GET", "/v1/fleet", &["Host: evil.example"], b"").status, 421);
    assert_eq!(site.say(&waiting).json()["go"], false);

    let (done, _, told) = site.operator("resume", &by_certificate);
    assert!(done, "{told}");
    assert_eq!(site.say(&waiting).json()["go"], true);
    assert_eq!(site.fleet()["devices"], 2);
    let (done, _, told) = site.operator("forget", &["--token", "token", "device-2"]);
    assert!(done && told == "device-2: forgotten\n", "{told}");
    let (done, _, told) = site.operator("forget", &["--token", "token", "device-2"]);
    assert!(!done && told.contains("no device of this id is known"), "{told}");
    site.restart();
    assert_eq!(site.fleet()["devices"], 1);
    let (done, _, told) = site.operator("pause", &["--token", "token", "--release", "9"]);
    assert!(!done && told.contains("no release of this counter is known"), "{told}");
}

#[test]
fn a_page_of_another_site_steers_no_rollout() {
    let site = Site::open(&["device-1", "operator.example"], "min_interval = \"0ms\"");
    site.say(&site.report("device-1", Phase::WaitingWave));
    // The browser shows the operator's certificate whoever sends the request.
    let pause = |headers: &[&str]| {
        let (tls, words) = (site.tls("operator.example"), b"{\"words\":\"x\"}");
        let path = "/v1/rollouts/4/pause";
        request_tls(site.address, &tls, "POST", path, headers, words).unwrap().status
    };
    for header in ["Origin: https://evil.example", "Origin: null", "Sec-Fetch-Site: cross-site"] {
        assert_eq!(pause(&[header]), 403, "{header}");
    }
    assert_eq!(site.fleet()["releases"][0]["paused"], false);
    assert_eq!(pause(&["Origin: https://localhost", "Sec-Fetch-Site: same-origin"]), 200);
    assert_eq!(site.fleet()["releases"][0]["paused"], true);
}

#[test]
fn a_release_that_is_published_later_is_found_and_an_unknown_one_waits() {
    let site = Site::open(&["device-1"], "min_interval = \"0ms\"\nafter_canary = \"wait\"");
    let manifest = serde_json::to_vec(&release(5)).unwrap();
    let target = Some(Named { counter: 5, digest: hex(&Sha256::digest(&manifest)) });
    let report = Report { target, ..site.report("device-1", Phase::WaitingWave) };
    let answer = site.say(&report).json();
    assert!(answer["reason"].as_str().unwrap().contains("does not know this release"), "{answer}");
    fs::write(site.path("releases/5.json"), &manifest).unwrap();
    fs::write(site.path("releases/6.json"), "half a manif").unwrap();
    let reason = || site.say(&report).json()["reason"].as_str().unwrap().to_owned();
    wait_for("the release to be found", || {
        reason().contains("canary groups come first").then_some(())
    });
    let canary = Report { group: "lab".into(), ..report };
    assert_eq!(site.say(&canary).json()["go"], true);
}

/// A trail of so many lines, as a device writes it.
fn trail(file: &Path, lines: u64, edited: u64) {
    let mut previous = String::new();
    let mut text = String::new();
    for seq in 1..=lines {
        let event = if seq == edited { "deleted" } else { "delivered" };
        let line = format!(
            "{{\"seq\":{seq},\"time_ms\":1,\"event\":\"{event}\",\"previous\":\"{previous}\""
        );
        previous = hex(&Sha256::digest(&line));
        writeln!(text, "{line},\"seal\":\"{previous}\"}}").unwrap();
    }
    fs::write(file, text).unwrap();
}

#[test]
fn a_device_whose_reports_come_too_soon_slows_down_and_keeps_what_it_was_told() {
    let site = Site::open(&["device-1"], "min_interval = \"1h\"");
    let runtime = Runtime::new().unwrap();
    let mut reporter = Reporter::new(site.client("device-1"), WithoutCollector::Hold, None);
    let report = site.report("device-1", Phase::Idle);
    let mut gaps = Vec::new();
    for is_refused in [false, true, true] {
        assert_eq!(runtime.block_on(reporter.report(report.clone())), Standing::Go);
        assert_eq!(reporter.is_refused(), is_refused);
        gaps.push(reporter.gap());
    }
    assert!(gaps[0] > Duration::from_secs(1), "collectors ask for that by default");
    assert_eq!((gaps[1], gaps[2]), (2 * gaps[0], 4 * gaps[0]));
}

#[test]
fn a_trail_that_was_edited_or_cut_raises_an_alarm() {
    let mut site = Site::open(&["device-1"], "min_interval = \"0ms\"");
    let runtime = Runtime::new().unwrap();
    let file = site.path("audit.jsonl");
    trail(&file, 3, 0);
    cdal::telemetry::audit::verify(&file).expect("the test's trail is a sound one");
    let mut reporter =
        Reporter::new(site.client("device-1"), WithoutCollector::Hold, Some(file.clone()));
    let report = site.report("device-1", Phase::Idle);
    let mut say = |lines, edited| {
        trail(&file, lines, edited);
        assert_eq!(runtime.block_on(reporter.report(report.clone())), Standing::Go);
    };
    let alarms = |site: &Site| {
        let alarms = site.fleet()["alarms"].clone();
        let what = |alarm: &Value| alarm["what"].as_str().unwrap().to_owned();
        alarms.as_array().unwrap().iter().map(what).collect::<Vec<_>>()
    };
    // Far more than goes with one report.
    for lines in [3, 5, 900, 900, 900, 900, 900, 900, 900, 900, 900, 901] {
        say(lines, 0);
    }
    assert_eq!(alarms(&site), [""; 0]);
    say(902, 900);
    assert_eq!(alarms(&site), ["line 902 of the audit trail does not follow the one before it"]);
    say(850, 900);
    assert_eq!(alarms(&site)[0], "the audit trail ends at line 850, it had 902: it was cut");
    site.restart();
    assert_eq!(alarms(&site).len(), 2);
    let (done, out, _) = site.operator("watch", &["--token", "token", "--once"]);
    assert!(done && out.contains("device-1: the audit trail ends at line 850"), "{out}");
}

#[test]
fn without_its_collector_a_device_goes_on_or_holds_as_it_was_told() {
    let mut site = Site::open(&["device-1"], "min_interval = \"0ms\"");
    let runtime = Runtime::new().unwrap();
    let report = site.report("device-1", Phase::WaitingWave);
    let reporter = |without| Reporter::new(site.client("device-1"), without, None);
    let (mut bold, mut careful) =
        (reporter(WithoutCollector::GoOn), reporter(WithoutCollector::Hold));
    let mut paused = reporter(WithoutCollector::GoOn);
    let mut restarted = reporter(WithoutCollector::GoOn).held(Some("paused by ann".into()));
    let say = |reporter: &mut Reporter| runtime.block_on(reporter.report(report.clone()));
    for reporter in [&mut bold, &mut careful] {
        assert_eq!(say(reporter), Standing::Go);
    }
    assert!(site.operator("pause", &["--token", "token"]).0);
    assert!(
        matches!(say(&mut paused), Standing::Hold(reason) if reason.starts_with("paused by ann"))
    );
    site.collector.signal("-KILL");
    site.collector.wait();
    assert!(matches!(say(&mut restarted), Standing::Hold(_)), "nor does a restart");
    assert_eq!(say(&mut bold), Standing::Go);
    assert!(
        matches!(say(&mut careful), Standing::Hold(reason) if reason.contains("no connection"))
    );
    let still =
        matches!(say(&mut paused), Standing::Hold(reason) if reason.starts_with("paused by ann"));
    assert!(still, "cutting the line ends no pause");
}

#[test]
fn the_page_shows_waves_failures_and_devices_and_no_markup_of_theirs() {
    let names: Vec<String> = (1..=3).map(|n| format!("device-{n}")).collect();
    let devices: Vec<&str> = names.iter().map(String::as_str).collect();
    let site = Site::open(&devices, "min_interval = \"0ms\"");
    let reason = "<img src=x onerror=alert(1)> differs".to_owned();
    let failed = Some(Failure { release: site.release.clone(), reason });
    let running = Some(site.release.clone());
    site.say(&Report { failed, target: None, ..site.report("device-1", Phase::Idle) });
    site.say(&Report {
        running,
        target: None,
        group: "lab".into(),
        ..site.report("device-2", Phase::Idle)
    });
    site.say(&site.report("device-3", Phase::Trial));
    assert!(site.operator("pause", &["--token", "token", "--words", "tea"]).0);
    let page = rendered(&format!("http://{}/", site.page));
    for device in &names {
        assert!(page.contains(&format!("id=\"device-{device}\"")), "{page}");
    }
    assert!(
        page.contains("&lt;img src=x onerror=alert(1)&gt; differs") && !page.contains("<img"),
        "{page}"
    );
    for words in [
        "paused by ann at ",
        "UTC: tea",
        "wave 1: 0 committed, 1 under way, 1 failed or silent of 2",
        "canary: 1 committed",
    ] {
        assert!(page.contains(words), "{words}: {page}");
    }
    let policy = get(site.page, "/");
    assert!(policy.header("content-security-policy").unwrap().contains("default-src 'none'"));
}
