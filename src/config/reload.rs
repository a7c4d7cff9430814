//! What of a configuration can be changed while the daemon runs.

use super::{Loaded, Settings, tree};

impl Loaded {
    /// What is in force after `new` was read by a running daemon that has `self` in force: destinations, completion,
    /// the vote (votes, stop, deadline, seed), results and log level of `new`, all else as before. Also the keys that differ and need a restart.
    #[must_use]
    pub fn reload(&self, new: Self) -> (Self, Vec<String>) {
        let mut settings = self.settings.clone();
        settings.destination.clone_from(&new.settings.destination);
        settings.ingest.dicom.completion.clone_from(&new.settings.ingest.dicom.completion);
        settings.model.votes = new.settings.model.votes;
        settings.model.stop = new.settings.model.stop;
        settings.model.deadline_ms = new.settings.model.deadline_ms;
        settings.model.seed = new.settings.model.seed;
        settings.results.clone_from(&new.settings.results);
        settings.daemon.log = new.settings.daemon.log;
        let needs_restart = differing_keys(&settings, &new.settings);
        let revision = settings.revision();
        let written_bundle = self.written_bundle.clone();
        (Self { settings, revision, written_bundle, origins: new.origins }, needs_restart)
    }
}

/// Keys that have other values in the two, or are in one alone.
fn differing_keys(one: &Settings, other: &Settings) -> Vec<String> {
    let leaves = |settings: &Settings| {
        tree::leaves(&toml::Value::try_from(settings).expect("settings are plain data"))
    };
    let (one, other) = (leaves(one), leaves(other));
    let mut keys: Vec<String> = one
        .iter()
        .filter(|leaf| !other.contains(leaf))
        .chain(other.iter().filter(|leaf| !one.contains(leaf)))
        .map(|(key, _)| key.clone())
        .collect();
    keys.sort();
    keys.dedup();
    keys
}

#[cfg(test)]
mod tests {
    use super::super::tests::load_text;

    const MINIMAL: &str = "
[model]
bundle = \"onnx/phantom\"
[spool]
directory = \"/var/spool/cdal\"
[ingest.dicom]
listen = \"127.0.0.1:0\"
";

    #[test]
    fn what_can_be_reloaded_is_taken_and_the_rest_is_named() {
        let old = load_text(MINIMAL, &[]).unwrap();
        let text = format!(
            "{}completion = {{ idle = \"7s\" }}\nmax_associations = 3\n[http]\nlisten = \"127.0.0.1:0\"\n\
             [daemon]\nlog = \"debug\"\n[[destination]]\nname = \"a\"\nkind = \"folder\"\npath = \"out\"\n",
            MINIMAL.replace("[spool]", "votes = 9\n[spool]")
        );
        let (now, restart) = old.reload(load_text(&text, &[]).unwrap());
        assert_eq!(restart, ["http.listen", "ingest.dicom.max_associations"]);
        assert_eq!(now.settings.model.votes, Some(9));
        assert_eq!(now.settings.destination.len(), 1);
        assert_eq!(now.settings.ingest.dicom.completion.idle.as_secs(), 7);
        assert_eq!(now.settings.ingest.dicom.max_associations, 16, "as it was at the start");
        assert_ne!(now.revision, old.revision);
        let (back, restart) = now.reload(old.clone());
        assert_eq!((back.settings, back.revision), (old.settings, old.revision));
        assert!(restart.is_empty());
    }
}
