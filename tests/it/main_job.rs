//! The main job with every part real: dcmtk sends a series to `cdal serve` with the shipped model; dcmtk,
//! pynetdicom and `cdal workstation` (network and serial line) receive its SEG, and independent readers
//! find in it what `cdal segment` computes.

use std::{
    fs,
    path::{Path, PathBuf},
};

use cdal::{codec::dicom, phantom::phantom};

use crate::{
    project::{self, root, said},
    scripts::{run_python, run_tool},
    support::{
        dicom::{dataset, files},
        process::{
            self, Process, dcmtk_storescp, free_port, pynetdicom_storescp, serial_cable, store,
        },
        wait_for,
    },
};

fn series(folder: &Path) -> Vec<PathBuf> {
    fs::create_dir(folder).unwrap();
    let slices = dicom::encode_mr_series(&phantom(11).volume, 11).unwrap();
    for (number, bytes) in slices.iter().enumerate() {
        fs::write(folder.join(format!("{number:03}.dcm")), bytes).unwrap();
    }
    files(folder)
}

fn one_file(what: &str, folder: &Path) -> PathBuf {
    wait_for(what, || files(folder).into_iter().find(|path| path.metadata().unwrap().len() > 1000))
}

#[test]
fn a_series_goes_in_and_the_same_seg_comes_out_everywhere() {
    let folder = tempfile::tempdir().unwrap();
    let out = |name: &str| {
        let out = folder.path().join(name);
        fs::create_dir(&out).unwrap();
        out
    };
    let outs = ["dcmtk", "pynetdicom", "workstation", "serial"].map(out);
    let (dcmtk_port, pynetdicom_port) = (free_port(), free_port());
    let _dcmtk = dcmtk_storescp(dcmtk_port, &outs[0], &["+B"]);
    let _pynetdicom = pynetdicom_storescp(pynetdicom_port, &outs[1]);
    let (_cable, near, far) = serial_cable(folder.path());
    let workstation = |out: &Path, options: &[&str]| {
        let mut command = process::cdal();
        Process::start(command.args(["workstation", "--out"]).arg(out).args(options))
    };
    let by_dicom = workstation(&outs[2], &["--dicom", "0"]);
    let by_serial = workstation(&outs[3], &["--baud", "0", "--serial", far.to_str().unwrap()]);
    assert_eq!(by_serial.json()["ready"], true);

    let configuration = folder.path().join("it.daemon.toml");
    let text = format!(
        r#"
[model]
bundle = "{bundle}"
votes = 2

[spool]
directory = "{spool}"

[ingest.dicom]
listen = "127.0.0.1:0"
ae_title = "CDAL"

[ingest.dicom.completion]
on_release = "complete"

[[destination]]
name = "dcmtk"
kind = "dicom"
address = "127.0.0.1:{dcmtk_port}"
ae_title = "DCMTK"

[[destination]]
name = "pynetdicom"
kind = "dicom"
address = "127.0.0.1:{pynetdicom_port}"
ae_title = "PYNET"

[[destination]]
name = "workstation"
kind = "dicom"
address = "{workstation}"
ae_title = "WORKSTATION"

[[destination]]
name = "line"
kind = "serial"
path = "{near}"
baud = 0
"#,
        bundle = root().join("onnx/phantom").display(),
        spool = folder.path().join("spool").display(),
        workstation = by_dicom.dicom(),
        near = near.display(),
    );
    fs::write(&configuration, text).unwrap();
    let mut command = process::cdal();
    let mut daemon = Process::start(command.args(["serve", "--config"]).arg(&configuration));
    let address = daemon.dicom();
    let sent = series(&folder.path().join("series"));
    store(address, &sent);

    // Peers write while they receive: what counts is what the files come to hold.
    let made = one_file("the SEG to be made", &folder.path().join("spool/products"));
    let made = dataset(&made);
    let received = outs.each_ref().map(|out| one_file("the SEG to arrive", out));
    for path in &received {
        wait_for(&format!("{} to hold the SEG as made", path.display()), || {
            cdal::codec::part10::dataset(&fs::read(path).unwrap())
                .is_ok_and(|held| held == made)
                .then_some(())
        });
    }
    daemon.signal("-TERM");
    assert!(daemon.wait().success());

    // The same series once more, in one shot, with the daemon's seed and votes.
    let single = folder.path().join("single");
    let output = project::cdal(&[
        "segment",
        "--bundle",
        "onnx/phantom",
        "--votes",
        "2",
        "--format",
        "nifti",
        "--out",
        single.to_str().unwrap(),
        folder.path().join("series").to_str().unwrap(),
    ]);
    assert!(output.status.success(), "{}", said(&output));
    let mask = single.join("series.nii.gz");
    let arguments: Vec<&Path> =
        [&received[0], &mask].into_iter().chain(&sent).map(AsRef::as_ref).collect();
    run_python("check_seg.py", &arguments).expect("the project's Python reads the SEG");
    let said =
        run_tool("dciodvfy", &[Path::new("-new"), &received[0]]).expect("dicom3tools is there");
    let complaints: Vec<_> = said
        .lines()
        .filter(|line| line.starts_with("Error") || line.starts_with("Warning"))
        .collect();
    assert!(complaints.is_empty(), "{complaints:?}");
}
