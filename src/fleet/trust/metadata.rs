//! Files of TUF metadata (specification 1.0, section 4): how they are read, and which signatures count.
//!
//! Signatures cover the canonical form of what was sent, with every field that this program does not know. A file is
//! therefore kept and compared as the bytes that came, and never written anew from what was understood of it.
//!
//! Called by `refresh`.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;

use aws_lc_rs::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use olpc_cjson::CanonicalFormatter;
use serde::Deserialize;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sha2::{Digest, Sha256, Sha512};
use tough::schema::decoded::{Decoded, EcdsaFlex, Hex, RsaPem};

use crate::durable::hex;

/// A top-level role. Delegated roles are not followed: releases are listed by `targets.json` itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    Root,
    Timestamp,
    Snapshot,
    Targets,
}

impl Role {
    pub(super) const ALL: [Self; 4] = [Self::Root, Self::Timestamp, Self::Snapshot, Self::Targets];

    fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Timestamp => "timestamp",
            Self::Snapshot => "snapshot",
            Self::Targets => "targets",
        }
    }

    /// Its name on a device.
    #[must_use]
    pub fn file(self) -> &'static str {
        match self {
            Self::Root => "root.json",
            Self::Timestamp => "timestamp.json",
            Self::Snapshot => "snapshot.json",
            Self::Targets => "targets.json",
        }
    }
}

/// What the signatures of one role's file cover.
pub(super) trait Content: DeserializeOwned {
    const ROLE: Role;
}

/// A file that was read. Its signatures are another matter: [`Root::verify`].
#[derive(Debug, Clone)]
pub(super) struct File<T> {
    /// As they came.
    pub bytes: Vec<u8>,
    pub version: u64,
    pub expires: jiff::Timestamp,
    pub content: T,
    /// What is signed.
    canonical: Vec<u8>,
    signatures: Vec<Signature>,
}

#[derive(Debug, Clone, Deserialize)]
struct Signature {
    keyid: String,
    sig: String,
}

#[derive(Deserialize)]
struct Envelope {
    signed: Value,
    signatures: Vec<Signature>,
}

/// What every role's file has.
#[derive(Deserialize)]
struct Common {
    #[serde(rename = "_type")]
    role: String,
    spec_version: String,
    version: NonZeroU64,
    expires: String,
}

impl<T: Content> File<T> {
    /// # Errors
    /// In words, if this is no metadata of that role.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        let file = T::ROLE.file();
        let unreadable = |error: serde_json::Error| format!("{file} cannot be read: {error}");
        let Envelope { signed, signatures } = serde_json::from_slice(bytes).map_err(unreadable)?;
        let common = Common::deserialize(&signed).map_err(unreadable)?;
        if common.role != T::ROLE.name() {
            return Err(format!("{file} says that it is metadata of the role {:?}", common.role));
        }
        // A file of another major version may mean something else (section 4.3, SPEC_VERSION).
        if common.spec_version.split('.').next() != Some("1") {
            let version = common.spec_version;
            return Err(format!("{file} is of TUF {version:?}; this program reads TUF 1"));
        }
        let expires = common.expires.parse();
        let expires = expires.map_err(|error| format!("{file}: expires: {error}"))?;
        let canonical = canonical(&signed).map_err(unreadable)?;
        let content = serde_json::from_value(signed).map_err(unreadable)?;
        let (bytes, version) = (bytes.to_vec(), common.version.get());
        Ok(Self { bytes, version, expires, content, canonical, signatures })
    }
}

/// The form that is signed and hashed (section 4.2).
fn canonical(value: &Value) -> serde_json::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let formatter = CanonicalFormatter::new();
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, formatter))?;
    Ok(bytes)
}

/// Whose signatures count, for each role.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "RootAsSent")]
pub(super) struct Root {
    pub consistent_snapshot: bool,
    /// By id. A key of a kind that this program does not know has no place here, and so never counts.
    keys: BTreeMap<String, Key>,
    roles: BTreeMap<String, RoleKeys>,
}

impl Content for Root {
    const ROLE: Role = Role::Root;
}

#[derive(Deserialize)]
struct RootAsSent {
    #[serde(default)]
    consistent_snapshot: bool,
    keys: BTreeMap<String, Value>,
    roles: BTreeMap<String, RoleKeys>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct RoleKeys {
    keyids: BTreeSet<String>,
    threshold: NonZeroU64,
}

impl TryFrom<RootAsSent> for Root {
    type Error = String;

    fn try_from(sent: RootAsSent) -> Result<Self, String> {
        let RootAsSent { consistent_snapshot, keys, roles } = sent;
        if let Some(role) = Role::ALL.iter().find(|role| !roles.contains_key(role.name())) {
            return Err(format!("no keys for the role {}", role.name()));
        }
        for (id, key) in &keys {
            check_id(id, key)?;
        }
        let known = |(id, key): (String, Value)| Some((id, Key::read(&key)?));
        let keys = keys.into_iter().filter_map(known).collect();
        Ok(Self { consistent_snapshot, keys, roles })
    }
}

/// An id is a hash of its key (section 4.2). Publishers differ in whether fields that the specification does not know
/// belong to the key: `tough` hashes them, `securesystemslib` does not.
fn check_id(id: &str, key: &Value) -> Result<(), String> {
    let defined = ["keytype", "scheme", "keyval"];
    let defined = defined.iter().filter_map(|name| Some(((*name).to_owned(), key.get(name)?)));
    let defined = serde_json::json!(defined.collect::<BTreeMap<_, _>>());
    for form in [key, &defined] {
        let bytes = canonical(form).map_err(|error| error.to_string())?;
        if hex(&Sha256::digest(bytes)) == id {
            return Ok(());
        }
    }
    Err(format!("the key {id} has another id than its content"))
}

impl Root {
    /// Counts the signatures of `file` by different keys of its role. Two ids of one key count once, and a signature
    /// that is wrong does no harm beside enough right ones.
    ///
    /// # Errors
    /// In words, if they are too few, or an id occurs twice (section 4.2: it must be unique).
    pub fn verify<T: Content>(&self, file: &File<T>) -> Result<(), String> {
        let name = T::ROLE.file();
        let RoleKeys { keyids, threshold } = &self.roles[T::ROLE.name()];
        let (mut ids, mut signers) = (BTreeSet::new(), BTreeSet::new());
        for Signature { keyid, sig } in &file.signatures {
            if !ids.insert(keyid) {
                return Err(format!("{name} has two signatures by the key {keyid}"));
            }
            let key = self.keys.get(keyid).filter(|_| keyids.contains(keyid));
            if let Some(key) = key
                && key.verifies(&file.canonical, sig)
            {
                signers.insert(&key.public);
            }
        }
        let found = signers.len() as u64;
        if found < threshold.get() {
            return Err(format!("{name} has {found} of the {threshold} signatures that it needs"));
        }
        Ok(())
    }

    /// Tells whether the keys of `timestamp.json` and `snapshot.json` are others in another root (section 5.3.11).
    pub fn online_keys(&self) -> u64 {
        let mut hash = Sha256::new();
        for role in [Role::Timestamp, Role::Snapshot] {
            let RoleKeys { keyids, threshold } = &self.roles[role.name()];
            hash.update(format!("{} {threshold}\n", role.name()));
            for id in keyids {
                hash.update(format!("{id}\n"));
            }
        }
        let first = hash.finalize().first_chunk().copied().expect("a SHA-256 has 32 bytes");
        u64::from_be_bytes(first).max(1)
    }
}

#[derive(Clone)]
struct Key {
    algorithm: &'static dyn VerificationAlgorithm,
    public: Vec<u8>,
}

impl Key {
    /// `None` for a kind of key that this program does not know.
    fn read(key: &Value) -> Option<Self> {
        let text = |name: &str| key.get(name)?.as_str();
        let public = key.get("keyval")?.get("public")?.as_str()?;
        let (algorithm, public): (&'static dyn VerificationAlgorithm, _) =
            match (text("keytype")?, text("scheme")?) {
                ("ed25519", "ed25519") => {
                    (&signature::ED25519, public.parse::<Decoded<Hex>>().ok()?.into_vec())
                }
                ("ecdsa" | "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp256") => (
                    &signature::ECDSA_P256_SHA256_ASN1,
                    public.parse::<Decoded<EcdsaFlex>>().ok()?.into_vec(),
                ),
                ("rsa", "rsassa-pss-sha256") => (
                    &signature::RSA_PSS_2048_8192_SHA256,
                    public.parse::<Decoded<RsaPem>>().ok()?.into_vec(),
                ),
                _ => return None,
            };
        Some(Self { algorithm, public })
    }

    fn verifies(&self, message: &[u8], signature: &str) -> bool {
        let Ok(signature) = signature.parse::<Decoded<Hex>>() else { return false };
        UnparsedPublicKey::new(self.algorithm, &self.public).verify(message, &signature).is_ok()
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key").field("public", &hex(&self.public)).finish_non_exhaustive()
    }
}

/// What a file says of another one (METAFILES).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct MetaFile {
    pub version: u64,
    pub length: Option<u64>,
    hashes: Option<BTreeMap<String, String>>,
}

impl MetaFile {
    /// # Errors
    /// In words, if `bytes` are others than the ones that are meant. Where neither length nor hashes are stated, the
    /// version is all that binds them.
    pub fn check(&self, bytes: &[u8]) -> Result<(), String> {
        if let Some(length) = self.length.filter(|length| *length != bytes.len() as u64) {
            return Err(format!("has {} bytes instead of {length}", bytes.len()));
        }
        self.hashes.as_ref().map_or(Ok(()), |hashes| check_hashes(hashes, bytes))
    }
}

/// Every hash of a kind that is known has to be right, and one has to be known.
fn check_hashes(hashes: &BTreeMap<String, String>, bytes: &[u8]) -> Result<(), String> {
    let mut known = 0;
    for (kind, stated) in hashes {
        let found = match kind.as_str() {
            "sha256" => hex(&Sha256::digest(bytes)),
            "sha512" => hex(&Sha512::digest(bytes)),
            _ => continue,
        };
        if !found.eq_ignore_ascii_case(stated) {
            return Err(format!("has another {kind} than stated"));
        }
        known += 1;
    }
    if known == 0 {
        return Err("has neither a sha256 nor a sha512 stated".to_owned());
    }
    Ok(())
}

#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "Listing")]
pub(super) struct Timestamp {
    pub snapshot: MetaFile,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "Listing")]
pub(super) struct Snapshot {
    pub targets: MetaFile,
    pub all: BTreeMap<String, MetaFile>,
}

#[derive(Deserialize)]
struct Listing {
    meta: BTreeMap<String, MetaFile>,
}

impl Content for Timestamp {
    const ROLE: Role = Role::Timestamp;
}

impl Content for Snapshot {
    const ROLE: Role = Role::Snapshot;
}

impl TryFrom<Listing> for Timestamp {
    type Error = &'static str;

    fn try_from(mut listing: Listing) -> Result<Self, Self::Error> {
        let snapshot = listing.meta.remove("snapshot.json").ok_or("names no snapshot.json")?;
        Ok(Self { snapshot })
    }
}

impl TryFrom<Listing> for Snapshot {
    type Error = &'static str;

    fn try_from(Listing { meta: all }: Listing) -> Result<Self, Self::Error> {
        let targets = all.get("targets.json").cloned().ok_or("names no targets.json")?;
        Ok(Self { targets, all })
    }
}

/// The list of files that may be fetched, by their names.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Targets {
    pub targets: BTreeMap<String, Target>,
}

impl Content for Targets {
    const ROLE: Role = Role::Targets;
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Target {
    pub length: u64,
    pub hashes: BTreeMap<String, String>,
}

impl Target {
    /// # Errors
    /// In words, if `bytes` are others than the ones that are listed.
    pub fn check(&self, bytes: &[u8]) -> Result<(), String> {
        if bytes.len() as u64 != self.length {
            return Err(format!("has {} bytes instead of {}", bytes.len(), self.length));
        }
        check_hashes(&self.hashes, bytes)
    }

    /// The hash by which its file is named in a repository with consistent snapshots (section 6.2).
    pub fn hash(&self) -> Option<&str> {
        self.hashes.get("sha256").or_else(|| self.hashes.get("sha512")).map(String::as_str)
    }
}
