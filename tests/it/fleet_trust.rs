//! A TUF client against a repository that does everything a repository may do, and what it must not. The repository is
//! made here, field by field: what is signed is not what this program would sign.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::rc::Rc;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PSS_SHA256,
    RsaKeyPair,
};
use cdal::durable::hex;
use cdal::fleet::trust::{Client, Source, TrustError};
use serde_json::{Value, json};
use sha2::{Digest, Sha256, Sha512};
use tough::schema::decoded::{Decoded, EcdsaPem, RsaPem};

use crate::crash;
use crate::fleet_repository::server;

const FRESH: &str = "2099-01-01T00:00:00Z";
const EXPIRED: &str = "2020-01-01T00:00:00Z";
const ROLES: [&str; 4] = ["root", "timestamp", "snapshot", "targets"];

/// Canonical JSON, as the OLPC wrote it down.
fn canonical(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let sorted: BTreeMap<_, _> = map.iter().collect();
            let members = sorted
                .into_iter()
                .map(|(key, value)| format!("{}:{}", canonical(&json!(key)), canonical(value)));
            format!("{{{}}}", members.collect::<Vec<_>>().join(","))
        }
        Value::Array(list) => {
            format!("[{}]", list.iter().map(canonical).collect::<Vec<_>>().join(","))
        }
        Value::String(text) => {
            format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
        }
        plain => plain.to_string(),
    }
}

fn id_of(key: &Value) -> String {
    hex(&Sha256::digest(canonical(key)))
}

enum Pair {
    Ed25519(Ed25519KeyPair),
    Ecdsa(EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

struct Key {
    pair: Pair,
    public: Value,
    id: String,
}

impl Key {
    fn of(pair: Pair, kind: [&str; 2], public: Value) -> Rc<Self> {
        let [keytype, scheme] = kind;
        let public =
            json!({ "keytype": keytype, "scheme": scheme, "keyval": { "public": public } });
        let id = id_of(&public);
        Rc::new(Self { pair, public, id })
    }

    fn new() -> Rc<Self> {
        let pair = Ed25519KeyPair::generate().unwrap();
        let public = json!(hex(pair.public_key().as_ref()));
        Self::of(Pair::Ed25519(pair), ["ed25519", "ed25519"], public)
    }

    fn ecdsa() -> Rc<Self> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
        let public = Decoded::<EcdsaPem>::from(pair.public_key().as_ref().to_vec());
        Self::of(Pair::Ecdsa(pair), ["ecdsa", "ecdsa-sha2-nistp256"], json!(public))
    }

    fn rsa() -> Rc<Self> {
        let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        let public = Decoded::<RsaPem>::from(pair.public_key().as_ref().to_vec());
        Self::of(Pair::Rsa(pair), ["rsa", "rsassa-pss-sha256"], json!(public))
    }

    /// Another id of the same key: fields that nobody knows belong to a key, to some.
    fn twin(&self) -> (String, Value) {
        let mut public = self.public.clone();
        public["x-note"] = json!("the same");
        (id_of(&public), public)
    }

    fn sign(&self, signed: &Value) -> Value {
        self.sign_as(&self.id, signed)
    }

    fn sign_as(&self, id: &str, signed: &Value) -> Value {
        let text = canonical(signed);
        let (text, random) = (text.as_bytes(), SystemRandom::new());
        let sig = match &self.pair {
            Pair::Ed25519(pair) => pair.sign(text).as_ref().to_vec(),
            Pair::Ecdsa(pair) => pair.sign(&random, text).unwrap().as_ref().to_vec(),
            Pair::Rsa(pair) => {
                let mut sig = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PSS_SHA256, &random, text, &mut sig).unwrap();
                sig
            }
        };
        json!({ "keyid": id, "sig": hex(&sig) })
    }
}

/// A repository and one client. What is changed in `signed` is seen once it is published.
struct Site {
    home: tempfile::TempDir,
    signed: BTreeMap<&'static str, Value>,
    signers: BTreeMap<&'static str, Vec<Rc<Key>>>,
    /// Whether lengths and hashes of metadata are stated.
    hashes: bool,
}

impl Site {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        for folder in ["metadata", "targets", "client", "downloads"] {
            fs::create_dir(home.path().join(folder)).unwrap();
        }
        let mut signed = BTreeMap::new();
        for role in ROLES {
            let common = json!({
                "_type": role, "spec_version": "1.0.31", "version": 1, "expires": FRESH
            });
            signed.insert(role, common);
        }
        signed.get_mut("targets").unwrap()["targets"] = json!({});
        let root = signed.get_mut("root").unwrap();
        root["consistent_snapshot"] = json!(true);
        (root["keys"], root["roles"]) = (json!({}), json!({}));
        let mut site = Self { home, signed, signers: BTreeMap::new(), hashes: false };
        for role in ROLES {
            site.set_keys(role, &[Key::new()], 1);
        }
        for role in ["targets", "snapshot", "timestamp", "root"] {
            site.publish(role);
        }
        Client::init(&site.path("client"), &site.path("metadata/1.root.json")).unwrap();
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn of(&mut self, role: &str) -> &mut Value {
        self.signed.get_mut(role).unwrap()
    }

    fn add_key(&mut self, role: &'static str, id: &str, public: &Value) {
        let root = self.of("root");
        root["keys"][id] = public.clone();
        root["roles"][role]["keyids"].as_array_mut().unwrap().push(json!(id));
    }

    /// Only these keys count for a role from the next root on, and sign for it at once.
    fn set_keys(&mut self, role: &'static str, keys: &[Rc<Key>], threshold: u64) {
        self.of("root")["roles"][role] = json!({ "keyids": [], "threshold": threshold });
        for key in keys {
            self.add_key(role, &key.id, &key.public);
        }
        self.signers.insert(role, keys.to_vec());
    }

    fn set_version(&mut self, role: &str, version: u64) {
        self.of(role)["version"] = json!(version);
    }

    fn version(&self, role: &str) -> u64 {
        self.signed[role]["version"].as_u64().unwrap()
    }

    /// Signs what is there, and notes it in the file that names it.
    fn publish(&mut self, role: &'static str) -> Vec<u8> {
        let signatures = self.signers[role].iter().map(|key| key.sign(&self.signed[role]));
        let signatures = signatures.collect();
        self.put(role, signatures)
    }

    fn put(&mut self, role: &'static str, signatures: Vec<Value>) -> Vec<u8> {
        let file = json!({ "signed": self.signed[role], "signatures": signatures });
        let bytes = serde_json::to_vec_pretty(&file).unwrap();
        let version = self.version(role);
        let folder = self.path("metadata");
        if role != "timestamp" {
            fs::write(folder.join(format!("{version}.{role}.json")), &bytes).unwrap();
        }
        if role != "root" {
            fs::write(folder.join(format!("{role}.json")), &bytes).unwrap();
        }
        let namer = match role {
            "targets" => "snapshot",
            "snapshot" => "timestamp",
            _ => return bytes,
        };
        let mut meta = json!({ "version": version });
        if self.hashes {
            meta["length"] = json!(bytes.len());
            meta["hashes"] = json!({ "sha256": hex(&Sha256::digest(&bytes)) });
        }
        self.of(namer)["meta"][format!("{role}.json")] = meta;
        bytes
    }

    /// The next version of each, in this order.
    fn raise(&mut self, roles: &[&'static str]) {
        for role in roles {
            let next = self.version(role) + 1;
            self.set_version(role, next);
            self.publish(role);
        }
    }

    fn client(&self) -> Client {
        self.client_at(&self.path("metadata").display().to_string())
    }

    fn client_at(&self, metadata: &str) -> Client {
        Client::open(&self.path("client"), Source::parse(metadata, None).unwrap()).unwrap()
    }

    fn refresh(&self) -> Result<(), TrustError> {
        self.client().refresh()
    }

    fn refused(&self, words: &str) -> TrustError {
        let error = self.refresh().expect_err(words);
        assert!(error.to_string().contains(words), "{words}: {error}");
        error
    }

    fn download(&self, name: &str) -> Result<PathBuf, TrustError> {
        let targets = Source::parse(&self.path("targets").display().to_string(), None).unwrap();
        self.client().download(name, &targets, &self.path("downloads"))
    }

    fn list(&mut self, name: &str, bytes: &[u8], hashes: Value) {
        let target = json!({ "length": bytes.len(), "hashes": hashes });
        self.of("targets")["targets"][name] = target;
    }

    /// The versions that the client trusts, of root, timestamp, snapshot and targets; 0 for none.
    fn trusted(&self) -> [u64; 4] {
        ROLES.map(|role| {
            let bytes = fs::read(self.path("client").join(format!("{role}.json")));
            let file = bytes.ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
            file.map_or(0, |file| file["signed"]["version"].as_u64().unwrap())
        })
    }

    /// What the client keeps is byte for byte what the repository holds.
    fn is_kept(&self, role: &str, bytes: &[u8]) -> bool {
        fs::read(self.path("client").join(format!("{role}.json"))).unwrap() == bytes
    }

    fn cdal(&self, action: &[&str], failpoint: Option<&str>) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cdal"));
        command.args(["fleet", "tuf", "--metadata-dir"]).arg(self.path("client"));
        command.arg("--metadata-url").arg(self.path("metadata")).args(action);
        command.env_remove("CDAL_FAILPOINT");
        if let Some(failpoint) = failpoint {
            command.env("CDAL_FAILPOINT", failpoint);
        }
        command.output().unwrap()
    }
}

// Roots.

#[test]
fn a_verified_root_is_kept_when_the_timestamp_after_it_cannot_be_verified() {
    let mut site = Site::new();
    site.refresh().unwrap();
    let stolen = site.signers["timestamp"].clone();
    site.set_keys("timestamp", &[Key::new()], 1);
    site.raise(&["root"]);
    site.refused("timestamp.json has 0 of the 1 signatures");
    assert_eq!(site.trusted()[0], 2, "the new root is in force all the same");
    // Who found the revoked key holds the new root back and signs what was there before.
    fs::remove_file(site.path("metadata/2.root.json")).unwrap();
    site.signers.insert("timestamp", stolen);
    site.raise(&["timestamp"]);
    site.refused("timestamp.json has 0 of the 1 signatures");
    assert_eq!(site.trusted()[0], 2);
}

#[test]
fn a_power_cut_between_a_root_and_its_floors_lets_no_old_key_back() {
    for step in crash::steps_of(crash::TRUST) {
        let mut site = Site::new();
        site.raise(&["timestamp"; 9]);
        site.refresh().unwrap();
        let stolen = site.signers["timestamp"].clone();
        site.set_keys("timestamp", &[Key::new()], 1);
        site.raise(&["root"]);
        let died = site.cdal(&["refresh"], Some(&format!("{step}=abort")));
        assert_eq!(died.status.signal(), Some(6), "{step} is never reached");
        assert_eq!(site.trusted()[0], 2);
        let floors = fs::read_to_string(site.path("client/floors")).unwrap();
        assert!(floors.contains("\"root\":1,\"timestamp\":10,"), "the floors are behind: {floors}");

        let honest = std::mem::replace(site.signers.get_mut("timestamp").unwrap(), stolen);
        fs::rename(site.path("metadata/2.root.json"), site.path("hidden")).unwrap();
        site.raise(&["timestamp"]);
        site.refused("timestamp.json has 0 of the 1 signatures");
        // The honest timestamp begins anew, below what the stolen key had signed.
        fs::rename(site.path("hidden"), site.path("metadata/2.root.json")).unwrap();
        site.signers.insert("timestamp", honest);
        site.set_version("timestamp", 1);
        site.publish("timestamp");
        site.refresh().unwrap();
        assert_eq!(site.trusted(), [2, 1, 1, 1]);
    }
}

#[test]
fn a_denied_next_root_is_none() {
    let mut site = Site::new();
    site.raise(&["root"]);
    let forbidden = |path: &str| {
        let answer = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n".to_vec();
        (path == "metadata/3.root.json").then_some(answer)
    };
    let place = server(site.home.path().to_owned(), forbidden);
    site.client_at(&format!("{place}/metadata")).refresh().unwrap();
    assert_eq!(site.trusted(), [2, 1, 1, 1]);
}

#[test]
fn a_denied_timestamp_is_an_error() {
    let site = Site::new();
    let forbidden = |path: &str| {
        let answer = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n".to_vec();
        (path == "metadata/timestamp.json").then_some(answer)
    };
    let place = server(site.home.path().to_owned(), forbidden);
    let error = site.client_at(&format!("{place}/metadata")).refresh().unwrap_err();
    assert!(matches!(error, TrustError::Unreachable(_)), "{error:?}");
    assert!(error.to_string().contains("403"), "{error}");
}

#[test]
fn a_root_that_is_two_versions_on_is_a_wrong_version() {
    let mut site = Site::new();
    site.set_version("root", 3);
    site.publish("root");
    fs::rename(site.path("metadata/3.root.json"), site.path("metadata/2.root.json")).unwrap();
    let error = site.refused("2.root.json holds version 3 of root.json");
    assert!(matches!(error, TrustError::Forged(_)), "{error:?}");
    assert_eq!(site.trusted()[0], 1);
}

#[test]
fn a_root_in_the_place_of_the_next_one_is_a_wrong_version() {
    let site = Site::new();
    fs::copy(site.path("metadata/1.root.json"), site.path("metadata/2.root.json")).unwrap();
    site.refused("2.root.json holds version 1 of root.json");
}

#[test]
fn a_root_is_signed_by_the_keys_before_it_and_by_its_own() {
    for (by_old, by_new) in [(true, true), (true, false), (false, true)] {
        let mut site = Site::new();
        let (old, new) = (site.signers["root"][0].clone(), Key::new());
        site.set_keys("root", std::slice::from_ref(&new), 1);
        let signers = [(by_old, old), (by_new, new)].into_iter().filter(|(signs, _)| *signs);
        site.signers.insert("root", signers.map(|(_, key)| key).collect());
        site.raise(&["root"]);
        assert_eq!(site.refresh().is_ok(), by_old && by_new, "{by_old} {by_new}");
        assert_eq!(site.trusted()[0], if by_old && by_new { 2 } else { 1 });
    }
}

#[test]
fn a_root_is_signed_by_the_threshold_before_it_and_by_its_own() {
    let [a, b, c] = [Key::new(), Key::new(), Key::new()];
    let mut site = Site::new();
    let first = site.signers["root"][0].clone();
    site.set_keys("root", &[a.clone(), b.clone(), c.clone()], 2);
    site.signers.insert("root", vec![first, a.clone()]);
    site.raise(&["root"]);
    site.refused("2.root.json: root.json has 1 of the 2 signatures");
    site.signers.get_mut("root").unwrap().push(c.clone());
    site.publish("root");
    site.refresh().unwrap();
    // To lower the threshold takes the old one.
    site.set_keys("root", &[a.clone(), b.clone(), c], 1);
    site.signers.insert("root", vec![a.clone()]);
    site.raise(&["root"]);
    site.refused("3.root.json: root.json has 1 of the 2 signatures");
    site.signers.insert("root", vec![a, b]);
    site.publish("root");
    site.refresh().unwrap();
    assert_eq!(site.trusted()[0], 3);
}

#[test]
fn intermediate_roots_may_have_expired() {
    let mut site = Site::new();
    site.of("root")["expires"] = json!(EXPIRED);
    site.raise(&["root"]);
    site.of("root")["expires"] = json!(FRESH);
    site.raise(&["root"]);
    site.refresh().unwrap();
    assert_eq!(site.trusted(), [3, 1, 1, 1]);
}

#[test]
fn an_expired_newest_root_is_kept_and_nothing_is_believed_under_it() {
    let mut site = Site::new();
    site.refresh().unwrap();
    site.of("root")["expires"] = json!(EXPIRED);
    site.raise(&["root", "timestamp"]);
    assert!(matches!(site.refused("root.json has expired"), TrustError::Expired { .. }));
    assert_eq!(site.trusted(), [2, 1, 1, 1]);
}

#[test]
fn a_root_that_is_not_signed_is_never_begun_with() {
    let mut site = Site::new();
    let mut file: Value =
        serde_json::from_slice(&fs::read(site.path("metadata/1.root.json")).unwrap()).unwrap();
    file["signatures"][0]["sig"] = json!("00".repeat(64));
    fs::write(site.path("forged.json"), file.to_string()).unwrap();
    let error = Client::init(&site.path("client"), &site.path("forged.json")).unwrap_err();
    assert!(error.to_string().contains("has 0 of the 1 signatures"), "{error}");
    site.set_version("root", 0);
    site.publish("root");
    assert!(Client::init(&site.path("client"), &site.path("metadata/0.root.json")).is_err());
}

// Each further file.

#[test]
fn what_was_verified_before_a_failure_stays() {
    for (at, role) in [(1, "timestamp"), (2, "snapshot"), (3, "targets")] {
        let mut site = Site::new();
        site.refresh().unwrap();
        site.signers.insert(role, vec![Key::new()]);
        site.raise(&["root", "targets", "snapshot", "timestamp"]);
        site.refused(&format!("{role}.json has 0 of the 1 signatures"));
        let mut expected = [2; 4];
        expected[at..].fill(1);
        assert_eq!(site.trusted(), expected, "{role}");
    }
}

#[test]
fn a_timestamp_of_the_same_version_with_other_content_changes_nothing() {
    let mut site = Site::new();
    let first = site.publish("timestamp");
    site.refresh().unwrap();
    site.set_version("snapshot", 100);
    site.publish("snapshot");
    site.publish("timestamp");
    site.refresh().unwrap();
    assert!(site.is_kept("timestamp", &first));
    assert_eq!(site.trusted(), [1; 4]);
}

#[test]
fn an_older_timestamp_is_a_rollback() {
    let mut site = Site::new();
    site.raise(&["timestamp"]);
    site.refresh().unwrap();
    site.set_version("timestamp", 1);
    site.publish("timestamp");
    let error = site.refused("timestamp.json is version 1, older than 2");
    assert!(matches!(error, TrustError::Rollback { .. }), "{error:?}");
    assert_eq!(site.trusted()[1], 2);
}

#[test]
fn a_timestamp_that_names_an_older_snapshot_is_a_rollback() {
    for hashes in [false, true] {
        let mut site = Site::new();
        site.hashes = hashes;
        site.raise(&["snapshot", "timestamp"]);
        site.refresh().unwrap();
        site.set_version("snapshot", 1);
        site.publish("snapshot");
        site.raise(&["timestamp"]);
        site.refused("snapshot.json is version 1, older than 2");
        assert_eq!(site.trusted(), [1, 2, 2, 1]);
    }
}

#[test]
fn a_snapshot_that_names_older_targets_is_refused() {
    for hashes in [false, true] {
        let mut site = Site::new();
        site.hashes = hashes;
        site.raise(&["targets", "targets", "snapshot", "timestamp"]);
        site.refresh().unwrap();
        site.set_version("targets", 1);
        site.publish("targets");
        site.raise(&["snapshot", "timestamp"]);
        site.refused("version 3 of targets.json by version 1");
        assert_eq!(site.trusted(), [1, 3, 2, 3]);
    }
}

#[test]
fn a_snapshot_that_drops_a_file_is_refused() {
    let mut site = Site::new();
    site.of("snapshot")["meta"]["other.json"] = json!({ "version": 4 });
    site.raise(&["snapshot", "timestamp"]);
    site.refresh().unwrap();
    site.of("snapshot")["meta"].as_object_mut().unwrap().remove("other.json");
    site.raise(&["snapshot", "timestamp"]);
    site.refused("version 4 of other.json by nothing");
    assert_eq!(site.trusted()[2], 2);
}

#[test]
fn a_snapshot_of_another_version_than_named_is_refused() {
    let mut site = Site::new();
    site.set_version("snapshot", 2);
    site.publish("snapshot");
    fs::rename(site.path("metadata/2.snapshot.json"), site.path("metadata/1.snapshot.json"))
        .unwrap();
    site.refused("1.snapshot.json is version 2; version 1 is named");
    assert_eq!(site.trusted(), [1, 1, 0, 0]);
}

#[test]
fn targets_of_another_version_than_named_are_refused() {
    let mut site = Site::new();
    site.set_version("targets", 2);
    site.publish("targets");
    fs::rename(site.path("metadata/2.targets.json"), site.path("metadata/1.targets.json")).unwrap();
    site.refused("1.targets.json is version 2; version 1 is named");
    assert_eq!(site.trusted(), [1, 1, 1, 0]);
}

#[test]
fn what_has_expired_is_refused_and_what_was_verified_before_it_stays() {
    for (at, role) in [(1, "timestamp"), (2, "snapshot"), (3, "targets")] {
        let mut site = Site::new();
        site.refresh().unwrap();
        site.of(role)["expires"] = json!(EXPIRED);
        site.raise(&["targets", "snapshot", "timestamp"]);
        let error = site.refused(&format!("{role}.json has expired"));
        assert!(matches!(error, TrustError::Expired { .. }), "{error:?}");
        let mut expected = [1, 2, 2, 2];
        expected[at..].fill(1);
        assert_eq!(site.trusted(), expected, "{role}");
    }
}

#[test]
fn what_was_kept_may_have_expired_when_something_newer_comes() {
    let mut site = Site::new();
    site.refresh().unwrap();
    // As the client would have it a long time later.
    for role in ["targets", "snapshot", "timestamp"] {
        site.of(role)["expires"] = json!(EXPIRED);
        let bytes = site.publish(role);
        fs::write(site.path("client").join(format!("{role}.json")), bytes).unwrap();
        site.of(role)["expires"] = json!(FRESH);
    }
    site.refused("timestamp.json has expired");
    site.raise(&["targets", "snapshot", "timestamp"]);
    site.refresh().unwrap();
    assert_eq!(site.trusted(), [1, 2, 2, 2]);
}

#[test]
fn after_other_timestamp_keys_its_versions_begin_anew() {
    let mut site = Site::new();
    site.raise(&["timestamp"; 98]);
    site.refresh().unwrap();
    site.set_keys("timestamp", &[Key::new()], 1);
    site.raise(&["root"]);
    site.set_version("timestamp", 1);
    site.publish("timestamp");
    site.refresh().unwrap();
    assert_eq!(site.trusted(), [2, 1, 1, 1]);
}

#[test]
fn after_other_snapshot_keys_the_versions_of_snapshot_and_targets_begin_anew() {
    let mut site = Site::new();
    site.set_version("snapshot", 9999);
    site.set_version("targets", 9998);
    site.raise(&["targets", "snapshot", "timestamp"]);
    site.refresh().unwrap();
    site.set_keys("snapshot", &[Key::new()], 1);
    site.set_keys("timestamp", &[Key::new()], 1);
    site.raise(&["root"]);
    site.set_version("snapshot", 1);
    site.set_version("targets", 1);
    for role in ["targets", "snapshot"] {
        site.publish(role);
    }
    site.raise(&["timestamp"]);
    site.refresh().unwrap();
    assert_eq!(site.trusted()[2..], [1, 1]);
}

#[test]
fn a_new_root_with_the_same_keys_lets_nothing_begin_anew() {
    let mut site = Site::new();
    site.raise(&["timestamp"]);
    site.refresh().unwrap();
    // Even if the metadata was lost, the floors hold.
    fs::remove_file(site.path("client/timestamp.json")).unwrap();
    site.set_version("timestamp", 1);
    site.publish("timestamp");
    site.raise(&["root"]);
    site.refused("timestamp.json is version 1, older than 2");
}

// Signatures and keys.

#[test]
fn two_signatures_by_one_id_are_refused() {
    let mut site = Site::new();
    site.set_version("snapshot", 2);
    let signature = site.signers["snapshot"][0].sign(&site.signed["snapshot"]);
    site.put("snapshot", vec![signature.clone(), signature]);
    site.raise(&["timestamp"]);
    site.refused("snapshot.json has two signatures by the key");
}

#[test]
fn one_key_under_two_ids_counts_once() {
    let mut site = Site::new();
    let key = site.signers["snapshot"][0].clone();
    let (twin, public) = key.twin();
    site.add_key("snapshot", &twin, &public);
    site.of("root")["roles"]["snapshot"]["threshold"] = json!(2);
    site.raise(&["root"]);
    site.set_version("snapshot", 2);
    let signed = site.signed["snapshot"].clone();
    site.put("snapshot", vec![key.sign(&signed), key.sign_as(&twin, &signed)]);
    site.raise(&["timestamp"]);
    site.refused("snapshot.json has 1 of the 2 signatures");
}

#[test]
fn an_id_listed_several_times_for_a_role_counts_once() {
    let mut site = Site::new();
    let key = site.signers["snapshot"][0].clone();
    site.add_key("snapshot", &key.id, &key.public);
    site.of("root")["roles"]["snapshot"]["threshold"] = json!(2);
    site.raise(&["root", "snapshot", "timestamp"]);
    site.refused("snapshot.json has 1 of the 2 signatures");
}

#[test]
fn signatures_by_unknown_keys_and_by_keys_of_other_roles_do_not_count() {
    let mut site = Site::new();
    let others = vec![Key::new(), site.signers["root"][0].clone()];
    site.signers.get_mut("snapshot").unwrap().extend(others);
    site.of("root")["roles"]["snapshot"]["threshold"] = json!(2);
    site.of("root")["roles"]["snapshot"]["keyids"].as_array_mut().unwrap().push(json!("ab"));
    site.raise(&["root", "snapshot", "timestamp"]);
    site.refused("snapshot.json has 1 of the 2 signatures");
}

#[test]
fn a_threshold_above_the_number_of_keys_is_never_met() {
    let mut site = Site::new();
    site.refresh().unwrap();
    site.of("root")["roles"]["snapshot"]["threshold"] = json!(6);
    site.raise(&["root", "snapshot", "timestamp"]);
    site.refused("snapshot.json has 1 of the 6 signatures");
    assert_eq!(site.trusted(), [2, 2, 1, 1]);
}

#[test]
fn a_wrong_signature_does_no_harm_beside_enough_right_ones() {
    for wrong in ["00", "", "no hexadecimal"] {
        let mut site = Site::new();
        let other = Key::new();
        site.add_key("timestamp", &other.id, &other.public);
        site.raise(&["root"]);
        site.set_version("timestamp", 2);
        let right = site.signers["timestamp"][0].sign(&site.signed["timestamp"]);
        site.put("timestamp", vec![json!({ "keyid": other.id, "sig": wrong }), right]);
        site.refresh().unwrap();
        assert_eq!(site.trusted()[1], 2, "{wrong:?}");
    }
}

#[test]
fn a_key_with_another_id_than_its_content_makes_its_root_none() {
    let mut site = Site::new();
    let (key, other) = (Key::new(), Key::new());
    site.add_key("snapshot", &key.id, &other.public);
    site.raise(&["root"]);
    site.refused("has another id than its content");
    assert_eq!(site.trusted()[0], 1);
}

#[test]
fn fields_that_nobody_knows_are_signed_and_kept() {
    let mut site = Site::new();
    let id = site.signers["root"][0].id.clone();
    let root = site.of("root");
    root["custom"] = json!({ "b": [1, "ü\"\\"], "a": null });
    root["keys"][id.as_str()]["extra"] = json!({ "a": 1 });
    root["keys"][id.as_str()]["keyid_hash_algorithms"] = json!(["md5"]);
    root["roles"]["root"]["another"] = json!("value");
    site.set_version("root", 2);
    let bytes = site.publish("root");
    site.of("targets")["custom"] = json!("value");
    site.raise(&["targets", "snapshot", "timestamp"]);
    site.refresh().unwrap();
    assert_eq!(site.trusted(), [2; 4]);
    assert!(site.is_kept("root", &bytes));
    // None of them may be changed afterwards.
    site.of("root")["custom"] = json!("other");
    let signatures = vec![site.signers["root"][0].sign(&site.signed["root"])];
    site.of("root")["custom"] = json!("changed");
    site.set_version("root", 3);
    site.put("root", signatures);
    site.refused("3.root.json: root.json has 0 of the 1 signatures");
}

#[test]
fn every_kind_of_key_of_the_specification_counts() {
    for key in [Key::new(), Key::ecdsa(), Key::rsa()] {
        let mut site = Site::new();
        let first = site.signers["root"][0].clone();
        site.set_keys("root", &[first, key.clone()], 2);
        site.raise(&["root"]);
        site.refresh().unwrap();
        let kind = key.public["scheme"].clone();
        assert_eq!(site.trusted()[0], 2, "{kind}");
        // A signature of that kind, but of something else.
        site.set_version("root", 3);
        let signed = site.signed["root"].clone();
        let right = site.signers["root"][0].sign(&signed);
        site.put("root", vec![right, key.sign(&json!("something else"))]);
        site.refused("root.json has 1 of the 2 signatures");
        assert_eq!(site.trusted()[0], 2, "{kind}");
    }
}

#[test]
fn a_kind_of_key_that_is_not_known_does_not_count_and_does_no_harm() {
    let mut site = Site::new();
    let public = json!({ "keytype": "moon", "scheme": "moon", "keyval": { "public": "x" } });
    site.add_key("timestamp", &id_of(&public), &public);
    site.raise(&["root", "timestamp"]);
    site.refresh().unwrap();
    assert_eq!(site.trusted()[..2], [2, 2]);
}

#[test]
fn metadata_of_another_role_or_of_another_major_version_is_refused() {
    let mut site = Site::new();
    site.of("timestamp")["_type"] = json!("snapshot");
    site.raise(&["timestamp"]);
    site.refused("metadata of the role \"snapshot\"");
    site.of("timestamp")["_type"] = json!("timestamp");
    site.of("timestamp")["spec_version"] = json!("2.0.0");
    site.raise(&["timestamp"]);
    site.refused("timestamp.json is of TUF \"2.0.0\"");
}

// Hashes and lengths.

#[test]
fn stated_lengths_and_hashes_of_metadata_have_to_be_right() {
    let wrong = [
        ("hashes", json!({ "sha256": "0".repeat(64) }), "has another sha256 than stated"),
        ("hashes", json!({ "moon": "0" }), "has neither a sha256 nor a sha512 stated"),
        ("length", json!(100_000), "instead of 100000"),
        ("length", json!(10), "has more than 10 bytes"),
    ];
    for (field, value, words) in wrong {
        let mut site = Site::new();
        site.hashes = true;
        site.raise(&["targets", "snapshot", "timestamp"]);
        site.refresh().unwrap();
        site.raise(&["targets"]);
        site.of("snapshot")["meta"]["targets.json"][field] = value.clone();
        site.raise(&["snapshot", "timestamp"]);
        site.refused(words);
        assert_eq!(site.trusted(), [1, 3, 3, 2], "{words}");
        site.of("timestamp")["meta"]["snapshot.json"][field] = value;
        site.raise(&["timestamp"]);
        site.refused(words);
    }
}

#[test]
fn a_repository_without_consistent_snapshots_is_read() {
    let mut site = Site::new();
    site.of("root")["consistent_snapshot"] = json!(false);
    site.raise(&["root", "targets", "snapshot", "timestamp"]);
    for name in ["2.targets.json", "2.snapshot.json"] {
        fs::remove_file(site.path("metadata").join(name)).unwrap();
    }
    site.list("a.txt", b"a", json!({ "sha256": hex(&Sha256::digest(b"a")) }));
    fs::write(site.path("targets/a.txt"), "a").unwrap();
    site.raise(&["targets", "snapshot", "timestamp"]);
    assert_eq!(fs::read(site.download("a.txt").unwrap()).unwrap(), b"a");
}

#[test]
fn a_target_is_held_against_every_hash_that_is_known() {
    let [sha256, sha512] = [hex(&Sha256::digest(b"a")), hex(&Sha512::digest(b"a"))];
    let cases = [
        (json!({ "sha256": sha256 }), true),
        (json!({ "sha512": sha512 }), true),
        (json!({ "sha256": sha256, "sha512": sha512 }), true),
        (json!({ "sha256": sha256, "sha512": "0".repeat(128) }), false),
        (json!({ "moon": sha256 }), false),
    ];
    for (hashes, is_right) in cases {
        let mut site = Site::new();
        site.list("a.txt", b"a", hashes.clone());
        site.raise(&["targets", "snapshot", "timestamp"]);
        for hash in [&sha256, &sha512] {
            fs::write(site.path("targets").join(format!("{hash}.a.txt")), "a").unwrap();
        }
        assert_eq!(site.download("a.txt").is_ok(), is_right, "{hashes}");
        assert_eq!(fs::read_dir(site.path("downloads")).unwrap().count(), usize::from(is_right));
    }
}

#[test]
fn a_target_that_was_exchanged_is_neither_kept_nor_put_over_the_right_one() {
    let mut site = Site::new();
    let sha256 = hex(&Sha256::digest(b"right"));
    site.list("a/b/c.txt", b"right", json!({ "sha256": sha256 }));
    site.raise(&["targets", "snapshot", "timestamp"]);
    fs::create_dir_all(site.path("targets/a/b")).unwrap();
    let there = site.path("targets/a/b").join(format!("{sha256}.c.txt"));
    fs::write(&there, "wrong").unwrap();
    let error = site.download("a/b/c.txt").unwrap_err();
    assert!(error.to_string().contains("a/b/c.txt: has another sha256"), "{error}");
    assert_eq!(fs::read_dir(site.path("downloads")).unwrap().count(), 0);
    fs::write(&there, "right").unwrap();
    let file = site.download("a/b/c.txt").unwrap();
    assert_eq!(fs::read(&file).unwrap(), b"right");
    // What is there already is not fetched again.
    fs::remove_file(&there).unwrap();
    assert_eq!(site.download("a/b/c.txt").unwrap(), file);
}

#[test]
fn by_the_command_line_a_target_that_is_not_listed_fails_after_the_metadata_was_brought_up_to_date()
{
    let mut site = Site::new();
    site.raise(&["root", "targets", "snapshot", "timestamp"]);
    let (targets, downloads) = (site.path("targets"), site.path("downloads"));
    let options = [
        "--target-base-url",
        targets.to_str().unwrap(),
        "--target-dir",
        downloads.to_str().unwrap(),
        "--target-name",
        "not there",
        "download",
    ];
    let output = site.cdal(&options, None);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("not there: is not listed in targets.json"), "{said}");
    assert_eq!(site.trusted(), [2; 4]);
    assert_eq!(site.cdal(&["refresh"], None).status.code(), Some(0));
    let root = site.path("metadata/1.root.json");
    assert_eq!(site.cdal(&["init", root.to_str().unwrap()], None).status.code(), Some(0));
}
