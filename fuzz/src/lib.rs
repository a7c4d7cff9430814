//! What each fuzz target does with bytes from outside. The test suite runs the kept corpora through the same functions.
//!
//! A case fails by a panic that comes out of the program's own functions, by taking longer than libFuzzer's limit, or by
//! taking more memory than its limit.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use cdal::bundle::Manifest;
use cdal::codec::dicom::composition::{Member, Place, Plane, TRAITS, Traits, compose, tolerance};
use cdal::codec::pdu::{self, Pdu};
use cdal::codec::serial::{Frame, Kind, Offer};
use cdal::codec::{self, commitment, dimse::Command, stow};
use cdal::config;
use cdal::domain::Uid;
use cdal::ingest::serial::Receiver;
use tokio_util::sync::CancellationToken;

const IMPLICIT_VR_LITTLE_ENDIAN: &str = "1.2.840.10008.1.2";
const EXPLICIT_VR_LITTLE_ENDIAN: &str = "1.2.840.10008.1.2.1";

/// A DICOM file: its identity, its series while it arrives, and the case that is read from it.
pub fn dicom(bytes: &[u8]) {
    let path = file("dcm", bytes);
    let _ = codec::dicom::identify(&path);
    let _ = codec::dicom::check_whole(&path);
    for syntax in [IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN] {
        let _ = codec::dicom::series_in(bytes, &Uid::parse(syntax).expect("a UID"));
    }
    let _ = codec::dicom::read_files(&[path]);
}

/// The frames of a series, 16 bytes each: what stacks they make up.
pub fn series(bytes: &[u8]) {
    let members: Vec<Member> = bytes.chunks_exact(16).take(512).map(member).collect();
    let Ok(found) = compose(&members) else { return };
    let stacked = found.stacks.iter().flat_map(|stack| stack.order.iter().copied());
    let left_out = found.left_out.iter().map(|(member, _)| *member);
    let mut all: Vec<usize> =
        stacked.chain(found.pictures.iter().copied()).chain(left_out).collect();
    all.sort_unstable();
    assert!(all.into_iter().eq(0..members.len()), "every frame has one place");
    for stack in &found.stacks {
        let [across, within] = tolerance(stack.geometry.spacing);
        for (k, &member) in stack.order.iter().enumerate() {
            let Place::At(plane) = members[member].place else { panic!("a slice lies nowhere") };
            let at = stack.geometry.position(k as f64, 0.0, 0.0);
            let squares = (0..3).map(|axis| (at[axis] - plane.position[axis]).powi(2));
            let off = squares.sum::<f64>().sqrt();
            assert!(
                off <= across.hypot(within) * 1.01 + 1e-6,
                "a plane lies {off} mm off its grid"
            );
        }
    }
}

fn member(bytes: &[u8]) -> Member {
    const WAYS: [[[f64; 3]; 2]; 4] = [
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]],
        [[1.0, 0.0, 0.0], [0.0, 0.0, -1.0]],
        [[0.0, 1.0, 0.0], [0.0, 0.0, -1.0]],
        [[0.8, 0.6, 0.0], [-0.36, 0.48, 0.8]],
    ];
    let hundredths = |at: usize| f64::from(i16::from_le_bytes([bytes[at], bytes[at + 1]])) / 100.0;
    let any = f64::from(f32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]));
    let mut orientation = WAYS[usize::from(bytes[0] & 3)];
    let mut position = [hundredths(4), hundredths(6), hundredths(2)];
    let mut spacing = [f64::from(bytes[14]) / 64.0 + 0.01; 2];
    // A number of any size, where a file may hold one.
    match (any.is_finite(), bytes[0] >> 2 & 3) {
        (true, 1) => position[2] = any,
        (true, 2) => orientation[0][1] = any,
        (true, 3) if any > 0.0 => spacing[1] = any,
        _ => {}
    }
    let thickness = (bytes[15] > 0).then(|| f64::from(bytes[15]));
    let mut traits = Traits::default();
    traits[usize::from(bytes[12]) % TRAITS.len()] = Some((bytes[13] & 7).to_string());
    Member {
        place: match bytes[1] & 15 {
            14 => Place::Nowhere,
            15 => Place::Unreadable("ImagePositionPatient"),
            _ => Place::At(Plane { position, orientation, spacing, thickness }),
        },
        size: [if bytes[1] & 16 == 0 { 4 } else { 5 }, 4],
        channels: if bytes[1] & 32 == 0 { 1 } else { 3 },
        frame_of_reference: (bytes[1] & 64 == 0).then(|| "1.2".to_owned()),
        is_localizer: bytes[1] & 128 != 0,
        traits,
    }
}

/// What comes over an association: PDUs, commands, and the data sets of storage commitment.
pub fn dimse(bytes: &[u8]) {
    if let (Some((kind, _)), Some(body)) = (pdu::header(bytes), bytes.get(pdu::HEADER_BYTES..))
        && let Ok(read) = Pdu::parse(kind, body.to_vec())
    {
        let _ = read.encode();
    }
    match Command::parse(bytes) {
        Ok(Command::Other | Command::Failure { .. }) | Err(_) => {}
        Ok(command) => assert_eq!(Command::parse(&command.encode()), Ok(command)),
    }
    let _ = stow::failures(bytes); // of the answer that STOW-RS has for a C-STORE response
    for syntax in [IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN] {
        let _ = commitment::Request::parse(bytes.to_vec(), syntax);
        if let Ok(report) = commitment::Report::parse(bytes.to_vec(), syntax) {
            let written = report.encode(syntax).expect("what was read can be written");
            assert_eq!(commitment::Report::parse(written, syntax), Ok(report));
        }
    }
}

/// A serial line on which these bytes come, as they are and as the payloads of sound frames: a check sum keeps damage
/// away from what is behind it.
pub fn serial(bytes: &[u8]) {
    let _ = Offer::decode(bytes);
    let mut receiver = Receiver::new(|name: &str, _: &[u8]| {
        assert!(cdal::durable::is_file_name(name), "a name from outside reaches the disk");
        Ok::<(), cdal::ingest::Refusal>(())
    });
    let framed = bytes.chunks(64).enumerate().flat_map(|(sequence, payload)| {
        let offer = Offer::decode(payload);
        let (kind, transfer) = match (&offer, payload[0] % 3) {
            (Ok(offer), _) => (Kind::Offer, offer.transfer()),
            (_, 0) => (Kind::Offer, 0),
            _ => (Kind::Data, 0),
        };
        let offset = u64::from(payload[payload.len() - 1]);
        Frame::new(kind, transfer, sequence as u32, offset, payload.to_vec()).encode()
    });
    let mut line = Line(bytes.iter().copied().chain([0]).chain(framed).collect());
    let _ = receiver.run(&mut line, &CancellationToken::new());
}

/// A NIfTI file, plain or packed.
pub fn nifti(bytes: &[u8]) {
    let path = file("nii", bytes);
    let _ = codec::nifti::read(&path);
    let _ = codec::nifti::read_mask(&path);
}

/// `bundle.toml`.
pub fn manifest(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = Manifest::parse(text, Path::new("bundle.toml"));
    }
}

/// A configuration file of the daemon.
pub fn configuration(bytes: &[u8]) {
    let path = file("toml", bytes);
    match config::load_with(&[&path], []) {
        Ok(loaded) => assert!(!loaded.values().is_empty()),
        Err(error) => assert!(!error.to_string().is_empty(), "a fault without a reason"),
    }
}

/// libFuzzer ends at every panic, also at those of other crates' parsers that the program contains. To be called before
/// a target, in the fuzzer alone.
pub fn let_panics_be_contained() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| std::panic::set_hook(Box::new(|panic| eprintln!("{panic}"))));
}

/// In memory where that can be had; one for each kind and thread, written again for every case.
fn file(extension: &str, bytes: &[u8]) -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    let folder = if memory.is_dir() { memory } else { std::env::temp_dir() };
    let thread = format!("{:?}", std::thread::current().id()).replace(['(', ')'], "");
    let path = folder.join(format!("cdal-fuzz-{}-{thread}.{extension}", std::process::id()));
    std::fs::write(&path, bytes).expect("the folder for temporary files is writable");
    path
}

struct Line(VecDeque<u8>);

impl Read for Line {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
