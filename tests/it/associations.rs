//! What real peers put into associations (PS3.8 section 9.3, PS3.7 annex D) and into C-STORE, in raw bytes.

use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cdal::codec::dimse::{Command, status};
use cdal::codec::part10;
use cdal::deliver::{self, DicomConfig};
use cdal::domain::Uid;
use cdal::durable::{Incoming, Synced};
use cdal::ingest::dicom::{Config, Scp, serve};
use cdal::ingest::{Received, Refusal, Sink};
use tokio_util::sync::CancellationToken;

use crate::support::daemon::{Running, settings};
use crate::support::dicom::{
    EXPLICIT_VR_LITTLE_ENDIAN, MR_IMAGE_STORAGE, dataset, files, image, uid,
};
use crate::support::dul::{
    IMPLICIT_VR_LITTLE_ENDIAN, Peer, Request, VERIFICATION, context, fragment, item, pdu,
};
use crate::support::process::{dcmtk_storescp, free_port, store};
use crate::support::wait_for;
use crate::support::worker::{Echo, Stand};

const QUICK: Stand = Stand { compute: Duration::ZERO };

fn daemon(folder: &Path) -> Running {
    Running::start(settings(&folder.join("spool"), Vec::new()), QUICK)
}

/// Associates with `request`, asks for a C-ECHO and releases.
#[track_caller]
fn echoes(request: &Request) {
    let folder = tempfile::tempdir().unwrap();
    let daemon = daemon(folder.path());
    let mut peer = Peer::connect(daemon.address());
    assert_eq!(peer.associate(request), [(1, 0)]);
    peer.send(&fragment(1, 3, &Command::EchoRequest { message_id: 7 }.encode()));
    let limit = if request.max_length == 0 { usize::MAX } else { request.max_length as usize };
    let answer = Command::parse(&peer.command(limit)).unwrap();
    assert_eq!(answer, Command::EchoResponse { message_id: 7, status: status::SUCCESS });
    peer.release();
}

/// What a request is rejected with: result, source, reason.
fn rejected(request: &Request) -> [u8; 3] {
    let folder = tempfile::tempdir().unwrap();
    let daemon = daemon(folder.path());
    let mut peer = Peer::connect(daemon.address());
    peer.send(&request.encode());
    let (kind, body) = peer.receive().unwrap();
    assert_eq!(kind, 3, "A-ASSOCIATE-RJ");
    [body[1], body[2], body[3]]
}

#[test]
fn protocol_version_3_has_bit_0_set_and_is_accepted() {
    echoes(&Request { version: 3, ..Request::default() });
}

#[test]
fn protocol_version_2_is_rejected_by_the_provider_as_not_supported() {
    assert_eq!(rejected(&Request { version: 2, ..Request::default() }), [1, 2, 2]);
}

#[test]
fn another_application_context_is_rejected() {
    let application_context = b"1.2.840.10008.3.1.1.2";
    assert_eq!(rejected(&Request { application_context, ..Request::default() }), [1, 1, 2]);
}

#[test]
fn a_maximum_length_that_leaves_no_room_is_rejected() {
    assert_eq!(rejected(&Request { max_length: 7, ..Request::default() }), [1, 1, 1]);
}

#[test]
fn a_release_request_before_an_association_is_aborted() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = daemon(folder.path());
    let mut peer = Peer::connect(daemon.address());
    peer.send(&[5, 0, 0, 0, 0, 4, 0, 0, 0, 0]);
    assert_eq!(peer.receive().map(|(kind, _)| kind), Some(7), "A-ABORT");
}

#[test]
fn a_pdu_of_unknown_type_is_aborted_as_unrecognized() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = daemon(folder.path());
    let mut peer = Peer::connect(daemon.address());
    peer.associate(&Request::default());
    peer.send(&pdu(9, &[0; 4]));
    assert_eq!(peer.receive(), Some((7, vec![0, 0, 2, 1])));
}

#[test]
fn unknown_items_are_passed_over_at_every_level() {
    let unknown = item(0x7F, b"private");
    let (context_items, user_items) = (unknown.clone(), unknown.clone());
    echoes(&Request { items: unknown, context_items, user_items, ..Request::default() });
}

#[test]
fn a_maximum_length_of_0_is_no_limit() {
    echoes(&Request { max_length: 0, ..Request::default() });
}

#[test]
fn a_maximum_length_of_64_gets_answers_in_pieces() {
    echoes(&Request { max_length: 64, ..Request::default() });
}

#[test]
fn the_largest_maximum_length_is_taken() {
    echoes(&Request { max_length: u32::MAX, ..Request::default() });
}

#[test]
fn titles_padded_with_nul_are_taken() {
    let (called, calling) = (*b"CDAL\0\0\0\0\0\0\0\0\0\0\0\0", *b"SCANNER\0\0\0\0\0\0\0\0\0");
    echoes(&Request { called, calling, ..Request::default() });
}

#[test]
fn titles_with_leading_spaces_and_blank_ones_are_taken() {
    let (called, calling) = (*b"  CDAL          ", [b' '; 16]);
    echoes(&Request { called, calling, ..Request::default() });
}

#[test]
fn uids_padded_with_nul_are_taken() {
    let pad = |uid: &str| [uid.as_bytes(), b"\0"].concat();
    let contexts = vec![(pad(VERIFICATION), vec![pad(IMPLICIT_VR_LITTLE_ENDIAN)])];
    let application_context = b"1.2.840.10008.3.1.1.1\0";
    echoes(&Request { application_context, contexts, ..Request::default() });
}

#[test]
fn user_identities_of_every_kind_are_passed_over() {
    for (kind, wants_answer) in [(1, 0), (2, 0), (3, 1), (4, 1), (5, 1), (9, 0)] {
        let identity = [&[kind, wants_answer, 0, 4][..], b"anna", &[0, 0]].concat();
        echoes(&Request { user_items: item(0x58, &identity), ..Request::default() });
    }
}

#[test]
fn an_asynchronous_window_is_declined_by_silence() {
    echoes(&Request { user_items: item(0x53, &[0; 4]), ..Request::default() });
}

#[test]
fn roles_and_extended_negotiation_are_passed_over() {
    let class = MR_IMAGE_STORAGE.as_bytes();
    let named = |rest: &[u8]| [&(class.len() as u16).to_be_bytes()[..], class, rest].concat();
    let mut user_items = item(0x54, &named(&[1, 1]));
    user_items.extend(item(0x56, &named(&[2, 1, 3, 1, 0, 0])));
    user_items.extend(item(0x57, &named(&[0, 0, 0, 0])));
    echoes(&Request { user_items, ..Request::default() });
}

#[test]
fn each_of_128_contexts_gets_its_own_result() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = daemon(folder.path());
    let mut peer = Peer::connect(daemon.address());
    let syntaxes: Vec<String> =
        (0..60).map(|n| format!("1.2.840.113619.5.2.{n}.123456789012345678901234567890")).collect();
    let unknown: Vec<&str> = syntaxes.iter().map(String::as_str).collect();
    let known: Vec<&str> = unknown.iter().copied().chain([IMPLICIT_VR_LITTLE_ENDIAN]).collect();
    let contexts = (0..128).map(|n| match n % 3 {
        0 => context(VERIFICATION, &known),
        1 => context(MR_IMAGE_STORAGE, &unknown),
        _ => context("1.2.3.4.5.6.7", &known),
    });
    let request = Request { contexts: contexts.collect(), ..Request::default() };
    assert!(request.encode().len() > 300_000, "longer than any PDU that is taken afterwards");
    let expected: Vec<_> =
        (0..128_u8).map(|n| (2 * n + 1, [0, 4, 3][usize::from(n) % 3])).collect();
    assert_eq!(peer.associate(&request), expected);
    peer.release();
}

#[test]
fn an_association_without_an_accepted_context_stands() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = daemon(folder.path());
    let mut peer = Peer::connect(daemon.address());
    let contexts = vec![context(VERIFICATION, &["1.2.840.113619.5.2"])];
    assert_eq!(peer.associate(&Request { contexts, ..Request::default() }), [(1, 4)]);
    peer.release();
}

/// An association for MR images in Explicit VR Little Endian.
fn for_images() -> Request {
    let contexts = vec![context(MR_IMAGE_STORAGE, &[EXPLICIT_VR_LITTLE_ENDIAN])];
    Request { contexts, ..Request::default() }
}

/// Stores a data set under `instance` with `more` elements in the command, by a peer that takes PDUs of `max_length`; gives
/// the status and what the spool has then.
fn stored_as(instance: &str, dataset: &[u8], more: &[u8], max_length: u32) -> (u16, usize) {
    let folder = tempfile::tempdir().unwrap();
    let daemon = daemon(folder.path());
    let mut peer = Peer::connect(daemon.address());
    assert_eq!(peer.associate(&Request { max_length, ..for_images() }), [(1, 0)]);
    let request = Command::StoreRequest {
        message_id: 5,
        sop_class_uid: uid(MR_IMAGE_STORAGE),
        sop_instance_uid: uid(instance),
    };
    peer.send(&fragment(1, 3, &[&request.encode(), more].concat()));
    peer.send(&fragment(1, 2, dataset));
    let answer = Command::parse(&peer.command(max_length as usize)).unwrap();
    let (message_id, status) = answer.response().unwrap();
    assert_eq!(message_id, 5);
    peer.release();
    (status, files(&folder.path().join("spool/instances")).len())
}

fn mr(sop: &str) -> Vec<u8> {
    let file = image(MR_IMAGE_STORAGE, &uid(sop), &uid("2.25.99"), 1, 16);
    part10::dataset(&file).unwrap().to_vec()
}

/// One element in Implicit VR, as commands have them.
fn element(group: u16, element: u16, value: &[u8]) -> Vec<u8> {
    let length = u32::try_from(value.len()).unwrap().to_le_bytes();
    [&group.to_le_bytes()[..], &element.to_le_bytes(), &length, value].concat()
}

#[test]
fn an_object_is_stored_for_a_peer_that_takes_pdus_of_64_bytes() {
    assert_eq!(stored_as("2.25.7", &mr("2.25.7"), &[], 64), (status::SUCCESS, 1));
}

#[test]
fn a_command_that_names_another_instance_is_a_mismatch_and_nothing_is_kept() {
    let (status, kept) = stored_as("1.2.3.4.5.1", &mr("2.25.7"), &[], 16_384);
    assert_eq!((status, kept), (status::DATA_SET_MISMATCH, 0));
}

#[test]
fn a_move_originator_and_elements_of_other_groups_in_the_command_are_passed_over() {
    let mut more = element(0, 0x1030, b"ARCHIVE ");
    more.extend(element(0, 0x1031, &[99, 0]));
    more.extend(element(0, 0x0901, &[]));
    more.extend(element(0x0009, 0x0010, b"PRIVATE "));
    assert_eq!(stored_as("2.25.7", &mr("2.25.7"), &more, 16_384), (status::SUCCESS, 1));
}

#[test]
fn file_meta_information_and_group_lengths_inside_the_data_set_are_passed_over() {
    let explicit = |group: u16, element: u16, vr: &[u8; 2], value: &[u8]| {
        let length = u16::try_from(value.len()).unwrap().to_le_bytes();
        [&group.to_le_bytes()[..], &element.to_le_bytes(), vr, &length, value].concat()
    };
    let mut dataset = explicit(2, 0x0010, b"UI", b"1.2.840.10008.1.2.1\0");
    dataset.extend(explicit(8, 0, b"UL", &86_u32.to_le_bytes()));
    dataset.extend(mr("2.25.7"));
    assert_eq!(stored_as("2.25.7", &dataset, &[], 16_384), (status::SUCCESS, 1));
}

#[test]
fn uids_with_leading_zeros_go_in_by_either_way_and_out_as_they_stand() {
    let folder = tempfile::tempdir().unwrap();
    let (out, port) = (folder.path().join("out"), free_port());
    std::fs::create_dir(&out).unwrap();
    let _peer = dcmtk_storescp(port, &out, &[]);
    let destination = deliver::Config::dicom("pacs", &format!("127.0.0.1:{port}"), "DCMTK");
    let mut settings = settings(&folder.path().join("spool"), vec![destination]);
    settings.ingest.folder.path = Some(folder.path().join("watched"));
    let daemon = Running::start(settings, Echo);
    let write = |name: &str, sop: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, image(MR_IMAGE_STORAGE, &uid(sop), &uid("1.02.003"), 1, 16)).unwrap();
        path
    };
    let by_dicom = write("a.dcm", "1.3.6.1.4.1.9590.100.1.2.001.008.20080101");
    let by_file = write("b.dcm", "1.3.6.1.4.1.9590.100.1.2.002.008.20080101");
    store(daemon.address(), std::slice::from_ref(&by_dicom));
    let to = daemon.daemon().http_address().unwrap();
    assert_eq!(
        crate::support::http::post_files(to, "related", std::slice::from_ref(&by_file)).status,
        202
    );
    for sent in [by_dicom, by_file] {
        wait_for("the object", || {
            files(&out).iter().any(|file| dataset(file) == dataset(&sent)).then_some(())
        });
    }
}

/// Answers association requests as an odd archive would, takes a C-ECHO in fragments and answers it in others.
fn odd_archive(max_length: u32) -> (String, Arc<Mutex<Vec<usize>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let lengths = Arc::new(Mutex::new(Vec::new()));
    let told = lengths.clone();
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut peer = Peer { stream };
        let (kind, request) = peer.receive().unwrap();
        assert_eq!(kind, 1);
        let mut body = request[..68].to_vec();
        body.extend(item(0x7E, b"unknown"));
        body.extend(item(0x21, &[&[1, 0, 0, 0][..], &item(0x40, b"1.2.840.10008.1.2\0")].concat()));
        body.extend(item(0x21, &[3, 0, 4, 0])); // refused, without a transfer syntax
        let user = [item(0x51, &max_length.to_be_bytes()), item(0x7F, b"private")].concat();
        body.extend(item(0x50, &user));
        peer.send(&pdu(2, &body));
        let mut command = Vec::new();
        loop {
            let (kind, body) = peer.receive().unwrap();
            assert_eq!(kind, 4);
            told.lock().unwrap().push(body.len());
            command.extend(&body[6..]);
            if body[5] & 2 == 2 {
                break;
            }
        }
        let Ok(Command::EchoRequest { message_id }) = Command::parse(&command) else {
            panic!("C-ECHO")
        };
        let answer = Command::EchoResponse { message_id, status: status::SUCCESS }.encode();
        let (first, last) = answer.split_at(20);
        peer.send(&fragment(1, 1, first));
        peer.send(&fragment(1, 3, last));
        assert_eq!(peer.receive().unwrap().0, 5);
        peer.stream.write_all(&pdu(6, &[0; 4])).unwrap();
    });
    (address, lengths)
}

fn echo(address: String) -> Result<(), String> {
    let config = DicomConfig {
        address,
        ae_title: "ARCHIVE".to_owned(),
        calling_ae_title: "CDAL".to_owned(),
        tls: None,
        timeout: Duration::from_secs(20),
        commitment: None,
    };
    tokio::runtime::Runtime::new().unwrap().block_on(deliver::echo(&config))
}

#[test]
fn an_archive_that_takes_pdus_of_64_bytes_gets_no_longer_ones() {
    let (address, lengths) = odd_archive(64);
    echo(address).unwrap();
    let lengths = lengths.lock().unwrap();
    assert!(lengths.len() > 1 && lengths.iter().all(|length| *length <= 64), "{lengths:?}");
}

#[test]
fn an_archive_without_a_maximum_length_gets_a_command_in_one_piece() {
    let (address, lengths) = odd_archive(0);
    echo(address).unwrap();
    assert_eq!(lengths.lock().unwrap().len(), 1);
}

#[test]
fn a_rejection_with_codes_of_no_standard_is_told_as_one() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut peer = Peer { stream };
        peer.receive().unwrap();
        peer.send(&pdu(3, &[0, 1, 1, 99]));
        peer.receive();
    });
    let reason = echo(address).unwrap_err();
    assert!(reason.contains("association rejected for good: source 1, reason 99"), "{reason}");
}

/// Keeps nothing.
struct Nowhere(tempfile::TempDir);

impl Sink for Nowhere {
    fn begin(&self) -> Result<Incoming, Refusal> {
        Ok(Incoming::create(self.0.path())?)
    }

    fn store(&self, _: &Received, _: Synced) -> Result<(), Refusal> {
        Ok(())
    }
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What is logged while a peer sends these bytes to an SCP of `config` and waits for the end of the connection.
fn logged(config: Config, bytes: Vec<u8>) -> String {
    let log = Log::default();
    let copy = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter("info")
        .with_ansi(false)
        .with_writer(move || copy.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let sink = Arc::new(Nowhere(tempfile::tempdir().unwrap()));
        let scp = Scp::new(config).unwrap();
        let serving = tokio::spawn(serve(listener, scp, sink, stop.clone()));
        tokio::task::spawn_blocking(move || {
            let mut peer = Peer::connect(address);
            peer.send(&bytes);
            let _ = peer.stream.shutdown(std::net::Shutdown::Write);
            while peer.receive().is_some() {}
        })
        .await
        .unwrap();
        stop.cancel();
        serving.await.unwrap();
    });
    let log = log.0.lock().unwrap();
    String::from_utf8_lossy(&log).into_owned()
}

fn only(allow: &str) -> Config {
    Config { allow: vec![allow.to_owned()], ..Config::default() }
}

#[test]
fn a_rejected_caller_is_logged_with_its_address_and_titles() {
    let log = logged(only("MODALITY"), Request::default().encode());
    assert!(log.contains("WARN"), "{log}");
    let words = "association rejected: calling AE title SCANNER is not allowed";
    for words in [words, "peer=127.0.0.1", "calling=SCANNER", "called=CDAL"] {
        assert!(log.contains(words), "{words}: {log}");
    }
}

#[test]
fn a_wrongly_called_title_is_logged_with_the_right_one() {
    let request = Request { called: *b"OTHER           ", ..Request::default() };
    let log = logged(Config::default(), request.encode());
    assert!(log.contains("association rejected: called AE title OTHER is not CDAL"), "{log}");
}

#[test]
fn a_title_cannot_forge_a_line_of_the_log() {
    let request = Request { calling: *b"X\nERROR \x1B[31mevi", ..Request::default() };
    let log = logged(only("MODALITY"), request.encode());
    assert!(log.contains("calling AE title X\\nERROR \\u{1b}[31mevi is not allowed"), "{log}");
    assert_eq!(log.lines().count(), 1, "{log}");
}

#[test]
fn a_rejected_protocol_version_is_logged() {
    let request = Request { version: 2, ..Request::default() };
    let log = logged(Config::default(), request.encode());
    assert!(log.contains("association rejected: protocol version 0x0002"), "{log}");
}

#[test]
fn a_peer_that_speaks_tls_to_a_port_without_it_is_logged_as_such() {
    let hello = [&[0x16, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3][..], &[7; 194]].concat();
    let log = logged(Config::default(), hello);
    assert!(log.contains("the peer speaks TLS and this port does not"), "{log}");
}

#[test]
fn a_probe_of_the_port_is_no_warning() {
    assert_eq!(logged(Config::default(), Vec::new()), "");
}

#[test]
fn an_object_with_no_uid_for_a_name_is_refused_with_a_reason_in_the_log() {
    let mut bytes = for_images().encode();
    let mut command = element(0, 0x0002, b"1.2.840.10008.5.1.4.1.1.4\0");
    command.extend(element(0, 0x0100, &[1, 0]));
    command.extend(element(0, 0x0110, &[5, 0]));
    command.extend(element(0, 0x0800, &[2, 1]));
    command.extend(element(0, 0x1000, b"../1.2"));
    bytes.extend(fragment(1, 3, &command));
    bytes.extend(fragment(1, 2, &mr("2.25.7")));
    bytes.extend(crate::support::dul::RELEASE);
    let log = logged(Config::default(), bytes);
    assert!(log.contains("AffectedSOPInstanceUID of the command is no UID"), "{log}");
    assert!(!log.contains("1.2"), "no UID in the log: {log}");
}

#[test]
fn a_series_that_arrives_is_logged_once_with_its_job_its_objects_and_its_sender() {
    use cdal::ingest::{Source, SpoolSink};
    use cdal::spool::{Config, Spool};

    let folder = tempfile::tempdir().unwrap();
    let log = Log::default();
    let copy = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter("info")
        .with_ansi(false)
        .with_writer(move || copy.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let config = Config { min_free_bytes: 0, ..Config::new(folder.path().join("spool")) };
    let (spool, _) = Spool::open(config).unwrap();
    let completion = cdal::ingest::dicom::Completion { idle: Duration::ZERO, ..Default::default() };
    let (_keep, completion) = tokio::sync::watch::channel(completion);
    let sink = SpoolSink::new(Arc::new(spool), completion, || ());
    let calling = cdal::codec::pdu::AeTitle::new("SCANNER");
    let address = [10, 0, 0, 2].into();
    sink.association_began(&Source { association: 4, address, calling });
    for sop in ["2.25.7", "2.25.8"] {
        let received = Received {
            sop_class_uid: uid(MR_IMAGE_STORAGE),
            sop_instance_uid: uid(sop),
            transfer_syntax: uid(EXPLICIT_VR_LITTLE_ENDIAN),
            association: 4,
        };
        let mut file = sink.begin().unwrap();
        let bytes = image(MR_IMAGE_STORAGE, &uid(sop), &Uid::derived(&["series"]), 1, 16);
        file.write(&bytes).unwrap();
        sink.store(&received, file.sync().unwrap()).unwrap();
    }
    sink.association_ended(4, true);
    assert_eq!(sink.complete_idle().unwrap().0, 1);
    let log = String::from_utf8_lossy(&log.0.lock().unwrap()).into_owned();
    assert_eq!(log.lines().count(), 1, "{log}");
    for words in ["INFO", "series received", "objects=2", "peer=10.0.0.2", "calling=SCANNER"] {
        assert!(log.contains(words), "{words}: {log}");
    }
}
