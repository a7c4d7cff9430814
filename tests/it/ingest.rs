//! Images in: dcmtk's programs against the daemon.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::Duration;

use cdal::codec::dimse::Command;
use cdal::codec::part10;
use cdal::daemon::Drained;
use cdal::deliver;
use cdal::domain::Uid;
use cdal::ingest::dicom::OnRelease;

use dicom_ul::association::client::{ClientAssociation, ClientAssociationOptions};
use dicom_ul::pdu::{PDataValue, PDataValueType, Pdu};

use crate::support::daemon::{Running, settings};
use crate::support::dicom::{self, MR_IMAGE_STORAGE, files, series};
use crate::support::process::{dcmtk, store};
use crate::support::wait_for;
use crate::support::worker::Stand;

const QUICK: Stand = Stand { compute: Duration::ZERO };

#[test]
fn echoscu_is_answered_and_a_wrong_ae_title_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = settings(&folder.path().join("spool"), Vec::new());
    settings.ingest.dicom.allow = vec!["SCANNER".to_owned()];
    let daemon = Running::start(settings, QUICK);
    let echo = |options: &[&str]| dcmtk("echoscu", daemon.address(), options, &[]);
    assert!(echo(&["-aet", "SCANNER"]).status.success());
    let output = echo(&["-aet", "STRANGER"]);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("Calling AE Title Not Recognized"));
    let output = echo(&["-aet", "SCANNER", "-aec", "SOMEONE"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("Called AE Title Not Recognized"));
}

#[test]
fn a_series_becomes_one_product_in_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let destination = deliver::Config::folder("disk", &out);
    let daemon = Running::start(settings(&folder.path().join("spool"), vec![destination]), QUICK);
    let images = series(folder.path(), "a", 5);
    store(daemon.address(), &images);
    store(daemon.address(), &images[..2]); // the same again: no second job
    let product = wait_for("the product", || files(&out).pop());
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(files(&out), [product]);
    let health = *daemon.daemon().health().borrow();
    assert_eq!((health.jobs_done, health.jobs_failed), (1, 0));
    assert_eq!(daemon.stop(), Drained::Completely);

    // The datasets are kept as they came.
    let mut kept: Vec<_> = files(&folder.path().join("spool/instances"))
        .iter()
        .map(|file| dicom::dataset(file))
        .collect();
    let mut sent: Vec<_> = images.iter().map(|file| dicom::dataset(file)).collect();
    kept.sort();
    sent.sort();
    assert!(kept == sent, "the datasets differ");
}

#[test]
fn a_release_or_an_expected_count_completes_a_series_without_waiting() {
    for by_count in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let destination = deliver::Config::folder("disk", &out);
        let mut settings = settings(&folder.path().join("spool"), vec![destination]);
        let completion = &mut settings.ingest.dicom.completion;
        completion.idle = Duration::from_hours(1);
        if by_count {
            completion.instances = Some(3);
        } else {
            completion.on_release = OnRelease::Complete;
        }
        let daemon = Running::start(settings, QUICK);
        store(daemon.address(), &series(folder.path(), "a", 3));
        wait_for("the product", || files(&out).pop());
    }
}

#[test]
fn too_many_associations_are_rejected_as_transient() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = settings(&folder.path().join("spool"), Vec::new());
    settings.ingest.dicom.max_associations = 1;
    let daemon = Running::start(settings, QUICK);
    // Connections are accepted in the order in which they came.
    let first = TcpStream::connect(daemon.address()).unwrap();
    let output = dcmtk("echoscu", daemon.address(), &[], &[]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(text.contains("Rejected Transient") && text.contains("Local Limit Exceeded"), "{text}");
    drop(first);
    wait_for("a free place", || {
        dcmtk("echoscu", daemon.address(), &[], &[]).status.success().then_some(())
    });
}

#[test]
fn other_content_under_a_known_uid_is_kept_but_not_computed() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let destination = deliver::Config::folder("disk", &out);
    let daemon = Running::start(settings(&folder.path().join("spool"), vec![destination]), QUICK);
    let (sop, series) = (Uid::derived(&["one"]), Uid::derived(&["series"]));
    let files: Vec<PathBuf> = [1, 2]
        .map(|content| {
            let path = folder.path().join(format!("{content}.dcm"));
            let bytes = dicom::image(MR_IMAGE_STORAGE, &sop, &series, content, 16);
            std::fs::write(&path, bytes).unwrap();
            path
        })
        .to_vec();
    store(daemon.address(), &files);
    std::thread::sleep(Duration::from_millis(700));
    assert!(dicom::files(&out).is_empty());
    assert_eq!(dicom::files(&folder.path().join("spool/instances")).len(), 2);
}

#[test]
fn what_cannot_be_kept_is_refused_with_a_status() {
    let folder = tempfile::tempdir().unwrap();
    let mut small = settings(&folder.path().join("small"), Vec::new());
    small.ingest.dicom.max_object_bytes = 2048;
    let daemon = Running::start(small, QUICK);
    let sop = Uid::derived(&["large"]);
    let large = folder.path().join("large.dcm");
    std::fs::write(&large, dicom::image(MR_IMAGE_STORAGE, &sop, &sop, 0, 32)).unwrap();
    let output = dcmtk("storescu", daemon.address(), &["-R"], &[large]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("OutOfResources"), "{text}");
    assert_eq!(files(&folder.path().join("small/instances")).len(), 0);
    drop(daemon);

    let mut full = settings(&folder.path().join("full"), Vec::new());
    full.spool.min_free_bytes = u64::MAX;
    let daemon = Running::start(full, QUICK);
    let output = dcmtk("echoscu", daemon.address(), &[], &[]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("Rejected Transient") && text.contains("Temporary Congestion"), "{text}");
}

#[test]
fn garbage_and_half_objects_leave_the_daemon_serving_and_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Running::start(settings(&folder.path().join("spool"), Vec::new()), QUICK);
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[1, 0, 255, 255, 255, 255, 0, 0], &[4; 4096]] {
        let mut stream = TcpStream::connect(daemon.address()).unwrap();
        stream.write_all(garbage).unwrap();
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
        let _ = stream.read_to_end(&mut Vec::new());
    }
    assert!(dcmtk("echoscu", daemon.address(), &[], &[]).status.success());
    let incoming = folder.path().join("spool/incoming");
    wait_for("no temporary file", || {
        (std::fs::read_dir(&incoming).unwrap().count() == 0).then_some(())
    });
}

#[test]
fn who_is_not_at_an_allowed_address_is_not_heard() {
    let folder = tempfile::tempdir().unwrap();
    for (network, heard) in [("192.0.2.0/24", false), ("127.0.0.0/8", true)] {
        let mut settings = settings(&folder.path().join(network.replace('/', "-")), Vec::new());
        settings.ingest.dicom.allow_addresses = vec![network.parse().unwrap()];
        let daemon = Running::start(settings, QUICK);
        let output = dcmtk("echoscu", daemon.address(), &[], &[]);
        assert_eq!(output.status.success(), heard, "{network}");
    }
}

#[test]
fn a_connection_without_a_request_is_closed() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = settings(&folder.path().join("spool"), Vec::new());
    settings.ingest.dicom.artim_timeout = Duration::from_millis(100);
    settings.ingest.dicom.idle_timeout = Duration::from_millis(100);
    let daemon = Running::start(settings, QUICK);
    let mut silent = TcpStream::connect(daemon.address()).unwrap();
    silent.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    assert_eq!(silent.read(&mut [0; 8]).unwrap(), 0);

    // The same with an association that says nothing: an A-ABORT ends it.
    let mut association = associate(&daemon);
    assert!(matches!(association.receive(), Ok(Pdu::AbortRQ { .. })));
}

fn associate(daemon: &Running) -> ClientAssociation<TcpStream> {
    ClientAssociationOptions::new()
        .called_ae_title("CDAL")
        .with_presentation_context(MR_IMAGE_STORAGE, vec![dicom::EXPLICIT_VR_LITTLE_ENDIAN])
        .establish(daemon.address())
        .unwrap()
}

#[test]
fn a_series_is_not_idle_while_an_object_of_it_is_on_its_way() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let destination = deliver::Config::folder("disk", &out);
    let daemon = Running::start(settings(&folder.path().join("spool"), vec![destination]), QUICK);
    let images = series(folder.path(), "a", 2);

    // Half of the second object, then the first whole, then silence for longer than the idle time.
    let file = std::fs::read(&images[1]).unwrap();
    let object = dicom_object::from_reader(file.as_slice()).unwrap();
    let request = Command::StoreRequest {
        message_id: 1,
        sop_class_uid: dicom::uid(MR_IMAGE_STORAGE),
        sop_instance_uid: dicom::uid(object.meta().media_storage_sop_instance_uid()),
    };
    let mut association = associate(&daemon);
    let context = association.presentation_contexts()[0].id;
    let mut send = |value_type, is_last, data: &[u8]| {
        let value = PDataValue {
            presentation_context_id: context,
            value_type,
            is_last,
            data: data.to_vec(),
        };
        association.send(&Pdu::PData { data: vec![value] }).unwrap();
    };
    let (head, rest) = part10::dataset(&file).unwrap().split_at(400);
    send(PDataValueType::Command, true, &request.encode());
    send(PDataValueType::Data, false, head);
    store(daemon.address(), &images[..1]);
    std::thread::sleep(Duration::from_millis(900));
    assert!(files(&out).is_empty(), "the series was taken for complete");
    send(PDataValueType::Data, true, rest);
    wait_for("the product", || files(&out).pop());
    let kept = files(&folder.path().join("spool/instances"));
    assert_eq!(kept.len(), 2);
    assert_eq!(daemon.stop(), Drained::Completely);
    assert_eq!(files(&out).len(), 1, "one revision with both objects");
}

#[test]
fn a_late_slice_runs_the_series_again_as_a_new_revision() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let destination = deliver::Config::folder("disk", &out);
    let daemon = Running::start(settings(&folder.path().join("spool"), vec![destination]), QUICK);
    let images = series(folder.path(), "a", 3);
    for (sent, products) in [(&images[..2], 1), (&images[2..], 2)] {
        store(daemon.address(), sent);
        wait_for("the product", || (files(&out).len() == products).then_some(()));
    }
    let desk = cdal::spool::Desk::open(cdal::spool::Config::new(folder.path().join("spool")));
    let jobs = desk.unwrap().jobs(&[cdal::spool::JobState::Done]).unwrap();
    let told: Vec<_> = jobs.iter().map(|job| (job.revision, job.objects)).collect();
    assert_eq!(told, [(1, 3), (2, 3)], "both of one series, which has three objects now");
}
