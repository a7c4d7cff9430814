//! The audit trail: who gave what, what became of it, what was changed. Append-only lines of JSON without patient data,
//! each sealed by a hash over itself and the seal before it, so that a line that was edited, left out or put elsewhere
//! shows. Cutting off the end shows only against a seal noted elsewhere.
//!
//! ```text
//! {"seq":2,"time_ms":…,"event":"delivered","job":"…","destination":"…","previous":"<seal of 1>","seal":"<SHA-256>"}
//! ```
//! The seal is over the text of the line up to `,"seal"`. A thread writes and syncs what has come together, so that a
//! case does not wait for the trail; what happened in the last moment before a power cut may be missing.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

const SEAL: &str = ",\"seal\":\"";

enum Message {
    Record(Map<String, Value>),
    /// Answered when everything before it is on the disk.
    Flush(Sender<()>),
}

/// The process's trail.
static TRAIL: OnceLock<Trail> = OnceLock::new();

/// A trail that is being written.
struct Trail(Sender<Message>);

/// What keeps a trail from being written or believed.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    #[error("audit trail {}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("audit trail {}: line {line} {problem}; keep the file for an inquiry and start a new one", path.display())]
    Broken { path: PathBuf, line: u64, problem: &'static str },
}

/// Checks the trail at `path`, or makes it, and writes to it from now on. Only the first call in a process counts.
///
/// # Errors
/// If the file cannot be used or was tampered with.
pub fn start(path: &Path) -> Result<(), AuditError> {
    let _ = TRAIL.set(Trail::open(path)?);
    Ok(())
}

/// Adds a line: `fields` is a JSON object of names, counts, hashes and job ids; never a patient's data. Without a trail
/// nothing happens.
pub fn record(event: &'static str, fields: Value) {
    if let Some(trail) = TRAIL.get() {
        trail.record(event, fields);
    }
}

/// Waits until everything that was recorded is on the disk, or `patience` is over.
pub fn flush(patience: Duration) {
    if let Some(trail) = TRAIL.get() {
        trail.flush(patience);
    }
}

impl Trail {
    fn open(path: &Path) -> Result<Self, AuditError> {
        let io = |source| AuditError::Io { path: path.to_owned(), source };
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true).mode(0o640);
        let mut file = options.open(path).map_err(io)?;
        drop_torn_line(&mut file).map_err(io)?;
        let end = verify(path)?;
        let (send, receive) = channel();
        std::thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || write(file, end, &receive))
            .map_err(io)?;
        Ok(Self(send))
    }

    fn record(&self, event: &'static str, fields: Value) {
        let mut line = Map::new();
        line.insert("event".to_owned(), event.into());
        line.extend(fields.as_object().cloned().unwrap_or_default());
        let _ = self.0.send(Message::Record(line));
    }

    fn flush(&self, patience: Duration) {
        let (done, wait) = channel();
        if self.0.send(Message::Flush(done)).is_ok() {
            let _ = wait.recv_timeout(patience);
        }
    }
}

/// Where a sound trail ends.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct End {
    /// Lines so far.
    pub seq: u64,
    /// Of the last line, hexadecimal; empty for an empty trail.
    pub seal: String,
}

/// Reads a trail from its beginning and checks every seal.
///
/// # Errors
/// At the first line that is not what was written.
pub fn verify(path: &Path) -> Result<End, AuditError> {
    let io = |source| AuditError::Io { path: path.to_owned(), source };
    let mut end = End::default();
    for line in BufReader::new(File::open(path).map_err(io)?).lines() {
        let line = line.map_err(io)?;
        let broken =
            |problem| AuditError::Broken { path: path.to_owned(), line: end.seq + 1, problem };
        end = end.extend(&line).map_err(broken)?;
    }
    Ok(end)
}

impl End {
    /// The end after `line`, which is given without its newline.
    ///
    /// # Errors
    /// What is wrong with the line, if it is not what was written after this end.
    pub fn extend(&self, line: &str) -> Result<Self, &'static str> {
        let (text, seal) = line
            .rsplit_once(SEAL)
            .and_then(|(text, seal)| Some((text, seal.strip_suffix("\"}")?)))
            .ok_or("has no seal")?;
        if hash(text) != seal {
            return Err("was changed");
        }
        let value: Value = serde_json::from_str(&format!("{text}}}")).map_err(|_| "is no JSON")?;
        if value["previous"] != self.seal.as_str() || value["seq"] != self.seq + 1 {
            return Err("does not follow the one before it");
        }
        Ok(Self { seq: self.seq + 1, seal: seal.to_owned() })
    }
}

/// Reads a trail that is being written, again and again from where somebody knows it.
#[derive(Debug)]
pub struct Tail {
    path: PathBuf,
    /// A line that was asked for, and where the one after it begins.
    seq: u64,
    offset: u64,
}

impl Tail {
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path, seq: 0, offset: 0 }
    }

    /// The trail's end, and the lines after line `seq` as far as they have room in `max_bytes`. A line that is not ended
    /// is not there yet; seals are not checked.
    ///
    /// # Errors
    /// If the file cannot be read or a line is none.
    pub fn after(&mut self, seq: u64, max_bytes: usize) -> Result<(End, Vec<String>), AuditError> {
        let io = |source| AuditError::Io { path: self.path.clone(), source };
        let file = File::open(&self.path).map_err(io)?;
        // Nobody but a forger shortens a trail; what is left is told as it is.
        if seq < self.seq || file.metadata().map_err(io)?.len() <= self.offset {
            (self.seq, self.offset) = (0, 0);
        }
        let mut file = BufReader::new(file);
        file.seek(SeekFrom::Start(self.offset)).map_err(io)?;
        let (mut at, mut offset, mut room) = (self.seq, self.offset, max_bytes);
        let (mut seal, mut lines) = (String::new(), Vec::new());
        loop {
            let mut line = String::new();
            let length = file.read_line(&mut line).map_err(io)? as u64;
            let Some(text) = line.strip_suffix('\n') else { break };
            at += 1;
            offset += length;
            let found = text.rsplit_once(SEAL).and_then(|(_, seal)| seal.strip_suffix("\"}"));
            let broken =
                || AuditError::Broken { path: self.path.clone(), line: at, problem: "has no seal" };
            found.ok_or_else(broken)?.clone_into(&mut seal);
            if at <= seq {
                // The last line that is known is read again next time: where nothing follows, it is the end.
                (self.seq, self.offset) = (at - 1, offset - length);
            } else {
                room = room.saturating_sub(text.len()); // once used up, it stays so
                if room > 0 {
                    lines.push(text.to_owned());
                }
            }
        }
        Ok((End { seq: at, seal }, lines))
    }
}

fn write(mut file: File, mut end: End, messages: &Receiver<Message>) {
    while let Ok(first) = messages.recv() {
        let (mut text, mut waiting) = (String::new(), Vec::new());
        for message in std::iter::once(first).chain(messages.try_iter()) {
            match message {
                Message::Record(fields) => text.push_str(&seal(&mut end, fields)),
                Message::Flush(done) => waiting.push(done),
            }
        }
        let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_data());
        if let Err(error) = written {
            tracing::error!(%error, "the audit trail cannot be written");
        }
        for done in waiting {
            let _ = done.send(());
        }
    }
}

/// The next line.
fn seal(end: &mut End, fields: Map<String, Value>) -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    end.seq += 1;
    let mut text = format!("{{\"seq\":{},\"time_ms\":{}", end.seq, since.as_millis());
    for (key, value) in fields {
        write!(text, ",{}:{value}", Value::from(key)).expect("writing to a string succeeds");
    }
    write!(text, ",\"previous\":\"{}\"", end.seal).expect("writing to a string succeeds");
    end.seal = hash(&text);
    format!("{text}{SEAL}{}\"}}\n", end.seal)
}

fn hash(text: &str) -> String {
    Sha256::digest(text).iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").expect("writing to a string succeeds");
        hex
    })
}

/// A power cut may have left the last line half written.
fn drop_torn_line(file: &mut File) -> std::io::Result<()> {
    let length = file.metadata()?.len();
    let tail = length.min(64 << 10);
    file.seek(SeekFrom::Start(length - tail))?;
    let mut bytes = Vec::new();
    file.take(tail).read_to_end(&mut bytes)?;
    let torn = bytes.iter().rev().take_while(|byte| **byte != b'\n').count() as u64;
    if torn > 0 {
        file.set_len(length - torn)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(path: &Path, events: usize) -> Vec<String> {
        let mut end = End::default();
        let fields = |n: usize| match serde_json::json!({ "event": "delivered", "n": n, "note": "a \"b\"" })
        {
            Value::Object(fields) => fields,
            _ => unreachable!("an object was written"),
        };
        let text: String = (0..events).map(|n| seal(&mut end, fields(n))).collect();
        std::fs::write(path, &text).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_line_changed_left_out_or_moved_shows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        let lines = written(&path, 4);
        assert_eq!(verify(&path).unwrap().seq, 4);
        let broken_at = |lines: &[String]| {
            std::fs::write(&path, lines.join("\n") + "\n").unwrap();
            match verify(&path) {
                Err(AuditError::Broken { line, .. }) => line,
                other => panic!("{other:?}"),
            }
        };
        let mut edited = lines.clone();
        edited[1] = edited[1].replace("\"n\":1", "\"n\":7");
        assert_eq!(broken_at(&edited), 2);
        assert_eq!(broken_at(&[lines[0].clone(), lines[2].clone()]), 2);
        assert_eq!(broken_at(&[lines[1].clone(), lines[0].clone()]), 1);
        assert_eq!(broken_at(&lines[1..]), 1);
    }

    #[test]
    fn the_tail_gives_what_follows_a_line_and_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        let lines = written(&path, 5);
        let end = verify(&path).unwrap();
        let mut tail = Tail::new(path.clone());
        let whole = 1 << 20;
        assert_eq!(tail.after(0, whole).unwrap(), (end.clone(), lines.clone()));
        assert_eq!(tail.after(3, whole).unwrap(), (end.clone(), lines[3..].to_vec()));
        assert_eq!(tail.after(5, whole).unwrap(), (end.clone(), vec![]));
        assert_eq!(tail.after(5, whole).unwrap(), (end.clone(), vec![]));
        let room = lines[2].len() + lines[3].len() + 10;
        assert_eq!(tail.after(2, room).unwrap(), (end.clone(), lines[2..4].to_vec()), "backwards");
        assert_eq!(tail.after(9, whole).unwrap(), (end.clone(), vec![]), "more than there is");
        assert_eq!(tail.after(9, whole).unwrap(), (end.clone(), vec![]), "and again");
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"{\"seq\":6,\"ti").unwrap();
        assert_eq!(tail.after(4, whole).unwrap(), (end, lines[4..].to_vec()));
        written(&path, 2);
        assert_eq!(tail.after(4, whole).unwrap(), (verify(&path).unwrap(), vec![]), "it was cut");
    }

    #[test]
    fn a_trail_goes_on_after_a_torn_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        written(&path, 2);
        let mut file = OpenOptions::new().read(true).append(true).open(&path).unwrap();
        file.write_all(b"{\"seq\":3,\"ti").unwrap();
        assert!(verify(&path).is_err());
        let trail = Trail::open(&path).unwrap();
        trail.record("started", serde_json::json!({ "version": "1" }));
        trail.flush(Duration::from_secs(10));
        assert_eq!(verify(&path).unwrap().seq, 3);
    }
}
