//! `cdal workstation`, the real binary.

use std::time::Duration;

use cdal::deliver::serial::{Pace, push};

use crate::support::dicom::{dataset, files};
use crate::support::process::{Process, cdal, store};
use crate::support::worker::product;

#[test]
fn it_takes_objects_by_dicom_and_by_serial_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let (mut near, far) = serialport::TTYPort::pair().unwrap();
    let device = serialport::SerialPort::name(&far).unwrap();
    drop(far);
    let mut workstation = Process::start(
        cdal()
            .args(["workstation", "--dicom", "0", "--baud", "0", "--count", "2", "--serial", &device])
            .arg("--out")
            .arg(&out),
    );
    let address = workstation.dicom();

    let by_dicom = folder.path().join("a.dcm");
    std::fs::write(&by_dicom, product("a", 1).bytes).unwrap();
    store(address, &[by_dicom.clone()]);
    let line = workstation.json();
    assert_eq!(line["via"], "dicom");
    let path = std::path::PathBuf::from(line["path"].as_str().unwrap());
    assert_eq!(dataset(&path), dataset(&by_dicom));

    let by_serial = product("b", 2);
    serialport::SerialPort::set_timeout(&mut near, Duration::from_millis(20)).unwrap();
    push(&mut near, &by_serial.name, &by_serial.bytes, Pace::new(Duration::from_secs(10))).unwrap();
    let line = workstation.json();
    assert_eq!((&line["via"], &line["bytes"]), (&"serial".into(), &by_serial.bytes.len().into()));
    assert_eq!(std::fs::read(line["path"].as_str().unwrap()).unwrap(), by_serial.bytes);
    assert_eq!(files(&out).len(), 2);
    assert!(workstation.wait().success(), "it ends after two objects");
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
