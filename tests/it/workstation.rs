//! `cdal workstation`, the real binary.

use std::path::PathBuf;
use std::time::Duration;

use cdal::daemon::Drained;
use cdal::deliver::Config;

use crate::support::daemon::{Running, settings};
use crate::support::dicom::{dataset, files, series};
use crate::support::process::{Process, cdal, serial_cable, store};
use crate::support::worker::Stand;

#[test]
fn it_takes_the_product_by_dicom_and_by_serial_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let (by_dicom, by_serial) = (folder.path().join("by-dicom"), folder.path().join("by-serial"));
    let (_cable, near, far) = serial_cable(folder.path());
    let receive = |options: &[&str], out: &PathBuf| {
        let mut command = cdal();
        Process::start(
            command.args(["workstation", "--count", "1"]).args(options).arg("--out").arg(out),
        )
    };
    let mut dicom = receive(&["--dicom", "0"], &by_dicom);
    let mut serial = receive(&["--baud", "0", "--serial", &far.to_string_lossy()], &by_serial);
    let destinations = vec![
        Config::dicom("dicom", &dicom.dicom().to_string(), "WORKSTATION"),
        Config::serial("serial", near, 0),
    ];
    assert_eq!(serial.json()["ready"], true);

    let worker = Stand { compute: Duration::ZERO };
    let daemon = Running::start(settings(&folder.path().join("spool"), destinations), worker);
    store(daemon.address(), &series(folder.path(), "a", 2));
    for (process, via, out) in [(&mut dicom, "dicom", by_dicom), (&mut serial, "serial", by_serial)]
    {
        let line = process.json();
        assert_eq!(line["via"], via);
        assert_eq!(files(&out), [PathBuf::from(line["path"].as_str().unwrap())]);
        let made = files(&folder.path().join("spool/products"));
        assert_eq!(dataset(&files(&out)[0]), dataset(&made[0]));
        assert_eq!(line["bytes"], std::fs::metadata(&files(&out)[0]).unwrap().len());
        assert!(process.wait().success(), "it ends after one object");
    }
    assert_eq!(daemon.stop(), Drained::Completely);
}

#[test]
fn a_signal_ends_it_cleanly() {
    let folder = tempfile::tempdir().unwrap();
    let command = &mut cdal();
    let mut workstation =
        Process::start(command.args(["workstation", "--dicom", "0", "--out"]).arg(folder.path()));
    workstation.dicom();
    workstation.signal("-TERM");
    assert!(workstation.wait().success());
}
