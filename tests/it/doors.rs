//! Nothing that is broken is acknowledged: five hundred objects that were cut off or contradict themselves, at every door
//! of the daemon and of the workstation, each refused with what is wrong with it.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;

use cdal::codec::dimse::Command;
use cdal::codec::part10;
use cdal::codec::serial::{Frame, Kind, MAX_PAYLOAD_BYTES, Offer, Splitter};
use cdal::daemon::{Claim, JobError, Product, Worker};
use cdal::domain::Uid;
use cdal::ingest::serial::Receiver;
use cdal::ingest::{FolderSink, Via};
use dicom_ul::pdu::{
    AssociationRQ, PDataValue, PDataValueType, Pdu, PresentationContextProposed, UserVariableItem,
    read_pdu, write_pdu,
};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use crate::codec_damage::Random;
use crate::support::daemon::{Running, settings};
use crate::support::dicom::{Dataset, EXPLICIT_VR_LITTLE_ENDIAN, MR_IMAGE_STORAGE, uid};
use crate::support::http::request;
use crate::support::process::{Process, cdal};
use crate::support::{PATIENCE, wait_for};

const ROUNDS: u64 = 500;
const RLE: &str = "1.2.840.10008.1.2.5";
const JPEG_2000: &str = "1.2.840.10008.1.2.4.90";
const SYNTAXES: [&str; 3] = [EXPLICIT_VR_LITTLE_ENDIAN, RLE, JPEG_2000];

/// An object as it is sent, and a word that the reason for its refusal has to have.
struct Object {
    sop: Uid,
    syntax: &'static str,
    data_set: Vec<u8>,
    word: &'static str,
}

impl Object {
    fn file(&self) -> Vec<u8> {
        let mut file = part10::header(&uid(MR_IMAGE_STORAGE), &self.sop, &uid(self.syntax));
        file.extend(&self.data_set);
        file
    }
}

/// Everything before the pixel data of an MR image with `frames` frames of 8 x 8 pixels.
fn head(sop: &Uid, frames: u16, rows: u16) -> Dataset {
    Dataset::default()
        .text(0x0008, 0x0016, "UI", MR_IMAGE_STORAGE)
        .text(0x0008, 0x0018, "UI", sop.as_str())
        .text(0x0008, 0x0060, "CS", "MR")
        .text(0x0010, 0x0010, "PN", "Sekret^Patrizia")
        .text(0x0020, 0x000D, "UI", "2.25.1")
        .text(0x0020, 0x000E, "UI", "2.25.77")
        .number(0x0028, 0x0002, 1)
        .text(0x0028, 0x0004, "CS", "MONOCHROME2")
        .text(0x0028, 0x0008, "IS", &frames.to_string())
        .number(0x0028, 0x0010, rows)
        .number(0x0028, 0x0011, 8)
        .number(0x0028, 0x0100, 16)
        .number(0x0028, 0x0101, 12)
        .number(0x0028, 0x0102, 11)
        .number(0x0028, 0x0103, 0)
}

/// Pixel data as items of undefined length.
fn encapsulated(fragments: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = vec![0xE0, 0x7F, 0x10, 0, b'O', b'B', 0, 0, 0xff, 0xff, 0xff, 0xff];
    bytes.extend([0xfe, 0xff, 0, 0xe0, 0, 0, 0, 0]);
    for fragment in fragments {
        bytes.extend([0xfe, 0xff, 0, 0xe0]);
        bytes.extend((fragment.len() as u32).to_le_bytes());
        bytes.extend(fragment);
    }
    bytes.extend([0xfe, 0xff, 0xdd, 0xe0, 0, 0, 0, 0]);
    bytes
}

fn fragment(syntax: &str) -> Vec<u8> {
    let mut bytes = match syntax {
        RLE => [vec![2, 0, 0, 0, 64, 0, 0, 0, 70, 0, 0, 0], vec![0; 52]].concat(),
        _ => vec![0xff, 0x4f, 0xff, 0x51],
    };
    bytes.extend([7; 12]);
    if syntax == JPEG_2000 {
        bytes.extend([0xff, 0xd9]);
    }
    bytes
}

/// A whole object with two frames, or one where it is not compressed, and where its pixel data begins and ends.
fn whole(round: u64, syntax: &'static str) -> (Object, [usize; 2]) {
    let sop = Uid::derived(&["door", &round.to_string()]);
    let frames = if syntax == EXPLICIT_VR_LITTLE_ENDIAN { 1 } else { 2 };
    let mut data_set: Vec<u8> = head(&sop, frames, 8).into();
    let begin = data_set.len();
    if frames == 1 {
        let pixels: Vec<u8> = Dataset::default().words(0x7FE0, 0x0010, &[5; 64]).into();
        data_set.extend(pixels);
        let end = data_set.len();
        return (Object { sop, syntax, data_set, word: "" }, [begin, end]);
    }
    data_set.extend(encapsulated(&[fragment(syntax), fragment(syntax)]));
    let end = data_set.len() - 8;
    (Object { sop, syntax, data_set, word: "" }, [begin, end])
}

/// One that is broken: cut anywhere before its last pixel, or at odds with itself.
fn broken(round: u64) -> Object {
    let mut random = Random(round);
    let syntax = SYNTAXES[random.below(3)];
    let (mut object, [begin, end]) = whole(round, syntax);
    let is_native = syntax == EXPLICIT_VR_LITTLE_ENDIAN;
    let head_of = |frames, rows| -> Vec<u8> { head(&object.sop, frames, rows).into() };
    let pixels = object.data_set[begin..].to_vec();
    match random.below(8) {
        0 => {
            object.data_set.truncate(begin);
            object.word = "PixelData is missing";
        }
        1 if is_native => {
            object.data_set = [head_of(1, 9), pixels].concat();
            object.word = "PixelData has 128 bytes where 144 are needed";
        }
        2 => {
            object.data_set = [head_of(3, 8), pixels].concat();
            object.word = if is_native { "where 384 are needed" } else { "2 of its 3 frames" };
        }
        3 if is_native => {
            let length = object.data_set[begin + 8..begin + 12].first_mut().unwrap();
            *length += 2;
            object.word = "PixelData (7FE0,0010)";
        }
        3 | 1 => {
            object.data_set.truncate(begin);
            object.data_set.extend(encapsulated(&[fragment(syntax)]));
            object.word = "1 of its 2 frames";
        }
        4 => {
            object.data_set.truncate(begin + 1 + random.below(end - begin - 1));
        }
        _ => {
            let cut = random.below(end);
            object.data_set.truncate(cut);
        }
    }
    object
}

/// Whether a reason says what is wrong, and nothing about the patient.
fn check_reason(round: u64, reason: &str, object: &Object) {
    let words = [
        "truncated",
        "missing",
        "frames are there",
        "are needed",
        "breaks off",
        "no fragment",
        "are no element",
        "does not fit",
    ];
    assert!(words.iter().any(|word| reason.contains(word)), "round {round}: {reason}");
    assert!(reason.contains(object.word), "round {round}: {reason}, not {:?}", object.word);
    for secret in ["Sekret", object.sop.as_str(), "2.25.77", ".part"] {
        assert!(!reason.contains(secret), "round {round}: {reason}");
    }
}

fn pdu(pdu: &Pdu) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_pdu(&mut bytes, pdu).unwrap();
    bytes
}

/// The statuses that the listener answers with, one for each object.
fn store(to: SocketAddr, objects: &[Object]) -> Vec<u16> {
    let contexts = SYNTAXES.iter().zip([1, 3, 5]).map(|(syntax, id)| PresentationContextProposed {
        id,
        abstract_syntax: MR_IMAGE_STORAGE.to_owned(),
        transfer_syntaxes: vec![(*syntax).to_owned()],
    });
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    let associate = Pdu::AssociationRQ(AssociationRQ {
        protocol_version: 1,
        calling_ae_title: "PEER".to_owned(),
        called_ae_title: "CDAL".to_owned(),
        application_context_name: "1.2.840.10008.3.1.1.1".to_owned(),
        presentation_contexts: contexts.collect(),
        user_variables: vec![
            UserVariableItem::MaxLength(16 << 10),
            UserVariableItem::ImplementationClassUID("2.25.1".to_owned()),
        ],
    });
    stream.write_all(&pdu(&associate)).unwrap();
    let mut heard = bytes::BytesMut::new();
    let mut next = |stream: &mut TcpStream| loop {
        let mut rest = &heard[..];
        if let Ok(Some(pdu)) = read_pdu(&mut rest, 1 << 20, true) {
            let taken = heard.len() - rest.len();
            let _ = heard.split_to(taken);
            return pdu;
        }
        let mut buffer = [0; 4096];
        let count = stream.read(&mut buffer).expect("an answer comes");
        assert!(count > 0, "the listener hangs up");
        heard.extend_from_slice(&buffer[..count]);
    };
    assert!(matches!(next(&mut stream), Pdu::AssociationAC(_)));
    let mut statuses = Vec::new();
    for object in objects {
        let place = SYNTAXES.iter().position(|syntax| *syntax == object.syntax).unwrap();
        let value = |value_type, data: Vec<u8>| PDataValue {
            presentation_context_id: [1, 3, 5][place],
            value_type,
            is_last: true,
            data,
        };
        let command = Command::StoreRequest {
            message_id: 1,
            sop_class_uid: uid(MR_IMAGE_STORAGE),
            sop_instance_uid: object.sop.clone(),
        };
        let command = vec![value(PDataValueType::Command, command.encode())];
        let data = vec![value(PDataValueType::Data, object.data_set.clone())];
        let message = [pdu(&Pdu::PData { data: command }), pdu(&Pdu::PData { data })].concat();
        stream.write_all(&message).unwrap();
        let Pdu::PData { data } = next(&mut stream) else { panic!("no answer") };
        statuses.push(Command::parse(&data[0].data).unwrap().response().unwrap().1);
    }
    stream.write_all(&pdu(&Pdu::ReleaseRQ)).unwrap();
    assert!(matches!(next(&mut stream), Pdu::ReleaseRP));
    statuses
}

fn all_broken() -> Vec<Object> {
    (0..ROUNDS).map(broken).collect()
}

struct Nobody;

impl Worker for Nobody {
    fn process(&mut self, _: &Claim) -> Result<Vec<Product>, JobError> {
        Ok(Vec::new())
    }
}

fn files_below(folder: &Path) -> usize {
    std::fs::read_dir(folder).map_or(0, |entries| {
        let count = |path: &Path| if path.is_dir() { files_below(path) } else { 1 };
        entries.flatten().map(|entry| count(&entry.path())).sum()
    })
}

#[test]
fn the_daemon_acknowledges_no_broken_object_by_c_store() {
    let folder = tempfile::tempdir().unwrap();
    let spool = folder.path().join("spool");
    let daemon = Running::start(settings(&spool, Vec::new()), Nobody);
    let statuses = store(daemon.address(), &all_broken());
    assert_eq!(statuses, vec![0xC000; ROUNDS as usize]);
    assert_eq!(files_below(&spool.join("instances")), 0);
    let good: Vec<Object> = SYNTAXES.map(|syntax| whole(9000, syntax).0).into();
    assert_eq!(store(daemon.address(), &good[..1]), [0]);
    assert_eq!(files_below(&spool.join("instances")), 1);
    daemon.stop();
}

#[test]
fn the_workstation_acknowledges_no_broken_object_by_c_store_and_logs_why() {
    let folder = tempfile::tempdir().unwrap();
    let (out, said) = (folder.path().join("out"), folder.path().join("said"));
    let mut command = cdal();
    command.args(["--log", "warn", "workstation", "--dicom", "0", "--out"]).arg(&out);
    let workstation = Process::start(command.stderr(std::fs::File::create(&said).unwrap()));
    let to = workstation.dicom();
    let objects = all_broken();
    assert_eq!(store(to, &objects), vec![0xC000; ROUNDS as usize]);
    assert_eq!(files_below(&out), 0);
    let said = std::fs::read_to_string(said).unwrap();
    let lines: Vec<_> = said.lines().filter(|line| line.contains("object refused")).collect();
    assert_eq!(lines.len(), objects.len());
    for ((round, object), line) in (0..).zip(&objects).zip(lines) {
        check_reason(round, line, object);
    }
    let good: Vec<Object> =
        (9000..).zip(SYNTAXES).map(|(round, syntax)| whole(round, syntax).0).collect();
    assert_eq!(store(to, &good), [0, 0, 0]);
}

#[test]
fn the_daemon_acknowledges_no_broken_object_by_http() {
    let folder = tempfile::tempdir().unwrap();
    let spool = folder.path().join("spool");
    let daemon = Running::start(settings(&spool, Vec::new()), Nobody);
    let to = daemon.daemon().http_address().unwrap();
    for (round, object) in (0..).zip(all_broken()) {
        let kind = "Content-Type: application/dicom";
        let answer = request(to, "POST", "/v1/cases", &[kind], &object.file());
        assert_eq!(answer.status, 422, "round {round}: {}", answer.text());
        check_reason(round, answer.json()["error"].as_str().unwrap(), &object);
    }
    assert_eq!(files_below(&spool.join("instances")), 0);
    daemon.stop();
}

#[test]
fn the_workstation_acknowledges_no_broken_object_by_stow() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let mut command = cdal();
    command.args(["--log", "error", "workstation", "--http", "127.0.0.1:0", "--out"]).arg(&out);
    let workstation = Process::start(&mut command);
    let to: SocketAddr = workstation.json()["http"].as_str().unwrap().parse().unwrap();
    let post = |objects: &[Object]| {
        let mut body = Vec::new();
        for object in objects {
            body.extend(b"--edge\r\nContent-Type: application/dicom\r\n\r\n");
            body.extend(object.file());
            body.extend(b"\r\n");
        }
        body.extend(b"--edge--\r\n");
        let kind = "Content-Type: multipart/related; type=\"application/dicom\"; boundary=\"edge\"";
        request(to, "POST", "/studies", &[kind], &body)
    };
    let mut objects = all_broken();
    let answer = post(&objects);
    assert_eq!(answer.status, 409, "{}", answer.text());
    let answer = answer.json();
    let failed = answer["00081198"]["Value"].as_array().unwrap();
    let nameless = answer["0008119A"]["Value"].as_array().unwrap();
    assert_eq!(failed.len() + nameless.len(), ROUNDS as usize);
    assert!(failed.len() > 300, "{}", failed.len());
    for item in failed.iter().chain(nameless) {
        assert_eq!(item["00081197"]["Value"][0], 0xC000);
    }
    assert_eq!(files_below(&out), 0);
    objects.truncate(1);
    objects.push(whole(9000, RLE).0);
    assert_eq!(post(&objects).status, 202);
    assert_eq!(post(&objects[1..]).status, 200);
}

/// A line that was recorded, and what is answered on it.
struct Line {
    given: VecDeque<u8>,
    answers: Vec<u8>,
}

impl Read for Line {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.given.read(buffer)
    }
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.answers.extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn the_serial_line_acknowledges_no_broken_object() {
    let folder = tempfile::tempdir().unwrap();
    let sink = FolderSink::open(folder.path(), |_| ()).unwrap();
    let mut receiver =
        Receiver::new(|name: &str, bytes: &[u8]| sink.keep_as(name, bytes, Via::Serial));
    let mut answer_to = |name: &str, bytes: &[u8]| {
        let offer = Offer { name: name.to_owned(), sha256: Sha256::digest(bytes).into() };
        let transfer = offer.transfer();
        let offer = Frame::new(Kind::Offer, transfer, 0, bytes.len() as u64, offer.encode());
        let mut given: VecDeque<u8> = offer.encode().into();
        for (index, piece) in bytes.chunks(MAX_PAYLOAD_BYTES).enumerate() {
            let offset = (index * MAX_PAYLOAD_BYTES) as u64;
            let sequence = index as u32 + 1;
            given.extend(
                Frame::new(Kind::Data, transfer, sequence, offset, piece.to_vec()).encode(),
            );
        }
        let mut line = Line { given, answers: Vec::new() };
        let _ = receiver.run(&mut line, &CancellationToken::new());
        let answers = Splitter::default().push(&line.answers);
        answers.into_iter().next_back().expect("an answer").unwrap()
    };
    for (round, object) in (0..).zip(all_broken()) {
        let answer = answer_to(&format!("{round}.dcm"), &object.file());
        assert_eq!(answer.header.kind, Kind::Refused, "round {round}");
        check_reason(round, &String::from_utf8(answer.payload).unwrap(), &object);
    }
    assert_eq!(files_below(folder.path()), 0);
    assert_eq!(answer_to("good.dcm", &whole(9000, JPEG_2000).0.file()).header.kind, Kind::Done);
    assert_eq!(answer_to("note.txt", b"no image").header.kind, Kind::Done);
    assert_eq!(answer_to("mask.nii.gz", b"no image").header.kind, Kind::Refused);
}

#[test]
fn other_formats_that_break_off_are_refused_by_http() {
    let folder = tempfile::tempdir().unwrap();
    let spool = folder.path().join("spool");
    let daemon = Running::start(settings(&spool, Vec::new()), Nobody);
    let to = daemon.daemon().http_address().unwrap();
    for (name, bytes) in other_formats() {
        let mut random = Random(7);
        for round in 0..60 {
            let least = if name.starts_with("nii") { bytes.len() / 2 } else { 60 };
            let cut = least + random.below(bytes.len() - least - 1);
            let answer = request(to, "POST", "/v1/cases", &[], &bytes[..cut]);
            let text = answer.text();
            assert_eq!(answer.status, 422, "{name} {round}: {cut} of {}: {text}", bytes.len());
        }
        let answer = request(to, "POST", "/v1/cases", &[], &bytes);
        assert_eq!(answer.status, 202, "{name}: {}", answer.text());
    }
    daemon.stop();
}

/// By format: an image that is whole.
fn other_formats() -> Vec<(&'static str, Vec<u8>)> {
    let mask = ndarray::Array3::<u8>::from_shape_fn((9, 20, 20), |(a, b, c)| {
        ((a * b + c * 7) % 251) as u8
    });
    let packed =
        cdal::codec::nifti::encode_mask(&cdal::codec::Source::Raster, None, &mask).unwrap();
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(packed.as_slice()).read_to_end(&mut plain).unwrap();
    let pixels: Vec<u8> = (0..60 * 40 * 3).map(|i| (i * i % 251) as u8).collect();
    let mut png = Vec::new();
    let mut encoder = png::Encoder::new(&mut png, 60, 40);
    encoder.set_color(png::ColorType::Rgb);
    encoder.write_header().unwrap().write_image_data(&pixels).unwrap();
    let mut tiff = std::io::Cursor::new(Vec::new());
    let mut encoder = tiff::encoder::TiffEncoder::new(&mut tiff).unwrap();
    encoder.write_image::<tiff::encoder::colortype::RGB8>(60, 40, &pixels).unwrap();
    vec![("nii.gz", packed), ("nii", plain), ("png", png), ("tiff", tiff.into_inner())]
}

#[test]
fn commitment_is_given_only_for_what_can_be_read_to_its_end() {
    use cdal::domain::SopReference;
    use cdal::ingest::Reading;
    use cdal::spool::{Arrival, Config, Held, Spool};
    let folder = tempfile::tempdir().unwrap();
    let reference = |sop: &Uid| SopReference {
        sop_class_uid: uid(MR_IMAGE_STORAGE),
        sop_instance_uid: sop.clone(),
    };
    // As versions before left them: nobody looked.
    let (good, half) = (whole(1, EXPLICIT_VR_LITTLE_ENDIAN).0, broken(2));
    let config = Config { min_free_bytes: 0, ..Config::new(folder.path().join("spool")) };
    let (spool, _) = Spool::open(config).unwrap();
    let station = folder.path().join("station");
    let sink = FolderSink::open(&station, |_| ()).unwrap();
    for object in [&good, &half] {
        let arrival = Arrival {
            sop_instance_uid: object.sop.clone(),
            sop_class_uid: Some(uid(MR_IMAGE_STORAGE)),
            series_instance_uid: uid("2.25.77"),
            association: 1,
            extension: "dcm".to_owned(),
        };
        let file = cdal::durable::write(&spool.incoming(), &object.file()).unwrap();
        spool.store(&arrival, file).unwrap();
        std::fs::write(station.join(format!("{}.dcm", object.sop)), object.file()).unwrap();
    }
    spool.understand(std::sync::Arc::new(Reading));
    let asked = [reference(&good.sop), reference(&half.sop)];
    assert_eq!(spool.held(&asked).unwrap(), [Held::Safe, Held::Broken]);
    assert_eq!(sink.held(&asked).unwrap(), [Held::Safe, Held::Broken]);
}

#[test]
fn the_watched_folder_takes_no_broken_object_and_says_which() {
    let folder = tempfile::tempdir().unwrap();
    let (spool, watched) = (folder.path().join("spool"), folder.path().join("watched"));
    std::fs::create_dir(&watched).unwrap();
    let objects = all_broken();
    for (round, object) in objects.iter().enumerate() {
        std::fs::write(watched.join(format!("IM{round}.dcm")), object.file()).unwrap();
    }
    let mut settings = settings(&spool, Vec::new());
    settings.ingest.folder = cdal::ingest::folder::Config {
        path: Some(watched.clone()),
        settle: std::time::Duration::from_millis(100),
        poll: std::time::Duration::from_millis(50),
    };
    let daemon = Running::start(settings, Nobody);
    for (round, object) in (0..).zip(&objects) {
        let note = watched.join(format!("refused/IM{round}.dcm.waiting.txt"));
        let note = wait_for("the note", || {
            std::fs::read_to_string(&note).ok().filter(|text| text.ends_with('\n'))
        });
        check_reason(round, &note.replace("2.25.77", ""), object);
    }
    assert_eq!(files_below(&spool.join("instances")), 0);
    daemon.stop();
}
