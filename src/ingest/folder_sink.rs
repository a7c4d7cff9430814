use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Declined, Reading, Received, Refusal, Sink, identify};
use crate::codec::commitment::Request;
use crate::codec::dicom::{self, Identity};
use crate::codec::{self, Format, part10};
use crate::domain::{SopReference, Uid};
use crate::durable::{self, DurableError, Incoming, Synced, failpoint};
use crate::spool::{Content, Held, Spool, SpoolError};

/// How an object came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Via {
    Dicom,
    Serial,
    Stow,
    Webhook,
}

/// An object that is in the folder to stay.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Landed {
    pub path: PathBuf,
    pub bytes: u64,
    pub via: Via,
}

/// A file that is not kept, and which object it was, if that could be read.
#[derive(Debug)]
pub struct Unkept {
    pub object: Option<SopReference>,
    pub refusal: Refusal,
}

/// Puts objects into a folder as `<SOP Instance UID>.dcm`, and events as `event-<id>.json`. The same instance or event
/// again changes nothing; other content under a known name is kept beside the first.
pub struct FolderSink {
    folder: PathBuf,
    min_free_bytes: u64,
    on_landed: Box<dyn Fn(&Landed) + Send + Sync>,
    promises: Option<Promises>,
}

/// Requests for storage commitment, to be answered by `deliver`.
struct Promises {
    /// Keeps the requests, and nothing else.
    spool: Arc<Spool>,
    /// AE titles of those who may ask.
    requesters: Vec<String>,
    on_asked: Box<dyn Fn() + Send + Sync>,
}

impl FolderSink {
    /// `on_landed` is called for every object when it is safe, before its sender is told.
    ///
    /// # Errors
    /// If the folder cannot be made or cleared of half-written files.
    pub fn open(
        folder: &Path,
        on_landed: impl Fn(&Landed) + Send + Sync + 'static,
    ) -> Result<Self, DurableError> {
        durable::create_directory(folder)?;
        durable::remove_parts(folder)?;
        let (folder, on_landed) = (folder.to_owned(), Box::new(on_landed));
        Ok(Self { folder, min_free_bytes: 0, on_landed, promises: None })
    }

    /// Takes nothing while fewer bytes are free on the disk: it may be others' as well.
    #[must_use]
    pub fn leaving_free(self, min_free_bytes: u64) -> Self {
        Self { min_free_bytes, ..self }
    }

    /// Lets these AE titles ask for storage commitment; what they ask is kept in `spool`. `on_asked` must not block.
    #[must_use]
    pub fn with_commitment(
        self,
        spool: Arc<Spool>,
        requesters: Vec<String>,
        on_asked: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        let promises = Promises { spool, requesters, on_asked: Box::new(on_asked) };
        Self { promises: Some(promises), ..self }
    }

    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A temporary file in the folder.
    ///
    /// # Errors
    /// If there is no room.
    pub fn begin_file(&self) -> Result<Incoming, Refusal> {
        let (free_bytes, min_free_bytes) =
            (durable::free_bytes(&self.folder)?, self.min_free_bytes);
        if free_bytes < min_free_bytes {
            return Err(SpoolError::LowDisk { free_bytes, min_free_bytes }.into());
        }
        Ok(Incoming::create(&self.folder)?)
    }

    /// Keeps a whole file under `name`, which the caller has checked.
    ///
    /// # Errors
    /// If it is an image and cannot be read to its end; if there is no room, or the disk refuses.
    pub fn keep_as(&self, name: &str, bytes: &[u8], via: Via) -> Result<(), Refusal> {
        let mut file = self.begin_file()?;
        file.write(bytes)?;
        let file = file.sync()?;
        codec::check_named(file.path(), name)?;
        Ok(self.land(name, file, via)?)
    }

    /// Keeps a file under `name`, which the caller has checked.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn land(&self, name: &str, file: Synced, via: Via) -> Result<(), DurableError> {
        let bytes = file.bytes;
        let path = match self.same_instance(name, &file)? {
            Some(known) => known,
            None => file.persist_beside(&self.folder, name)?,
        };
        (self.on_landed)(&Landed { path, bytes, via });
        Ok(())
    }

    /// Keeps a DICOM file that came by STOW-RS, as an object of `study` where one is given. It gets the header that it
    /// would have if it had come by C-STORE, so that an object that comes both ways is one file.
    ///
    /// # Errors
    /// If it is no readable DICOM file or of another study, or the disk refuses.
    pub fn keep(&self, file: Synced, study: Option<&Uid>) -> Result<SopReference, Unkept> {
        failpoint::reach("ingest.synced");
        let identity = dicom::identify(file.path())
            .map_err(|error| Unkept { object: None, refusal: error.into() })?;
        let object = SopReference {
            sop_class_uid: identity.sop_class.clone(),
            sop_instance_uid: identity.sop_instance.clone(),
        };
        let keep = || -> Result<(), Refusal> {
            // Type 1 in every composite object's General Study Module (PS3.3 section C.7.2.1).
            let Some(own) = &identity.study else {
                return Err(Refusal::NotUnderstood("StudyInstanceUID is missing"));
            };
            if study.is_some_and(|study| study != own) {
                return Err(Refusal::Mismatch("StudyInstanceUID"));
            }
            dicom::check_whole(file.path())?;
            let file = self.with_plain_header(&identity, file)?;
            Ok(self.land(&name_of(&identity.sop_instance), file, Via::Stow)?)
        };
        match keep() {
            Ok(()) => Ok(object),
            Err(refusal) => Err(Unkept { object: Some(object), refusal }),
        }
    }

    /// The file under `name` that holds the same instance as `file` in other bytes. One that cannot be read to its end
    /// gives its name up.
    fn same_instance(&self, name: &str, file: &Synced) -> Result<Option<PathBuf>, DurableError> {
        let known = self.folder.join(name);
        if !known.exists() || durable::sha256_of_file(&known)? == file.sha256 {
            return Ok(None);
        }
        if !matches!(codec::sniff(file.path()), Ok(Some(Format::Dicom))) {
            return Ok(None);
        }
        if !Reading.is_whole(&known) {
            let aside = self.folder.join(format!("{name}.broken"));
            std::fs::rename(&known, &aside).map_err(DurableError::of("rename", &known))?;
            return Ok(None);
        }
        Ok(Reading.differences(&known, file.path()).is_empty().then_some(known))
    }

    fn with_plain_header(&self, identity: &Identity, file: Synced) -> Result<Synced, Refusal> {
        let Identity { sop_class, sop_instance, transfer_syntax, .. } = identity;
        let header = part10::header(sop_class, sop_instance, transfer_syntax);
        let read = |error| Refusal::from(DurableError::of("read", file.path())(error));
        let mut source = File::open(file.path()).map_err(read)?;
        let mut given = vec![0; identity.data_set];
        source.read_exact(&mut given).map_err(read)?;
        if given == header {
            return Ok(file);
        }
        let mut whole = self.begin_file()?;
        whole.write(&header)?;
        let mut buffer = vec![0; 1 << 16];
        loop {
            match source.read(&mut buffer).map_err(read)? {
                0 => return Ok(whole.sync()?),
                count => whole.write(&buffer[..count])?,
            }
        }
    }

    /// Keeps an event under its `id`, which the caller has checked.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn keep_event(&self, id: &str, event: &[u8]) -> Result<(), Refusal> {
        self.keep_as(&format!("event-{id}.json"), event, Via::Webhook)
    }

    /// What of `objects` is in the folder to stay, in their order.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn held(&self, objects: &[SopReference]) -> Result<Vec<Held>, SpoolError> {
        let list = std::fs::read_dir(&self.folder).map_err(DurableError::of("list", &self.folder));
        // Of the names that `durable` gives to other content under a known name.
        let contradicted: Vec<String> = list?
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter_map(|name| Some(name.strip_suffix(".dcm")?.split_once('-')?.0.to_owned()))
            .collect();
        let held = |object: &SopReference| {
            let SopReference { sop_class_uid, sop_instance_uid } = object;
            if contradicted.iter().any(|uid| uid == sop_instance_uid.as_str()) {
                return Held::Contradicted;
            }
            let path = self.folder.join(name_of(sop_instance_uid));
            match dicom::identify(&path) {
                Ok(found) if found.sop_instance != *sop_instance_uid => Held::Unknown,
                Ok(found) if found.sop_class != *sop_class_uid => Held::OtherClass,
                // It may have been stored by a version that did not look.
                Ok(_) if dicom::check_whole(&path).is_ok() => Held::Safe,
                Ok(_) => Held::Broken,
                Err(_) => Held::Unknown,
            }
        };
        let held = objects.iter().map(held).collect();
        // A file that has its name only just now may lose it in a power cut.
        durable::sync_directory(&self.folder)?;
        Ok(held)
    }
}

fn name_of(sop_instance_uid: &Uid) -> String {
    format!("{sop_instance_uid}.dcm")
}

impl Sink for FolderSink {
    fn begin(&self) -> Result<Incoming, Refusal> {
        self.begin_file()
    }

    fn store(&self, received: &Received, file: Synced) -> Result<(), Refusal> {
        identify::series_of(received, file.path())?;
        Ok(self.land(&name_of(&received.sop_instance_uid), file, Via::Dicom)?)
    }

    fn ask_commitment(&self, requester: &str, request: &Request) -> Result<(), Declined> {
        let promises = self.promises.as_ref().ok_or(Declined::NotOffered)?;
        if !promises.requesters.iter().any(|known| known == requester) {
            return Err(Declined::UnknownRequester);
        }
        promises.spool.ask_commitment(requester, &request.transaction, &request.objects)?;
        (promises.on_asked)();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(class: &str, instance: &str) -> SopReference {
        let uid = |text| Uid::parse(text).unwrap();
        SopReference { sop_class_uid: uid(class), sop_instance_uid: uid(instance) }
    }

    fn file(SopReference { sop_class_uid, sop_instance_uid }: &SopReference) -> Vec<u8> {
        let syntax = Uid::parse("1.2.840.10008.1.2").unwrap();
        let mut file = part10::header(sop_class_uid, sop_instance_uid, &syntax);
        let [class, instance] = [sop_class_uid, sop_instance_uid].map(Uid::as_str);
        for (tag, uid) in [
            ([8, 0x16], class),
            ([8, 0x18], instance),
            ([0x20, 0xd], "2.25.6"),
            ([0x20, 0xe], "2.25.7"),
        ] {
            let uid = if uid.len() % 2 == 1 { format!("{uid}\0") } else { uid.to_owned() };
            file.extend(tag.map(u16::to_le_bytes).concat());
            file.extend((uid.len() as u32).to_le_bytes());
            file.extend(uid.bytes());
        }
        file
    }

    #[test]
    fn nothing_is_taken_while_too_little_is_free() {
        let folder = tempfile::tempdir().unwrap();
        let open = || FolderSink::open(folder.path(), |_| ()).unwrap();
        let full = open().leaving_free(u64::MAX);
        let refused = full.keep_event("1", b"{}").unwrap_err();
        assert!(matches!(refused, Refusal::OutOfResources(SpoolError::LowDisk { .. })));
        assert!(full.begin().is_err());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        open().leaving_free(1).keep_event("1", b"{}").unwrap();
        assert!(folder.path().join("event-1.json").exists());
    }

    #[test]
    fn only_what_is_there_under_its_own_name_is_held() {
        let folder = tempfile::tempdir().unwrap();
        let sink = FolderSink::open(folder.path(), |_| ()).unwrap();
        let keep = |bytes: &[u8]| sink.keep(durable::write(folder.path(), bytes).unwrap(), None);
        let whole = object("1.2.3", "2.25.1");
        assert_eq!(keep(&file(&whole)).unwrap(), whole);
        let twice = object("1.2.3", "2.25.2");
        keep(&file(&twice)).unwrap();
        keep(&[file(&twice), vec![0; 8]].concat()).unwrap(); // padding: the same
        let mut other = file(&twice);
        *other.last_mut().unwrap() = b'8'; // of another series
        keep(&other).unwrap();
        // By serial line a file has the name that its sender gives it.
        let stolen = object("1.2.3", "2.25.3");
        std::fs::write(folder.path().join("2.25.3.dcm"), file(&whole)).unwrap();
        std::fs::write(folder.path().join("2.25.4.dcm"), b"no DICOM").unwrap();
        let asked = [whole, object("1.2.4", "2.25.1"), twice, stolen, object("1.2.3", "2.25.4")];
        assert_eq!(
            sink.held(&asked).unwrap(),
            [Held::Safe, Held::OtherClass, Held::Contradicted, Held::Unknown, Held::Unknown]
        );
    }
}
