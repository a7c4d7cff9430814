//! A thousand damaged files, associations and serial frames through the doors they come in by: each gets a status, each
//! that is refused a reason, and the process lives on in bounded memory. Seeded: a round can be run again by its number.

use std::collections::{BTreeMap, VecDeque};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command as Program;

use cdal::codec::dimse::Command;
use cdal::codec::serial::{Frame, Kind, MAX_PAYLOAD_BYTES, Offer, Splitter};
use cdal::codec::{self, commitment};
use cdal::daemon::{Claim, JobError, Product, Worker};
use cdal::domain::Uid;
use cdal::ingest::Refusal;
use cdal::ingest::serial::Receiver;
use dicom_ul::pdu::{
    AssociationRQ, PDataValue, PDataValueType, Pdu, PresentationContextProposed, UserVariableItem,
    read_pdu, write_pdu,
};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use crate::codec_damage::{Random, damage};
use crate::support::PATIENCE;
use crate::support::daemon::{Running, settings};
use crate::support::dicom::{EXPLICIT_VR_LITTLE_ENDIAN, MR_IMAGE_STORAGE, image, series, uid};
use crate::support::http::{get, request};
use crate::support::process::{Process, cdal, dcmtk};
use crate::support::wait_for;

const ROUNDS: u64 = 1000;

/// The most memory that a process which got all of this may have had at any time. A good part of it is the program.
const MEMORY_KIB: u64 = 400 << 10;

fn peak_kib(process: &Process) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.child.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Reads what came in as the real worker does, and makes nothing of it.
struct Reader;

impl Worker for Reader {
    fn process(&mut self, claim: &Claim) -> Result<Vec<Product>, JobError> {
        match codec::read_files(&claim.files) {
            Ok(_) => Ok(Vec::new()),
            Err(error) => Err(JobError::Permanent(error.to_string())),
        }
    }
}

#[test]
fn a_thousand_damaged_dicom_files_each_get_a_status_and_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Running::start(settings(&folder.path().join("spool"), Vec::new()), Reader);
    let to = daemon.daemon().http_address().unwrap();
    let rounds: Vec<u64> = (0..ROUNDS).collect();
    let (mut answers, mut jobs) = (BTreeMap::<u16, usize>::new(), Vec::new());
    std::thread::scope(|scope| {
        let post = |rounds: &[u64]| -> Vec<(u16, Option<String>)> {
            let post = |&round| post_damaged(to, round);
            rounds.iter().map(post).collect()
        };
        let share = rounds.chunks(rounds.len() / 4);
        let senders: Vec<_> = share.map(|rounds| scope.spawn(move || post(rounds))).collect();
        for (status, job) in senders.into_iter().flat_map(|sender| sender.join().unwrap()) {
            *answers.entry(status).or_default() += 1;
            jobs.extend(job);
        }
    });
    let mut ends = BTreeMap::<String, usize>::new();
    for job in jobs {
        let report = wait_for("the job's end", || {
            let report = get(to, &job).json();
            let waits = ["received", "ready", "running"].contains(&report["state"].as_str()?);
            (!waits).then_some(report)
        });
        let state = report["state"].as_str().unwrap().to_owned();
        assert!(state == "done" || report["reason"].is_string(), "no reason: {report}");
        *ends.entry(state).or_default() += 1;
    }
    println!("answers {answers:?}, jobs {ends:?}");
    assert_eq!(answers.values().sum::<usize>(), 1000);
    assert!(
        answers[&202] > 100 && answers[&422] > 200 && ends["done"] > 100,
        "{answers:?} {ends:?}"
    );
    daemon.stop();
}

/// The answer's status and, of what is taken, the job. What can be read is not refused as unreadable, and what is refused
/// hears what is wrong with it.
fn post_damaged(to: SocketAddr, round: u64) -> (u16, Option<String>) {
    let name = round.to_string();
    let (sop, series) = (Uid::derived(&["sop", &name]), Uid::derived(&["series", &name]));
    let mut bytes = image(MR_IMAGE_STORAGE, &sop, &series, 1, 16);
    damage(&mut bytes, &mut Random(round));
    let answer = request(to, "POST", "/v1/cases", &["Content-Type: application/dicom"], &bytes);
    let job = answer.json()["jobs"][0]["href"].as_str().map(str::to_owned);
    assert_eq!(job.is_some(), answer.status == 202, "round {round}: {}", answer.text());
    let refused = (400..500).contains(&answer.status) && answer.json()["error"].is_string();
    assert!(answer.status == 202 || refused, "round {round}: {} {}", answer.status, answer.text());
    if answer.status == 422 {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &bytes).unwrap();
        let cannot_be_known = codec::dicom::identify(file.path()).is_err();
        let read = codec::read_files(&[file.path().to_owned()]);
        let reason = answer.text();
        assert!(cannot_be_known || read.is_err(), "round {round}: it can be read, and: {reason}");
        assert!(
            !reason.contains(".part") && !reason.contains("Phantom"),
            "round {round}: {reason}"
        );
    }
    (answer.status, job)
}

fn pdu(pdu: &Pdu) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_pdu(&mut bytes, pdu).unwrap();
    bytes
}

fn message(context: u8, command: &Command, data: &[u8]) -> Vec<u8> {
    let value = |value_type, data: &[u8]| PDataValue {
        presentation_context_id: context,
        value_type,
        is_last: true,
        data: data.to_vec(),
    };
    let mut values = vec![value(PDataValueType::Command, &command.encode())];
    if !data.is_empty() {
        values.push(value(PDataValueType::Data, data));
    }
    values.into_iter().flat_map(|value| pdu(&Pdu::PData { data: vec![value] })).collect()
}

/// Everything that a peer says in an association with an echo, an object, a request for commitment and a release.
fn conversation(round: u64) -> Vec<u8> {
    let context = |id, class: &str| PresentationContextProposed {
        id,
        abstract_syntax: class.to_owned(),
        transfer_syntaxes: vec![EXPLICIT_VR_LITTLE_ENDIAN.to_owned()],
    };
    let push_model = commitment::PUSH_MODEL.clone();
    let associate = Pdu::AssociationRQ(AssociationRQ {
        protocol_version: 1,
        calling_ae_title: "PEER".to_owned(),
        called_ae_title: "CDAL".to_owned(),
        application_context_name: "1.2.840.10008.3.1.1.1".to_owned(),
        presentation_contexts: vec![
            context(1, "1.2.840.10008.1.1"),
            context(3, MR_IMAGE_STORAGE),
            context(5, push_model.sop_class_uid.as_str()),
        ],
        user_variables: vec![
            UserVariableItem::MaxLength(16 << 10),
            UserVariableItem::ImplementationClassUID("2.25.1".to_owned()),
        ],
    });
    let (sop, series) = (Uid::derived(&["sop", &round.to_string()]), uid("2.25.9"));
    let file = image(MR_IMAGE_STORAGE, &sop, &series, 1, 8);
    let store = Command::StoreRequest {
        message_id: 2,
        sop_class_uid: uid(MR_IMAGE_STORAGE),
        sop_instance_uid: sop.clone(),
    };
    let object =
        cdal::domain::SopReference { sop_class_uid: uid(MR_IMAGE_STORAGE), sop_instance_uid: sop };
    let ask = commitment::Request { transaction: uid("2.25.10"), objects: vec![object] };
    let action = Command::ActionRequest { message_id: 3, target: push_model, action_type: 1 };
    [
        pdu(&associate),
        message(1, &Command::EchoRequest { message_id: 1 }, &[]),
        message(3, &store, cdal::codec::part10::dataset(&file).unwrap()),
        message(5, &action, &ask.encode(EXPLICIT_VR_LITTLE_ENDIAN).unwrap()),
        pdu(&Pdu::ReleaseRQ),
    ]
    .concat()
}

/// How a conversation ended, from the peer's side: the last thing it heard.
fn converse(to: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(to).expect("it still listens");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let _ = stream.write_all(bytes); // it may have been broken off already
    let _ = stream.shutdown(Shutdown::Write);
    let mut heard = Vec::new();
    if let Err(error) = stream.read_to_end(&mut heard) {
        assert!(!matches!(error.kind(), std::io::ErrorKind::WouldBlock), "it hangs");
    }
    let (mut rest, mut last) = (heard.as_slice(), "nothing".to_owned());
    while let Ok(Some(pdu)) = read_pdu(&mut rest, 1 << 20, true) {
        last = match pdu {
            Pdu::AssociationAC(_) => "accepted".to_owned(),
            Pdu::AssociationRJ(_) => "rejected".to_owned(),
            Pdu::ReleaseRP => "released".to_owned(),
            Pdu::AbortRQ { .. } => "aborted".to_owned(),
            Pdu::PData { data } => match Command::parse(&data[0].data).unwrap().response() {
                Some((_, status)) => format!("status {status:04X}"),
                None => "a request".to_owned(),
            },
            other => panic!("the listener says {other:?}"),
        };
    }
    last
}

#[test]
fn a_thousand_damaged_associations_leave_a_listener_that_serves_and_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let said = folder.path().join("said");
    let mut command: Program = cdal();
    command
        .args(["--log", "debug", "workstation", "--dicom", "0", "--out"])
        .arg(folder.path().join("out"))
        .stderr(std::fs::File::create(&said).unwrap());
    let workstation = Process::start(&mut command);
    let to = workstation.dicom();
    let mut ends = BTreeMap::<String, usize>::new();
    for round in 0..ROUNDS {
        let mut bytes = conversation(round);
        damage(&mut bytes, &mut Random(round));
        *ends.entry(converse(to, &bytes)).or_default() += 1;
    }
    println!("{ends:?}");
    assert!(ends["released"] > 50 && ends["aborted"] > 50, "{ends:?}");
    // As it was before: no place is taken, and the next one is served.
    assert_eq!(converse(to, &conversation(ROUNDS)), "released");
    let output = dcmtk("storescu", to, &["-R"], &series(folder.path(), "good", 2));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(peak_kib(&workstation) < MEMORY_KIB, "{} KiB", peak_kib(&workstation));
    let said = std::fs::read_to_string(said).unwrap();
    let reasons = [
        "broken off",
        "no association",
        "association rejected",
        "aborted by the peer",
        "association released",
        "closed without a request",
    ];
    let reasons = said.lines().filter(|line| reasons.iter().any(|r| line.contains(r))).count();
    assert!(reasons >= 1000, "only {reasons} ends were logged with their reason");
}

/// A line that was recorded: its end is the end of the line.
struct Recorded(VecDeque<u8>);

impl Read for Recorded {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Recorded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A file as frames.
fn transfer(name: &str, bytes: &[u8]) -> Vec<Frame> {
    let offer = Offer { name: name.to_owned(), sha256: Sha256::digest(bytes).into() };
    let transfer = offer.transfer();
    let data = bytes.chunks(MAX_PAYLOAD_BYTES).enumerate().map(|(index, piece)| {
        let offset = (index * MAX_PAYLOAD_BYTES) as u64;
        Frame::new(Kind::Data, transfer, index as u32 + 1, offset, piece.to_vec())
    });
    let offer = Frame::new(Kind::Offer, transfer, 0, bytes.len() as u64, offer.encode());
    std::iter::once(offer).chain(data).collect()
}

#[test]
fn a_thousand_damaged_serial_frames_each_get_a_status_and_none_is_taken_for_another() {
    let content: Vec<u8> = (0..20_000_u32).map(|n| (n * n / 7) as u8).collect();
    let frames = transfer("mask.dcm", &content);
    let mut line = Vec::new();
    let mut ends = BTreeMap::<String, usize>::new();
    for round in 0..ROUNDS {
        let mut random = Random(round);
        let frame = &frames[random.below(frames.len())];
        let mut bytes = frame.encode();
        bytes.pop();
        damage(&mut bytes, &mut random);
        let found = Splitter::default().push(&[&bytes[..], &[0]].concat());
        assert!(!found.is_empty() || bytes.iter().all(|&byte| byte == 0), "round {round}: no word");
        for result in found {
            let end = match &result {
                Ok(read) => {
                    assert!(read == frame, "round {round}: another frame");
                    "the frame".to_owned()
                }
                Err(error) => error.to_string(),
            };
            *ends.entry(end).or_default() += 1;
        }
        line.extend(bytes);
        line.push(0);
    }
    println!("{ends:?}");
    assert!(ends.len() >= 2 && ends.values().sum::<usize>() >= 950, "{ends:?}");

    // All of it on one line, and then the file as it should be: it is taken once, and whole.
    line.extend(frames.iter().flat_map(Frame::encode));
    let mut landed = Vec::new();
    let mut receiver = Receiver::new(|name: &str, bytes: &[u8]| {
        landed.push((Path::new(name).to_owned(), bytes.to_vec()));
        Ok::<(), Refusal>(())
    });
    let _ = receiver.run(&mut Recorded(line.into()), &CancellationToken::new());
    assert!(landed == [(Path::new("mask.dcm").to_owned(), content)], "{} files", landed.len());
}
