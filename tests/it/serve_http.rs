//! `cdal serve` as its users meet it: the shipped model behind HTTP, asked by Python clients and looked at in a browser;
//! a configuration put in force while it runs; what the service manager and the audit trail hear of it.

use std::fs::{self, File};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use cdal::codec::nifti;
use cdal::phantom::phantom;
use cdal::telemetry::audit;
use serde_json::Value;

use crate::project::root;
use crate::scripts::run_python;
use crate::support::http::{get, post};
use crate::support::process::{self, Process, rendered};
use crate::support::wait_for;

fn configuration(folder: &Path, more: &str) -> String {
    format!(
        "[model]\nbundle = \"{}\"\nvotes = 2\n[spool]\ndirectory = \"{}\"\nmin_free_bytes = 0\n\
         [ingest.dicom]\nlisten = \"127.0.0.1:0\"\n[http]\nlisten = \"127.0.0.1:0\"\n\
         [daemon]\naudit = \"{}\"\n{more}",
        root().join("onnx/phantom").display(),
        folder.join("spool").display(),
        folder.join("audit.jsonl").display(),
    )
}

#[test]
fn the_model_answers_over_http_and_a_configuration_is_put_in_force_while_it_does() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("c.toml"), configuration(folder.path(), "")).unwrap();
    let manager = Manager::listen(&path("notify"));
    let mut command = process::cdal();
    command.args(["serve", "--config"]).arg(path("c.toml"));
    command.env("NOTIFY_SOCKET", path("notify")).env("WATCHDOG_USEC", "200000");
    command.stderr(File::create(path("log")).unwrap());
    let mut daemon = Process::start(&mut command);
    let to = daemon.json()["http"].as_str().unwrap().parse().unwrap();

    let volume = phantom(11).volume;
    let image = volume.samples.index_axis(ndarray::Axis(0), 0);
    let bytes = nifti::encode_image(volume.geometry.as_ref(), image).unwrap();
    fs::write(path("image.nii.gz"), &bytes).unwrap();
    let address = format!("{to}");
    let jobs = run_python("check_http.py", &[Path::new(&address), &path("image.nii.gz")]);
    let jobs: Vec<String> =
        serde_json::from_str(&jobs.expect("the project's Python is there")).unwrap();

    // The page shows the two cases with pictures that really load.
    wait_for("the pictures to be drawn", || {
        let status = get(to, "/v1/status").json();
        status["jobs"].as_array().unwrap().iter().all(|job| job["pictures"] == true).then_some(())
    });
    let page = rendered(&format!("http://{to}/"));
    for job in &jobs {
        assert!(page.contains(&format!("id=\"case-{job}\"")), "{page}");
    }
    assert_eq!(page.matches("src=\"blob:").count(), 2, "{page}");
    assert_eq!(page.matches("data-width=\"").count(), 2, "{page}");
    for layer in ["image", "mask", "disagreement"] {
        let picture = get(to, &format!("/v1/jobs/{}/pictures/{layer}", jobs[0]));
        assert!(picture.body.starts_with(b"\x89PNG"), "{layer}");
    }

    // Six faults: all are told, nothing changes.
    let revision = || get(to, "/v1/status").json()["model"]["configuration"].clone();
    let first = revision();
    let bad = "log = \"loud\"\ndrain_deadline = 5\n[[destination]]\nname = \"x\"\nkind = \"fax\"\n\
               [runtime]\nintra_threads = 9999\nthreads = 2\n";
    let text = configuration(folder.path(), bad).replace("votes = 2", "votes = 0");
    fs::write(path("c.toml"), text).unwrap();
    daemon.signal("-HUP");
    let log = || fs::read_to_string(path("log")).unwrap();
    wait_for("the refusal", || log().contains("the old one stays in force").then_some(()));
    for key in [
        "model.votes = 0",
        "daemon.log = \"loud\"",
        "daemon.drain_deadline = 5",
        "destination[0].kind = \"fax\"",
        "runtime.intra_threads = 9999",
        "runtime.threads = 2",
    ] {
        assert!(log().contains(&format!("c.toml: {key}: ")), "{key}: {}", log());
    }
    assert!(log().contains("6 faults"), "{}", log());
    assert_eq!(revision(), first);

    // A good one with another destination and another number of votes is in force for the next case.
    let more = format!(
        "[[destination]]\nname = \"disk\"\nkind = \"folder\"\npath = \"{}\"\n",
        path("out").display()
    );
    let text = configuration(folder.path(), &more).replace("votes = 2", "votes = 1");
    fs::write(path("c.toml"), text.replace("min_free_bytes = 0", "min_free_bytes = 1")).unwrap();
    daemon.signal("-HUP");
    wait_for("the reload", || (revision() != first).then_some(()));
    assert!(log().contains("spool.min_free_bytes"), "only a restart puts it in force: {}", log());
    let other = phantom(12).volume;
    let image = other.samples.index_axis(ndarray::Axis(0), 0);
    let answer =
        post(to, "/v1/cases", &nifti::encode_image(other.geometry.as_ref(), image).unwrap());
    let job = answer.json()["jobs"][0]["href"].as_str().unwrap().to_owned();
    wait_for("the mask in the folder", || {
        fs::read_dir(path("out"))
            .ok()?
            .flatten()
            .find(|file| file.file_name().to_string_lossy().ends_with(".mask.nii.gz"))
    });
    wait_for("its record", || {
        (get(to, &job).json()["deliveries"][0]["state"] == "sent").then_some(())
    });
    assert_eq!(get(to, "/v1/status").json()["model"]["votes"], 1);

    daemon.signal("-TERM");
    assert!(daemon.wait().success());
    check_notifications(&manager);
    check_trail(&path("audit.jsonl"));
}

/// What a service manager hears, the first line of each word.
struct Manager(Receiver<String>);

impl Manager {
    fn listen(socket: &Path) -> Self {
        let socket = UnixDatagram::bind(socket).unwrap();
        let (send, heard) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 256];
            while let Ok(length) = socket.recv(&mut buffer) {
                let word = String::from_utf8_lossy(&buffer[..length]);
                if send.send(word.lines().next().unwrap().to_owned()).is_err() {
                    return;
                }
            }
        });
        Self(heard)
    }
}

fn check_notifications(Manager(heard): &Manager) {
    let mut words = Vec::new();
    wait_for("the last word", || {
        words.extend(heard.try_iter());
        words.last().is_some_and(|word: &String| word == "STOPPING=1").then_some(())
    });
    let mut heard = words;
    assert!(heard.iter().any(|word| word == "WATCHDOG=1"), "{heard:?}");
    heard.retain(|word| word != "WATCHDOG=1");
    let expected = ["READY=1", "RELOADING=1", "READY=1", "RELOADING=1", "READY=1", "STOPPING=1"];
    assert_eq!(heard, expected);
}

fn check_trail(file: &Path) {
    let trail = fs::read_to_string(file).unwrap();
    assert_eq!(audit::verify(file).unwrap().seq, trail.lines().count() as u64);
    let events: Vec<String> = trail
        .lines()
        .map(|line| {
            serde_json::from_str::<Value>(line).unwrap()["event"].as_str().unwrap().to_owned()
        })
        .collect();
    let count = |event: &str| events.iter().filter(|found| *found == event).count();
    let counts =
        ["started", "accepted", "job_done", "delivered", "reload_refused", "reloaded", "stopped"]
            .map(count);
    assert_eq!(counts, [1, 3, 3, 1, 1, 1, 1], "{events:?}");
}

#[test]
fn the_watchdog_is_not_answered_for_a_job_that_hangs() {
    use crate::support::daemon::{Running, settings};
    use crate::support::worker::Stand;

    let folder = tempfile::tempdir().unwrap();
    let mut settings = settings(folder.path(), vec![]);
    settings.daemon.job_deadline = Duration::from_millis(100);
    let daemon = Running::start(settings, Stand { compute: Duration::from_millis(900) });
    let alive = || daemon.runtime.block_on(daemon.daemon().is_alive());
    assert!(alive());
    let to = daemon.daemon().http_address().unwrap();
    let volume = phantom(1).volume;
    let image = volume.samples.index_axis(ndarray::Axis(0), 0);
    post(to, "/v1/cases", &nifti::encode_image(None, image).unwrap());
    wait_for("the watchdog to notice", || (!alive()).then_some(()));
    wait_for("the job to end", || alive().then_some(()));
    daemon.stop();
}
