//! The same instance is the same whatever way it came: another transfer syntax, another File Meta Information, what an
//! archive added. What is not the same is named.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cdal::codec::dicom::differences;
use cdal::daemon::{Claim, JobError, Product, Worker};
use cdal::ingest::{FolderSink, Reading, Via, folder};
use cdal::spool::{Arrival, Config, Spool, Stored};
use dicom_core::{PrimitiveValue, Tag, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::InMemDicomObject;

use crate::scripts::run_tool;
use crate::support::daemon::{Running, settings};
use crate::support::dicom::{MR_IMAGE_STORAGE, uid};
use crate::support::http::{get, post_files};
use crate::support::process::{dcmtk, store};
use crate::support::wait_for;
use crate::support::worker::Stand;
use crate::synthetic as made;

/// The same instance in all the ways that are met, by name.
fn ways(folder: &Path, slice: usize) -> Vec<(&'static str, PathBuf)> {
    let file = |name: &str| format!("{slice}-{name}.dcm");
    let plain = made::write(folder, &file("explicit"), made::slice(slice));
    let implicit = uids::IMPLICIT_VR_LITTLE_ENDIAN;
    let mut added = made::slice(slice);
    made::put(&mut added, tags::INSTANCE_AVAILABILITY, VR::CS, "ONLINE");
    made::put(&mut added, tags::RETRIEVE_AE_TITLE, VR::AE, "ARCHIVE");
    made::put(&mut added, tags::RESCALE_SLOPE, VR::DS, "1");
    made::put(&mut added, Tag(0x0009, 0x0010), VR::LO, "ARCHIVE 1.0");
    made::put(&mut added, tags::ACCESSION_NUMBER, VR::SH, "B2");
    let mut written = made::slice(slice);
    made::put(&mut written, tags::PIXEL_SPACING, VR::DS, "0.500\\ 7.5e-1 ");
    made::put(&mut written, tags::PATIENT_NAME, VR::PN, format!("{}^^^", made::PATIENT));
    let mut ways = vec![
        ("implicit", made::write_as(folder, &file("implicit"), made::slice(slice), implicit)),
        ("attributes added", made::write(folder, &file("added"), added)),
        ("numbers written otherwise", made::write(folder, &file("written"), written)),
        ("padded", folder.join(file("padded"))),
        ("explicit", plain.clone()),
    ];
    let bytes = std::fs::read(&plain).unwrap();
    std::fs::write(folder.join(file("padded")), [bytes, vec![0; 512]].concat()).unwrap();
    for (tool, option, name) in [
        ("dcmconv", "+g=", "group lengths"),
        ("dcmcrle", "+un", "RLE"),
        ("dcmcjpeg", "+e1", "JPEG Lossless"),
        ("gdcmconv", "--j2k", "JPEG 2000"),
    ] {
        let packed = folder.join(file(name));
        if run_tool(tool, &[option.as_ref(), &plain, &packed]).is_some() && packed.exists() {
            ways.insert(0, (name, packed));
        }
    }
    ways
}

#[test]
fn one_instance_in_other_bytes_has_no_differences() {
    let folder = tempfile::tempdir().unwrap();
    let plain = made::write(folder.path(), "plain.dcm", made::slice(3));
    let ways = ways(folder.path(), 3);
    assert!(ways.len() >= 7, "dcmtk and GDCM are not installed");
    for (name, file) in &ways {
        assert_eq!(differences(&plain, file).unwrap(), Vec::<String>::new(), "{name}");
    }
    let enhanced = made::write(folder.path(), "enhanced.dcm", made::enhanced(&[1, 0]));
    let implicit = uids::IMPLICIT_VR_LITTLE_ENDIAN;
    let other = made::write_as(folder.path(), "implicit.dcm", made::enhanced(&[1, 0]), implicit);
    assert_eq!(differences(&enhanced, &other).unwrap(), Vec::<String>::new());
}

#[test]
fn what_differs_is_named_without_its_value() {
    type Change = fn(&mut InMemDicomObject);
    let changes: [(&str, Change); 7] = [
        ("PatientID", |o| made::put(o, tags::PATIENT_ID, VR::LO, "OTHER")),
        ("PatientName", |o| made::put(o, tags::PATIENT_NAME, VR::PN, "Other^Name")),
        ("PixelSpacing", |o| made::put(o, tags::PIXEL_SPACING, VR::DS, "0.5\\0.7501")),
        ("ImagePositionPatient", |o| {
            made::put_numbers(o, tags::IMAGE_POSITION_PATIENT, &[1.0, 2.0, 3.0]);
        }),
        ("RescaleSlope", |o| made::put(o, tags::RESCALE_SLOPE, VR::DS, "2")),
        ("SeriesInstanceUID", |o| made::put(o, tags::SERIES_INSTANCE_UID, VR::UI, "1.2.3.99")),
        ("pixels", |o| {
            let mut pixels = vec![7_u16; usize::from(made::ROWS * made::COLUMNS)];
            pixels[5] = 8;
            made::put(o, tags::PIXEL_DATA, VR::OW, PrimitiveValue::U16(pixels.into()));
        }),
    ];
    let folder = tempfile::tempdir().unwrap();
    let plain = made::write(folder.path(), "plain.dcm", made::slice(3));
    for (name, change) in changes {
        let mut object = made::slice(3);
        change(&mut object);
        let implicit = uids::IMPLICIT_VR_LITTLE_ENDIAN;
        let other = made::write_as(folder.path(), "other.dcm", object, implicit);
        assert_eq!(differences(&plain, &other).unwrap(), [name]);
    }
    let one = made::write(folder.path(), "one.dcm", made::enhanced(&[1, 0]));
    let two = made::write(folder.path(), "two.dcm", made::enhanced(&[0, 1]));
    let named = differences(&one, &two).unwrap();
    assert_eq!(named, ["PerFrameFunctionalGroupsSequence", "pixels"]);
}

#[test]
fn a_series_sent_again_in_another_way_changes_nothing() {
    let home = tempfile::tempdir().unwrap();
    let files = tempfile::tempdir().unwrap();
    let watched = home.path().join("in");
    let mut settings = settings(&home.path().join("spool"), vec![]);
    settings.ingest.folder = folder::Config {
        path: Some(watched.clone()),
        settle: Duration::from_millis(100),
        poll: Duration::from_millis(50),
    };
    let daemon = Running::start(settings, Stand { compute: Duration::ZERO });
    let to = daemon.daemon().http_address().unwrap();
    let slices: Vec<Vec<(&str, PathBuf)>> = (0..3).map(|slice| ways(files.path(), slice)).collect();
    let way = |name: &str| -> Vec<PathBuf> {
        slices.iter().map(|ways| ways.iter().find(|way| way.0 == name).unwrap().1.clone()).collect()
    };
    // First from the folder, then by association and by HTTP.
    std::fs::create_dir(home.path().join("series")).unwrap();
    for (index, file) in way("explicit").iter().enumerate() {
        std::fs::copy(file, home.path().join(format!("series/{index}.dcm"))).unwrap();
    }
    std::fs::rename(home.path().join("series"), watched.join("series")).unwrap();
    let done = || {
        let jobs = get(to, "/v1/status").json()["jobs"].clone();
        (jobs[0]["state"] == "done").then_some(jobs)
    };
    wait_for("the series to be done", done);
    wait_for("the shelf", || watched.join("taken/series").exists().then_some(()));
    store(daemon.address(), &way("explicit"));
    let sent = dcmtk("storescu", daemon.address(), &["-R", "-xi"], &way("explicit"));
    assert!(sent.status.success(), "{}", String::from_utf8_lossy(&sent.stderr));
    for name in ["implicit", "attributes added", "numbers written otherwise", "padded", "RLE"] {
        let answer = post_files(to, "form-data", &way(name));
        assert_eq!(answer.status, 202, "{name}: {}", answer.text());
        assert_eq!(answer.json()["jobs"][0]["new_files"], 0, "{name}: {}", answer.text());
    }
    let jobs = done().expect("it is still done");
    assert_eq!(jobs.as_array().unwrap().len(), 1, "{jobs}");
    assert_eq!((&jobs[0]["objects"], &jobs[0]["revision"]), (&3.into(), &1.into()), "{jobs}");

    // Another content still stops the job, and says what it is.
    let mut other = made::slice(1);
    made::put(&mut other, tags::PIXEL_SPACING, VR::DS, "0.6\\0.75");
    post_files(to, "form-data", &[made::write(files.path(), "other.dcm", other)]);
    let jobs = get(to, "/v1/status").json()["jobs"].clone();
    assert_eq!(jobs[0]["state"], "quarantined", "{jobs}");
    let reason = jobs[0]["reason"].as_str().unwrap();
    assert!(reason.ends_with("different content: PixelSpacing differ"), "{reason}");
    daemon.stop();
}

#[test]
fn the_workstation_keeps_one_file_of_an_instance_whichever_way_it_comes() {
    let folder = tempfile::tempdir().unwrap();
    let station = folder.path().join("station");
    let sink = FolderSink::open(&station, |_| ()).unwrap();
    let keep = |path: &Path| {
        let file = cdal::durable::write(&station, &std::fs::read(path).unwrap()).unwrap();
        sink.keep(file, None).unwrap();
        std::fs::read_dir(&station).unwrap().count()
    };
    for (name, file) in ways(folder.path(), 0) {
        assert_eq!(keep(&file), 1, "{name}");
    }
    let mut other = made::slice(0);
    made::put(&mut other, tags::PATIENT_ID, VR::LO, "OTHER");
    assert_eq!(keep(&made::write(folder.path(), "other.dcm", other)), 2);
    // By serial line, where a name says nothing about the content, other bytes are another file.
    sink.keep_as("note.txt", b"one", Via::Serial).unwrap();
    sink.keep_as("note.txt", b"two", Via::Serial).unwrap();
    assert_eq!(std::fs::read_dir(&station).unwrap().count(), 4);
}

/// Fails until it is told otherwise.
struct Moody(Arc<AtomicBool>);

impl Worker for Moody {
    fn process(&mut self, claim: &Claim) -> Result<Vec<Product>, JobError> {
        if self.0.load(Ordering::SeqCst) {
            return Stand { compute: Duration::ZERO }.process(claim);
        }
        Err(JobError::Permanent("not today".to_owned()))
    }
}

#[test]
fn a_failed_series_is_tried_again_when_all_of_it_is_sent_again() {
    let folder = tempfile::tempdir().unwrap();
    let works = Arc::new(AtomicBool::new(false));
    let settings = settings(&folder.path().join("spool"), vec![]);
    let daemon = Running::start(settings, Moody(Arc::clone(&works)));
    let to = daemon.daemon().http_address().unwrap();
    let files: Vec<PathBuf> = (0..3)
        .map(|slice| made::write(folder.path(), &format!("{slice}.dcm"), made::slice(slice)))
        .collect();
    let job = |state: &'static str, attempts: u64| {
        wait_for(state, || {
            let jobs = get(to, "/v1/status").json()["jobs"].clone();
            let is_so = jobs[0]["state"] == state && jobs[0]["attempts"] == attempts;
            is_so.then(|| assert_eq!(jobs.as_array().unwrap().len(), 1, "{jobs}"))
        });
    };
    store(daemon.address(), &files);
    job("failed", 1);
    works.store(true, Ordering::SeqCst);
    // A part of it is no series.
    post_files(to, "form-data", &files[..2]);
    job("failed", 1);
    post_files(to, "form-data", &files[2..]);
    job("done", 1);
    // Done it stays, however often it comes.
    store(daemon.address(), &files);
    job("done", 1);
    daemon.stop();
}

#[test]
fn a_whole_file_takes_the_place_of_one_that_breaks_off() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config { min_free_bytes: 0, ..Config::new(folder.path().join("spool")) };
    let (spool, _) = Spool::open(config).unwrap();
    let bytes = std::fs::read(made::write(folder.path(), "a.dcm", made::slice(0))).unwrap();
    let bring = |bytes: &[u8]| {
        let arrival = Arrival {
            sop_instance_uid: uid("1.2.3.4.1"),
            sop_class_uid: Some(uid(MR_IMAGE_STORAGE)),
            series_instance_uid: uid("1.2.3.2"),
            association: 1,
            extension: "dcm".to_owned(),
        };
        spool.store(&arrival, cdal::durable::write(&spool.incoming(), bytes).unwrap()).unwrap()
    };
    // As a version before took it.
    assert!(matches!(bring(&bytes[..bytes.len() - 9]), Stored::Accepted { instances: 1, .. }));
    spool.understand(Arc::new(Reading));
    assert!(matches!(bring(&bytes), Stored::Accepted { instances: 1, .. }));
    assert_eq!(bring(&bytes), Stored::Duplicate);
}
