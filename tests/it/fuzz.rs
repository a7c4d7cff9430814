//! The fuzz targets' kept corpora, through the targets' own functions: what the fuzzer found once stays found.

use std::fs;
use std::path::{Path, PathBuf};

use cdal::codec::{self, Source, commitment, dimse::Command, part10, serial};
use cdal::domain::{Geometry, SopReference, Volume};
use ndarray::{Array3, Array4, Axis};

use crate::project::root;
use crate::support::dicom::uid;

#[path = "../../fuzz/src/lib.rs"]
#[expect(dead_code, reason = "the fuzzer alone wants the process's panic hook")]
mod targets;

type Target = fn(&[u8]);

const TARGETS: [(&str, Target); 7] = [
    ("dicom", targets::dicom),
    ("series", targets::series),
    ("dimse", targets::dimse),
    ("serial", targets::serial),
    ("nifti", targets::nifti),
    ("manifest", targets::manifest),
    ("configuration", targets::configuration),
];

fn corpus(target: &str) -> PathBuf {
    root().join("fuzz/corpus").join(target)
}

#[test]
fn kept_inputs_are_read_or_refused() {
    for (name, target) in TARGETS {
        let inputs: Vec<_> = fs::read_dir(corpus(name)).unwrap().flatten().collect();
        assert!(inputs.len() >= 2, "{name} has no corpus");
        for input in inputs {
            target(&fs::read(input.path()).unwrap());
        }
    }
}

#[test]
fn every_target_is_built_by_the_fuzzer() {
    let manifest = fs::read_to_string(root().join("fuzz/Cargo.toml")).unwrap();
    let makefile = fs::read_to_string(root().join("Makefile")).unwrap();
    for (name, _) in TARGETS {
        assert!(manifest.contains(&format!("path = \"targets/{name}.rs\"")), "{name}");
        assert!(makefile.contains(name), "make fuzz leaves {name} out");
    }
}

/// Writes the corpora's first inputs: synthetic, made by this program's own writers.
#[test]
#[ignore = "writes into the checkout"]
fn seeds() {
    let keep = |target: &str, name: &str, bytes: &[u8]| {
        fs::create_dir_all(corpus(target)).unwrap();
        fs::write(corpus(target).join(name), bytes).unwrap();
    };
    let volume = Volume {
        samples: Array4::from_shape_fn((1, 2, 4, 6), |(_, k, j, i)| (100 * k + 10 * j + i) as f32),
        geometry: Some(Geometry {
            origin: [-7.0, 3.0, 11.5],
            direction: [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
            spacing: [1.0, 1.0, 2.5],
        }),
        nominal_range: Some((0.0, 255.0)),
    };
    let series = codec::dicom::encode_mr_series(&volume, 1).unwrap();
    keep("dicom", "slice", &series[0]);
    keep("dicom", "head", &series[0][..600]);
    for (name, bytes) in crate::attributes::kept() {
        keep("dicom", name, &bytes);
    }

    // Frames as the target reads them: [way, kind, z, z, x, x, y, y, any number x 4, trait, its value, spacing, thickness].
    let frame = |way: u8, kind: u8, z: u8, time: u8| {
        [way, kind, z, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, time, 63, 0]
    };
    let stack = (0..6).map(|k| frame(0, 0, 100 + 25 * k, 1));
    let scouts = [frame(1, 128, 0, 1), frame(2, 0, 0, 1)];
    keep(
        "series",
        "scouts",
        &scouts.into_iter().chain(stack.clone()).flatten().collect::<Vec<_>>(),
    );
    let later = (0..6).map(|k| frame(0, 0, 100 + 25 * k, 2));
    keep("series", "time-points", &stack.chain(later).flatten().collect::<Vec<_>>());

    let object = SopReference {
        sop_class_uid: uid("1.2.840.10008.5.1.4.1.1.4"),
        sop_instance_uid: uid("2.25.7"),
    };
    let push_model = commitment::PUSH_MODEL.clone();
    let (sop_class_uid, sop_instance_uid) =
        (object.sop_class_uid.clone(), object.sop_instance_uid.clone());
    let target = push_model.clone();
    for (name, command) in [
        ("echo", Command::EchoRequest { message_id: 1 }),
        ("store", Command::StoreRequest { message_id: 2, sop_class_uid, sop_instance_uid }),
        ("action", Command::ActionRequest { message_id: 3, target, action_type: 1 }),
        ("event", Command::EventReportRequest { message_id: 4, source: push_model, event_type: 2 }),
    ] {
        keep("dimse", name, &command.encode());
    }
    let (transaction, failed) = (uid("2.25.8"), vec![(object.clone(), 0x0112)]);
    let report = commitment::Report { transaction, safe: vec![object], failed };
    for (name, syntax) in [("implicit", "1.2.840.10008.1.2"), ("explicit", "1.2.840.10008.1.2.1")] {
        keep("dimse", name, &report.encode(syntax).unwrap());
    }
    let data = part10::dataset(&series[0]).unwrap();
    let value = [&(data.len() as u32 + 2).to_be_bytes()[..], &[1, 2], data].concat();
    keep("dimse", "pdata", &[&[4, 0][..], &(value.len() as u32).to_be_bytes(), &value].concat());

    let offer = serial::Offer { name: "mask.dcm".to_owned(), sha256: [7; 32] };
    let transfer = offer.transfer();
    let frames = [
        serial::Frame::new(serial::Kind::Offer, transfer, 1, 5, offer.encode()),
        serial::Frame::new(serial::Kind::Data, transfer, 2, 0, b"hello".to_vec()),
    ];
    keep("serial", "transfer", &frames.iter().flat_map(serial::Frame::encode).collect::<Vec<_>>());
    keep("serial", "offer", &offer.encode());

    let mask = Array3::<u8>::ones((2, 3, 4));
    keep("nifti", "packed", &codec::nifti::encode_mask(&Source::Raster, None, &mask).unwrap());
    let grey = volume.samples.index_axis(Axis(0), 0);
    let packed = codec::nifti::encode_image(volume.geometry.as_ref(), grey).unwrap();
    let mut plain = Vec::new();
    let mut decoder = flate2::read::GzDecoder::new(packed.as_slice());
    std::io::Read::read_to_end(&mut decoder, &mut plain).unwrap();
    keep("nifti", "plain", &plain);

    let copy = |target, name, path: &str| {
        keep(target, name, &fs::read(root().join(Path::new(path))).unwrap());
    };
    copy("manifest", "phantom", "onnx/phantom/bundle.toml");
    copy("manifest", "hippocampus", "onnx/hippocampus/bundle.toml");
    for name in ["jetson-mr", "cpu-box", "workstation"] {
        copy("configuration", name, &format!("configs/{name}.daemon.toml"));
    }
}
