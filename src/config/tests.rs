use std::path::Path;
use std::time::Duration;

use super::*;

const MINIMAL: &str = "
[model]
bundle = \"onnx/phantom\"
[spool]
directory = \"/var/spool/cdal\"
[ingest.dicom]
listen = \"127.0.0.1:0\"
";

pub(super) fn load_text(text: &str, variables: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("c.toml");
    std::fs::write(&file, text).unwrap();
    load_with(&[&file], variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())))
}

fn findings(text: &str, variables: &[(&str, &str)]) -> Vec<Finding> {
    match load_text(text, variables) {
        Err(ConfigError::Faults(findings)) => findings,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_minimal_file_is_filled_up_with_defaults_and_origins_are_known() {
    let loaded = load_text(MINIMAL, &[("CDAL_MODEL__SEED", "7"), ("CDAL_LOG", "debug")]).unwrap();
    assert_eq!(loaded.settings.model.seed, 7);
    assert_eq!(loaded.settings.daemon.drain_deadline, Duration::from_secs(30));
    let values = loaded.values();
    let find = |key: &str| values.iter().find(|(found, ..)| found == key).unwrap().clone();
    assert_eq!(find("model.seed").2, Origin::Variable("CDAL_MODEL__SEED".to_owned()));
    assert!(matches!(find("model.bundle").2, Origin::File(path) if path.ends_with("c.toml")));
    assert_eq!(
        find("daemon.drain_deadline"),
        ("daemon.drain_deadline".to_owned(), "\"30s\"".to_owned(), Origin::Default)
    );
}

#[test]
fn storage_commitment_is_checked_where_it_is_written() {
    let archive =
        "[[destination]]\nname = \"a\"\nkind = \"dicom\"\naddress = \"a:104\"\nae_title = \"A\"\n";
    let fine = format!(
        "{MINIMAL}{archive}commitment = {{}}\n[[commitment.requester]]\nae_title = \"MR\"\naddress = \"mr:104\"\n"
    );
    let loaded = load_text(&fine, &[]).unwrap();
    let within = loaded.settings.destination[0].commitment.unwrap().within;
    assert_eq!(within, Duration::from_mins(10));
    assert_eq!(loaded.settings.daemon().commitment.requester[0].address, "mr:104");

    let wrong = format!(
        "{MINIMAL}{archive}calling_ae_title = \"CDAL_MR1\"\ncommitment = {{ within = \"0s\" }}\n[commitment]\nretry_max = \"1ms\"\n\
         [[commitment.requester]]\nae_title = \"MR\"\naddress = \"mr\"\n\
         [[commitment.requester]]\nae_title = \"MR\"\naddress = \"mr:104\"\n"
    );
    let mut keys: Vec<_> = findings(&wrong, &[]).into_iter().map(|finding| finding.key).collect();
    keys.sort();
    assert_eq!(
        keys,
        [
            "commitment.requester[0].address",
            "commitment.requester[1].ae_title",
            "commitment.retry_max",
            "destination[0].commitment",
            "destination[0].commitment.within",
        ]
    );
}

#[test]
fn six_faults_are_reported_as_six() {
    let text = "
[runtime]
intra_threads = \"4\"
[model]
votes = 0
[spool]
directory = \"s\"
min_free = 5
[ingest.dicom]
listen = \"here\"
completion = { idle = 500 }
[[destination]]
name = \"pacs\"
kind = \"dicom\"
ae_title = \"PACS\"
";
    let found = findings(text, &[]);
    let keys: Vec<_> = found.iter().map(|f| f.key.as_str()).collect();
    for key in [
        "runtime.intra_threads",
        "model.votes",
        "model.bundle",
        "spool.min_free",
        "ingest.dicom.listen",
        "ingest.dicom.completion.idle",
        "destination[0].address",
    ] {
        assert!(keys.contains(&key), "{key} is not in {found:#?}");
    }
    assert_eq!(keys.len(), 7, "{found:#?}");
    let message = ConfigError::Faults(found).to_string();
    assert!(message.contains("c.toml: runtime.intra_threads = \"4\": invalid type"), "{message}");
    assert!(message.contains("such as \"500ms\""), "{message}");
}

#[test]
fn a_certificate_to_show_has_its_key_and_a_destination_that_takes_it() {
    let with = |lines: &str| format!("{MINIMAL}[[destination]]\nname = \"a\"\n{lines}");
    let stow = "kind = \"stow\"\nurl = \"https://a/studies\"\n";
    let both = "certificate = \"c.pem\"\nkey = \"c.key\"\n";
    load_text(&with(&format!("{stow}{both}")), &[]).unwrap();
    let keys = |lines: &str| -> Vec<String> {
        findings(&with(lines), &[]).into_iter().map(|finding| finding.key).collect()
    };
    assert_eq!(keys(&format!("{stow}certificate = \"c.pem\"")), ["destination[0].key"]);
    assert_eq!(keys(&format!("{stow}key = \"c.key\"")), ["destination[0].certificate"]);
    let folder = "kind = \"folder\"\npath = \"out\"\nkey = \"c.key\"";
    assert_eq!(keys(folder), ["destination[0].key"]);
}

#[test]
fn text_from_the_environment_becomes_what_is_wanted_and_a_bad_one_is_named() {
    let loaded = load_text(
        MINIMAL,
        &[
            ("CDAL_INGEST__DICOM__AE_TITLE", "104"),
            ("CDAL_INGEST__DICOM__MAX_ASSOCIATIONS", "3"),
            ("CDAL_DESTINATION__0__NAME", "disk"),
            ("CDAL_DESTINATION__0__KIND", "folder"),
            ("CDAL_DESTINATION__0__PATH", "out"),
        ],
    )
    .unwrap();
    assert_eq!(loaded.settings.ingest.dicom.ae_title, "104");
    assert_eq!(loaded.settings.ingest.dicom.max_associations, 3);
    assert_eq!(loaded.settings.destination, [deliver::Config::folder("disk", "out")]);

    let found = findings(
        MINIMAL,
        &[("CDAL_INGEST__DICOM__MAX_ASSOCIATIONS", "many"), ("CDAL_SPOOL_DIRECTORY", "/tmp")],
    );
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[0].problem.contains("CDAL_SPOOL__DIRECTORY"));
    assert_eq!(
        found[1].origin,
        Origin::Variable("CDAL_INGEST__DICOM__MAX_ASSOCIATIONS".to_owned())
    );
}

#[test]
fn an_empty_file_names_every_missing_section_and_a_broken_one_its_line() {
    let keys: Vec<_> = findings("", &[]).into_iter().map(|finding| finding.key).collect();
    for key in ["model", "spool", "ingest"] {
        assert!(keys.iter().any(|found| found.starts_with(key)), "{key}: {keys:?}");
    }
    let error = load_text("[model\n", &[]).unwrap_err().to_string();
    assert!(error.contains("c.toml") && error.contains('1'), "{error}");
    let missing = load_with(&[Path::new("/no/such.toml")], []).unwrap_err().to_string();
    assert!(missing.contains("/no/such.toml"), "{missing}");
}

#[test]
fn an_unknown_kind_and_a_twice_used_name_are_faults_of_their_own() {
    let text = format!(
        "{MINIMAL}
[[destination]]
name = \"a\"
kind = \"fax\"
address = \"x\"
[[destination]]
name = \"b\"
kind = \"folder\"
path = \"out\"
[[destination]]
name = \"b\"
kind = \"folder\"
path = \"out\"
baud = 3
"
    );
    let found = findings(&text, &[]);
    let keys: Vec<_> = found.iter().map(|f| f.key.as_str()).collect();
    assert_eq!(
        keys,
        ["destination[0].kind", "destination[2].baud", "destination[2].name"],
        "{found:#?}"
    );
}

#[test]
fn networks_limits_and_extras_are_read_and_checked() {
    let text = format!(
        "{MINIMAL}allow_addresses = [\"10.0.0.0/24\"]
[results]
also = [\"fractional\", \"overlay\"]
"
    );
    let settings = load_text(&text, &[]).unwrap().settings;
    assert_eq!(settings.results.also.len(), 2);
    assert_eq!(settings.ingest.dicom.allow_addresses[0].to_string(), "10.0.0.0/24");

    let text = "
[model]
bundle = \"b\"
[spool]
directory = \"s\"
max_bytes = 10
resume_bytes = 11
min_free_bytes = 5
resume_free_bytes = 4
[ingest.dicom]
allow_addresses = [\"scanner\"]
[results]
also = [\"overlay\", \"overlay\"]
";
    let found = findings(text, &[]);
    let keys: Vec<_> = found.iter().map(|f| f.key.as_str()).collect();
    for key in [
        "ingest.dicom.allow_addresses[0]",
        "spool.resume_bytes",
        "spool.resume_free_bytes",
        "results.also[1]",
    ] {
        assert!(keys.contains(&key), "{key} is not in {found:#?}");
    }
    assert_eq!(keys.len(), 4, "{found:#?}");
}

#[test]
fn what_devices_share_is_read_and_checked() {
    let shared = "[shared]\nurl = \"postgres://cdal@db.example/cdal?sslmode=verify-full\"\ndevice = \"mr-1\"\n";
    let settings = load_text(&format!("{MINIMAL}{shared}"), &[]).unwrap().settings;
    let shared_settings = settings.daemon().shared.unwrap();
    assert_eq!(shared_settings.durability, crate::spool::shared::Durability::Local);
    let text = format!(
        "{MINIMAL}{}[[destination]]
name = \"pacs\"
kind = \"dicom\"
address = \"10.0.0.9:104\"
ae_title = \"PACS\"
calling_ae_title = \"CDAL\"
commitment = {{ within = \"1h\" }}
",
        shared
            .replace("cdal@db", "cdal:secret@db")
            .replace("mr-1\"", "mr-1\"\nheartbeat = \"20s\"")
    );
    let found = findings(&text, &[]);
    let keys: Vec<_> = found.iter().map(|f| f.key.as_str()).collect();
    assert_eq!(keys, ["shared.url", "shared.heartbeat", "destination[0].commitment"]);
}
