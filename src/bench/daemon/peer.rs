//! Both ends of a daemon: scanners that send cases, and the destination that takes their masks.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dicom_core::{DataElement, PrimitiveValue, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::{DefaultDicomObject, OpenFileOptions};
use dicom_transfer_syntax_registry::{TransferSyntaxIndex, TransferSyntaxRegistry};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::bench::BenchError;
use crate::codec::dimse::{Command, status};
use crate::codec::pdu::Pdu;
use crate::domain::Uid;
use crate::durable::{Incoming, Synced};
use crate::ingest::dicom::{CalledAeTitle, Config, Scp, Storage, serve};
use crate::ingest::{Received, Refusal, Sink};
use crate::upper_layer::{
    Acknowledge, Association, Limits, Proposal, UpperLayerError, Wire, request,
};

/// Longest P-DATA-TF PDU that a sender takes. Answers are short.
const MAX_PDU_BYTES: u32 = 32 << 10;

/// Memory that looks like a disk, where there is one: the destination's own disk is not what is measured.
const MEMORY: &str = "/dev/shm";

fn fault(what: &str, error: impl std::fmt::Display) -> BenchError {
    BenchError::Daemon(format!("{what}: {error}"))
}

/// A series that is sent again and again, each time under UIDs of its own.
#[derive(Debug)]
pub(super) struct Material {
    slices: Vec<DefaultDicomObject>,
    sop_class: Uid,
    transfer_syntax: Uid,
}

/// A series ready to be sent.
pub(super) struct Case {
    pub(super) study: Uid,
    /// SOP Instance UID and data set of each object.
    objects: Vec<(Uid, Vec<u8>)>,
}

impl Material {
    /// # Errors
    /// If a file is no DICOM object, or is of another kind than the first.
    pub(super) fn read(files: &[PathBuf]) -> Result<Self, BenchError> {
        let slices: Vec<_> = files
            .iter()
            .map(|file| {
                dicom_object::open_file(file).map_err(|error| {
                    fault(&format!("{}: only DICOM can be sent", file.display()), error)
                })
            })
            .collect::<Result<_, _>>()?;
        let kind = |slice: &DefaultDicomObject| {
            let meta = slice.meta();
            let uid = |text: &str| Uid::parse(text).map_err(|error| fault("the input", error));
            Ok::<_, BenchError>((
                uid(&meta.media_storage_sop_class_uid)?,
                uid(&meta.transfer_syntax)?,
            ))
        };
        let first = slices.first().ok_or_else(|| fault("the input", "it holds no file"))?;
        let (sop_class, transfer_syntax) = kind(first)?;
        for slice in &slices {
            if kind(slice)? != (sop_class.clone(), transfer_syntax.clone()) {
                return Err(fault("the input", "its files are not of one class and syntax"));
            }
        }
        Ok(Self { slices, sop_class, transfer_syntax })
    }

    /// Objects of one case.
    pub(super) fn count(&self) -> usize {
        self.slices.len()
    }

    /// The series under new UIDs made of `name`.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn case(&self, name: &str) -> Result<Case, BenchError> {
        let uid = |what: &str| Uid::derived(&["bench", name, what]);
        let syntax = TransferSyntaxRegistry
            .get(self.transfer_syntax.as_str())
            .ok_or_else(|| fault("the input", "its transfer syntax is not known"))?;
        let study = uid("study");
        let objects = self.slices.iter().enumerate().map(|(number, slice)| {
            let instance = uid(&format!("instance {number}"));
            let mut object = (**slice).clone();
            for (tag, uid) in [
                (tags::STUDY_INSTANCE_UID, &study),
                (tags::SERIES_INSTANCE_UID, &uid("series")),
                (tags::SOP_INSTANCE_UID, &instance),
            ] {
                object.put(DataElement::new(tag, VR::UI, PrimitiveValue::from(uid.as_str())));
            }
            let mut bytes = Vec::new();
            let written = object.write_dataset_with_ts(&mut bytes, syntax);
            written.map_err(|error| fault("the input", error))?;
            Ok((instance, bytes))
        });
        let objects = objects.collect::<Result<_, BenchError>>()?;
        Ok(Case { study, objects })
    }
}

/// Where and as whom a case is sent.
#[derive(Debug, Clone)]
pub(super) struct Route {
    pub(super) address: String,
    pub(super) ae_title: String,
    pub(super) patience: Duration,
    /// Releases the association after each case: for a daemon that takes that for the end of a series.
    pub(super) release_each: bool,
}

/// One scanner with an association of its own.
pub(super) struct Sender<'a> {
    route: &'a Route,
    material: &'a Material,
    runtime: Runtime,
    association: Option<Association>,
    message_id: u16,
}

impl<'a> Sender<'a> {
    /// # Errors
    /// If the system refuses.
    pub(super) fn new(route: &'a Route, material: &'a Material) -> Result<Self, BenchError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| fault("a sender", error))?;
        Ok(Self { route, material, runtime, association: None, message_id: 0 })
    }

    /// Associates, where that has not been done.
    ///
    /// # Errors
    /// If the daemon refuses.
    pub(super) fn prepare(&mut self) -> Result<(), BenchError> {
        self.association = Some(self.open()?);
        Ok(())
    }

    /// Sends a case. Returns when the last byte had left.
    ///
    /// # Errors
    /// If the daemon does not take it.
    pub(super) fn send(&mut self, case: &Case) -> Result<Instant, BenchError> {
        let mut last_byte = Instant::now();
        for (instance, bytes) in &case.objects {
            last_byte = self.store(instance, bytes)?;
        }
        if self.route.release_each {
            self.release();
        }
        Ok(last_byte)
    }

    /// All is answered; how the association ends changes nothing.
    pub(super) fn release(&mut self) {
        if let Some(association) = self.association.take() {
            let release = async { timeout(self.route.patience, association.release()).await };
            let _ = self.runtime.block_on(release);
        }
    }

    fn open(&mut self) -> Result<Association, BenchError> {
        if let Some(association) = self.association.take() {
            return Ok(association);
        }
        let (Material { sop_class, transfer_syntax, .. }, route) = (self.material, self.route);
        let proposal = Proposal {
            calling: "BENCH".to_owned(),
            called: route.ae_title.clone(),
            contexts: vec![(sop_class.to_string(), vec![transfer_syntax.to_string()])],
            roles: Vec::new(),
        };
        let limits = Limits { max_pdu_bytes: MAX_PDU_BYTES, write_timeout: route.patience };
        let associate = async {
            let stream = TcpStream::connect(&route.address).await?;
            request(Box::new(Wire::new(stream, Acknowledge::AtOnce)), limits, proposal).await
        };
        let associate = async { timeout(route.patience, associate).await };
        let associated = self.runtime.block_on(associate);
        let associated = associated.unwrap_or(Err(UpperLayerError::Timeout));
        associated.map_err(|error| fault("no association", error))
    }

    fn store(&mut self, instance: &Uid, dataset: &[u8]) -> Result<Instant, BenchError> {
        self.message_id = self.message_id.wrapping_add(1);
        let request = Command::StoreRequest {
            message_id: self.message_id,
            sop_class_uid: self.material.sop_class.clone(),
            sop_instance_uid: instance.clone(),
        };
        let (mut association, patience) = (self.open()?, self.route.patience);
        let exchange = async {
            let context = association.contexts()[0].id;
            association.send(context, &request.encode(), Some(dataset)).await?;
            let last_byte = Instant::now();
            let answer = timeout(patience, association.receive()).await;
            Ok((last_byte, answer.unwrap_or(Err(UpperLayerError::Timeout))?))
        };
        let exchanged: Result<_, UpperLayerError> = self.runtime.block_on(exchange);
        let (last_byte, answer) = exchanged.map_err(|error| fault("C-STORE", error))?;
        self.association = Some(association);
        let Pdu::Data(values) = answer else {
            return Err(fault("C-STORE", "the daemon broke the association off"));
        };
        let answer = values.first().map(|value| Command::parse(&value.data));
        match answer {
            Some(Ok(Command::StoreResponse { status: status::SUCCESS, .. })) => Ok(last_byte),
            Some(Ok(Command::StoreResponse { status, .. } | Command::Failure { status, .. })) => {
                Err(fault("C-STORE", format!("status {status:04X}")))
            }
            _ => Err(fault("C-STORE", "the answer is not understood")),
        }
    }
}

/// The destination: takes segmentations by C-STORE, keeps none, and notes when it acknowledged them.
pub(super) struct Receiver {
    pub(super) address: SocketAddr,
    shelf: Arc<Shelf>,
    _stop: DropGuard,
    _runtime: tokio::runtime::Runtime,
}

struct Shelf {
    scratch: TempDir,
    /// By Study Instance UID.
    arrived: Mutex<HashMap<String, Instant>>,
    bell: Condvar,
}

impl Shelf {
    fn arrived(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.arrived.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sink for Shelf {
    fn begin(&self) -> Result<Incoming, Refusal> {
        Ok(Incoming::create(self.scratch.path())?)
    }

    fn store(&self, received: &Received, file: Synced) -> Result<(), Refusal> {
        if received.sop_class_uid.as_str() == uids::SEGMENTATION_STORAGE {
            let study = study(file.path()).ok_or(Refusal::NotUnderstood("it names no study"))?;
            self.arrived().insert(study, Instant::now());
            self.bell.notify_all();
        }
        Ok(())
    }
}

fn study(file: &Path) -> Option<String> {
    let head = OpenFileOptions::new().read_until(tags::SERIES_INSTANCE_UID).open_file(file).ok()?;
    let study = head.element(tags::STUDY_INSTANCE_UID).ok()?.to_str().ok()?;
    Some(study.trim_end_matches(['\0', ' ']).to_owned())
}

impl Receiver {
    /// Listens on `address`; port 0 takes a free one.
    ///
    /// # Errors
    /// If it cannot listen.
    pub(super) fn start(address: SocketAddr) -> Result<Self, BenchError> {
        let memory = Path::new(MEMORY);
        let scratch =
            if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        let scratch = scratch.map_err(BenchError::Scratch)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .map_err(|error| fault("the receiver", error))?;
        let listener = runtime
            .block_on(TcpListener::bind(address))
            .map_err(|error| fault(&format!("listen on {address}"), error))?;
        let address = listener.local_addr().map_err(|error| fault("the receiver", error))?;
        let (arrived, bell) = Default::default();
        let shelf = Arc::new(Shelf { scratch, arrived, bell });
        let config = Config {
            called_ae_title: CalledAeTitle::Any,
            storage: Storage::Any,
            ..Config::default()
        };
        let stop = CancellationToken::new();
        let scp = Scp::new(config).expect("without TLS nothing is read");
        runtime.spawn(serve(listener, scp, shelf.clone(), stop.clone()));
        Ok(Self { address, shelf, _stop: stop.drop_guard(), _runtime: runtime })
    }

    /// Waits for the segmentation of a study. Returns when it was acknowledged.
    ///
    /// # Errors
    /// If it does not come in time.
    pub(super) fn wait(&self, study: &Uid, patience: Duration) -> Result<Instant, BenchError> {
        let arrived = self.shelf.arrived();
        let waiting =
            |arrived: &mut HashMap<String, Instant>| !arrived.contains_key(study.as_str());
        let waited = self.shelf.bell.wait_timeout_while(arrived, patience, waiting);
        let (mut arrived, _) = waited.unwrap_or_else(PoisonError::into_inner);
        arrived.remove(study.as_str()).ok_or_else(|| {
            fault(
                "no mask came in time",
                "check that the daemon sends to this receiver and what it logs",
            )
        })
    }
}
