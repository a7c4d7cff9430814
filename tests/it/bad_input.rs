//! Whatever is wrong with an input: one line on stderr, the right exit status, nothing left behind, and no
//! word about the patient.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::OnceLock,
};

use cdal::durable::hex;
use ndarray::{Array3, ArrayD};
use safetensors::{Dtype, tensor::TensorView};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::project::{cdal, reference_bundle, root, said, tensors};
use crate::support::{
    dicom::{Dataset, MR_IMAGE_STORAGE, image, uid},
    process::Process,
    wait_for,
};

const DONE: i32 = 0;
const JOB_FAILED: i32 = 1;
const USAGE: i32 = 2;
const CONFIGURATION: i32 = 78;

type Tensors = BTreeMap<String, ArrayD<f32>>;
/// What stands in a manifest, and what shall stand there.
type Edit = (&'static str, &'static str);
type Change = fn(&mut Tensors);

/// The small hippocampus and nuclei bundles, made once.
fn bundles() -> &'static [PathBuf; 2] {
    static BUNDLES: OnceLock<(TempDir, [PathBuf; 2])> = OnceLock::new();
    let (_, paths) = BUNDLES.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let make = |model, preset| reference_bundle(model, preset, folder.path()).unwrap();
        let paths = [make("hippocampus_small", "hippocampus"), make("nuclei_small", "nuclei")];
        (folder, paths)
    });
    paths
}

fn hippocampus() -> &'static Path {
    &bundles()[0]
}

/// A bundle of one's own to damage.
fn copy(bundle: &Path, to: &Path) -> PathBuf {
    let copy = to.join("bundle");
    let _ = fs::remove_dir_all(&copy);
    fs::create_dir_all(&copy).unwrap();
    for entry in fs::read_dir(bundle).unwrap().flatten() {
        fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
    }
    copy
}

/// Replaces a file of a bundle and its digest in the manifest.
fn replace(bundle: &Path, name: &str, bytes: &[u8]) {
    let hex = |bytes: &[u8]| hex(&Sha256::digest(bytes));
    let (file, manifest) = (bundle.join(name), bundle.join("bundle.toml"));
    let before = hex(&fs::read(&file).unwrap());
    fs::write(&file, bytes).unwrap();
    let text = fs::read_to_string(&manifest).unwrap();
    assert!(text.contains(&before));
    fs::write(manifest, text.replace(&before, &hex(bytes))).unwrap();
}

fn edit(bundle: &Path, from: &str, to: &str) {
    let path = bundle.join("bundle.toml");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{from}");
    fs::write(path, text.replace(from, to)).unwrap();
}

fn safetensors(tensors: &Tensors) -> Vec<u8> {
    let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, t)| {
            let data = t.iter().flat_map(|v| v.to_le_bytes()).collect();
            (name.clone(), t.shape().to_vec(), data)
        })
        .collect();
    let views = bytes.iter().map(|(name, shape, data)| {
        (name, TensorView::new(Dtype::F32, shape.clone(), data).unwrap())
    });
    safetensors::serialize(views, None).unwrap()
}

fn noise(votes: usize) -> Tensors {
    let zeros = |shape: &[usize]| ArrayD::zeros(shape);
    BTreeMap::from([
        ("x_init".into(), zeros(&[votes, 3, 32, 32])),
        ("z".into(), zeros(&[2, votes, 10])),
        ("noise".into(), zeros(&[2, votes, 3, 32, 32])),
    ])
}

/// A volume [D, H, W] as NIfTI, its values counting up.
fn nifti(path: &Path, shape: [usize; 3], change: impl FnOnce(&mut Array3<f32>)) -> PathBuf {
    let mut volume = Array3::from_shape_fn(shape, |(k, j, i)| (k * 7 + j * 3 + i) as f32);
    change(&mut volume);
    fs::write(path, cdal::codec::nifti::encode_image(None, volume.view()).unwrap()).unwrap();
    path.to_owned()
}

fn png(path: &Path, colour: png::ColorType) -> PathBuf {
    let mut encoder = png::Encoder::new(fs::File::create(path).unwrap(), 40, 36);
    encoder.set_color(colour);
    let pixels: Vec<u8> = (0..40 * 36 * colour.samples()).map(|n| (n % 251) as u8).collect();
    encoder.write_header().unwrap().write_image_data(&pixels).unwrap();
    path.to_owned()
}

/// Everything in a folder, hidden files too.
fn left_in(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// The one line with which a command fails.
fn one_line(output: &Output, status: i32) -> String {
    let text = said(output);
    assert_eq!(output.status.code(), Some(status), "{text}");
    assert_eq!(text.lines().count(), 1, "not one line: {text}");
    assert!(text.starts_with("cdal: ") && text.ends_with('\n'), "{text}");
    assert!(output.stdout.is_empty(), "{:?}", String::from_utf8_lossy(&output.stdout));
    text
}

fn segment(bundle: &Path, out: &Path, more: &[&str], input: &Path) -> Output {
    let mut arguments = vec!["segment", "--votes", "1", "--json", "--bundle"];
    arguments.extend([bundle.to_str().unwrap(), "--out", out.to_str().unwrap()]);
    arguments.extend(more);
    arguments.push(input.to_str().unwrap());
    cdal(&arguments)
}

/// Expects a refusal with status 1 that says all of `words` and leaves nothing.
fn refused(bundle: &Path, more: &[&str], input: &Path, words: &[&str]) -> String {
    let out = tempfile::tempdir().unwrap();
    let line = one_line(&segment(bundle, out.path(), more, input), JOB_FAILED);
    for word in words {
        assert!(line.contains(word), "{word:?} is not in: {line}");
    }
    assert_eq!(left_in(out.path()), Vec::<PathBuf>::new());
    line
}

#[test]
fn damaged_and_unsuitable_images() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let series = uid("2.25.77");

    let whole = image(MR_IMAGE_STORAGE, &uid("2.25.78"), &series, 1, 16);
    for (length, name) in [(whole.len() - 9, "pixels.dcm"), (400, "meta.dcm"), (140, "head.dcm")] {
        fs::write(at(name), &whole[..length]).unwrap();
        refused(hippocampus(), &[], &at(name), &[name]);
    }
    fs::write(at("empty.dcm"), "").unwrap();
    refused(hippocampus(), &[], &at("empty.dcm"), &["empty.dcm"]);

    let holes = nifti(&at("nan.nii.gz"), [4, 36, 40], |v| v[[2, 30, 7]] = f32::NAN);
    refused(hippocampus(), &[], &holes, &["slice 2, row 30, column 7", "not a finite number"]);
    let bytes = fs::read(nifti(&at("cut.nii.gz"), [4, 36, 40], |_| ())).unwrap();
    fs::write(at("cut.nii.gz"), &bytes[..bytes.len() - 60]).unwrap();
    refused(hippocampus(), &[], &at("cut.nii.gz"), &["cut.nii.gz"]);

    let volume = nifti(&at("volume.nii.gz"), [4, 36, 40], |_| ());
    refused(&bundles()[1], &[], &volume, &["1 colour channels", "nuclei takes 3"]);
    let colour = png(&at("colour.png"), png::ColorType::Rgb);
    refused(hippocampus(), &[], &colour, &["3 colour channels", "hippocampus takes 1"]);
    let huge = nifti(&at("huge.nii.gz"), [3, 129, 40], |_| ());
    refused(hippocampus(), &[], &huge, &["129 x", "larger than", "crop"]);
    let grey = png(&at("grey.png"), png::ColorType::Grayscale);
    refused(hippocampus(), &[], &grey, &["works in millimetres", "with its spacing"]);
    refused(&bundles()[1], &["--format", "seg"], &colour, &["DICOM", "--format nifti"]);

    fs::create_dir(at("nothing")).unwrap();
    fs::write(at("nothing").join("notes.txt"), "no image").unwrap();
    refused(hippocampus(), &[], &at("nothing"), &["no image found"]);
    refused(hippocampus(), &[], &at("absent.nii"), &["absent.nii", "No such file"]);
}

#[test]
fn a_volume_for_a_model_of_images() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = copy(&bundles()[1], folder.path());
    let volume = nifti(&folder.path().join("volume.nii.gz"), [4, 36, 40], |_| ());
    // Nuclei with one channel stand for lungs, whose small weights are not among the references.
    edit(&bundle, "channels = 3", "channels = 1");
    edit(&bundle, "mean = [142.07, 98.48, 132.96]", "mean = [142.07]");
    edit(&bundle, "std = [65.78, 57.05, 57.78]", "std = [65.78]");
    refused(&bundle, &[], &volume, &["graph condition", "image [N, 1, 64, 64]"]);
    if let Some(lung) = reference_bundle("lung_small", "lung", folder.path()) {
        refused(&lung, &[], &volume, &["lung takes single images", "4 slices"]);
    }
}

#[test]
fn a_bundle_that_is_not_what_it_says() {
    let folder = tempfile::tempdir().unwrap();
    let volume = nifti(&folder.path().join("v.nii.gz"), [2, 36, 40], |_| ());
    let fresh = || copy(hippocampus(), folder.path());
    refused(&folder.path().join("none"), &[], &volume, &["none/bundle.toml", "No such file"]);

    for name in ["condition.onnx", "denoiser.onnx", "golden.safetensors"] {
        let bundle = fresh();
        let mut bytes = fs::read(bundle.join(name)).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(bundle.join(name), bytes).unwrap();
        refused(&bundle, &[], &volume, &[name, "SHA-256", "copy the bundle again"]);
        fs::remove_file(bundle.join(name)).unwrap();
        refused(&bundle, &[], &volume, &[name, "No such file"]);
    }

    let bundle = fresh();
    for name in ["denoiser.onnx", "condition.onnx"] {
        replace(&bundle, name, &fs::read(bundles()[1].join(name)).unwrap());
        let graph = name.trim_end_matches(".onnx");
        refused(&bundle, &[], &volume, &["graph", graph, "64, 64]", "export the bundle again"]);
    }
    let bundle = fresh();
    replace(&bundle, "denoiser.onnx", b"\x08\x07 no graph");
    refused(&bundle, &[], &volume, &["graph denoiser does not load"]);
}

#[test]
fn a_golden_case_that_comes_out_otherwise() {
    let folder = tempfile::tempdir().unwrap();
    let volume = nifti(&folder.path().join("v.nii.gz"), [2, 36, 40], |_| ());
    let recorded = tensors(&hippocampus().join("golden.safetensors"));
    let changed = |change: Change| {
        let bundle = copy(hippocampus(), folder.path());
        let mut golden = recorded.clone();
        change(&mut golden);
        replace(&bundle, "golden.safetensors", &safetensors(&golden));
        bundle
    };
    let changes: [(Change, &str); 6] = [
        (|g| g.get_mut("mean").unwrap()[[0, 1, 5, 5]] += 0.1, "golden case of hippocampus"),
        (|g| g.get_mut("mean").unwrap().fill(f32::NAN), "mean holds NaN"),
        (|g| drop(g.remove("z")), "tensor z"),
        (|g| drop(g.insert("mean".into(), ArrayD::zeros(vec![0, 3, 32, 32]))), "another shape"),
        (|g| g.extend(noise(0)), "no votes"),
        (|g| drop(g.insert("z".into(), ArrayD::zeros(vec![2, 2, 11]))), "z has shape [2, 2, 11]"),
    ];
    for (change, words) in changes {
        refused(&changed(change), &[], &volume, &[words]);
    }
    // A changed value of the manifest is caught by it too.
    let bundle = copy(hippocampus(), folder.path());
    edit(&bundle, "beta_max = 20.0", "beta_max = 10.0");
    refused(&bundle, &[], &volume, &["golden case of hippocampus", "away from its record"]);
    let line = one_line(&cdal(&["bundle", "check", bundle.to_str().unwrap()]), JOB_FAILED);
    assert!(line.contains("golden case"), "{line}");
}

#[test]
fn a_manifest_with_faults() {
    let folder = tempfile::tempdir().unwrap();
    let volume = nifti(&folder.path().join("v.nii.gz"), [2, 36, 40], |_| ());
    let changes: [(&[Edit], &[&str]); 6] = [
        (&[("votes = 5", "votes = 5\ncolour = 1")], &["colour", "unknown field"]),
        (&[("votes = 5", "votes = \"five\"")], &["votes", "invalid type"]),
        (&[("votes = 5", "votes = = 5")], &["bundle.toml: line 5"]),
        (&[("overlap = 0.75", "overlap = 1.5")], &["windows.size", "overlap"]),
        (
            &[
                ("votes = 5", "votes = 0"),
                ("steps = 2", "steps = 99"),
                ("beta_min = 0.1", "beta_min = -1"),
            ],
            &["votes = 0", "steps = 99", "beta_min"],
        ),
        (&[("\"denoiser.onnx\"", "\"../hippocampus/denoiser.onnx\"")], &["outside the bundle"]),
    ];
    for (edits, words) in changes {
        let bundle = copy(hippocampus(), folder.path());
        for (from, to) in edits {
            edit(&bundle, from, to);
        }
        refused(&bundle, &[], &volume, words);
        let inspected = cdal(&["bundle", "inspect", bundle.to_str().unwrap()]);
        assert!(one_line(&inspected, JOB_FAILED).contains(words[0]));
    }
}

#[test]
fn recorded_noise_that_does_not_fit() {
    let folder = tempfile::tempdir().unwrap();
    let volume = nifti(&folder.path().join("v.nii.gz"), [2, 30, 30], |_| ());
    let file = folder.path().join("noise.safetensors");
    let given = ["--noise", file.to_str().unwrap()];
    refused(hippocampus(), &given, &volume, &["noise.safetensors", "No such file"]);
    fs::write(&file, "not tensors").unwrap();
    refused(hippocampus(), &given, &volume, &["recorded noise", "noise.safetensors"]);

    let mut missing = noise(1);
    missing.remove("z");
    let mut other = noise(1);
    other.insert("x_init".into(), ArrayD::zeros(vec![1, 3, 64, 64]));
    let mut flat = noise(1);
    flat.insert("noise".into(), ArrayD::zeros(vec![6, 32, 32]));
    let mut steps = noise(1);
    steps.insert("z".into(), ArrayD::zeros(vec![4, 1, 10]));
    let mut damaged = noise(1);
    damaged.get_mut("z").unwrap().fill(f32::INFINITY);
    for (tensors, words) in [
        (&missing, ["tensor z", "[T, V, nz] is missing"]),
        (&other, ["x_init has shape [1, 3, 64, 64]", "[1, 3, 32, 32]"]),
        (&flat, ["tensor noise has shape [6, 32, 32]", "[T, V, L, H, W]"]),
        (&steps, ["z has shape [4, 1, 10]", "[2, 1, 10]"]),
        (&damaged, ["tensor z", "NaN or infinity"]),
        (&noise(0), ["recorded noise", "no votes"]),
    ] {
        fs::write(&file, safetensors(tensors)).unwrap();
        refused(hippocampus(), &given, &volume, &words);
    }
    fs::write(&file, safetensors(&noise(2))).unwrap();
    let few = [given[0], given[1], "--seed", "1"];
    let out = tempfile::tempdir().unwrap();
    let output = cdal(&[
        "segment",
        "--bundle",
        hippocampus().to_str().unwrap(),
        "--out",
        out.path().to_str().unwrap(),
        "--votes",
        "3",
        few[0],
        few[1],
        volume.to_str().unwrap(),
    ]);
    assert!(one_line(&output, JOB_FAILED).contains("give --votes 2 or less"));
    assert!(left_in(out.path()).is_empty());
}

#[test]
fn results_that_cannot_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let volume = nifti(&folder.path().join("v.nii.gz"), [2, 30, 30], |_| ());
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let line = one_line(&segment(hippocampus(), &file.join("out"), &[], &volume), JOB_FAILED);
    assert!(line.contains("file/out: cannot be made"), "{line}");
    let line = one_line(&segment(hippocampus(), &file, &[], &volume), JOB_FAILED);
    assert!(line.contains("file: cannot be made"), "{line}");

    // The second file of a case cannot be written: neither is.
    let out = folder.path().join("out");
    fs::create_dir_all(out.join("v.nii.gz")).unwrap();
    let output = segment(hippocampus(), &out, &["--format", "png,nifti"], &volume);
    assert!(one_line(&output, JOB_FAILED).contains("v.nii.gz: is a directory"));
    assert_eq!(left_in(&out), [out.join("v.nii.gz")]);
}

#[test]
fn two_inputs_of_one_name_do_not_overwrite_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|name| {
        fs::create_dir(folder.path().join(name)).unwrap();
        nifti(&folder.path().join(name).join("v.nii.gz"), [2, 30, 30], |_| ())
    });
    let out = folder.path().join("out");
    let output = segment(hippocampus(), &out, &[a.to_str().unwrap()], &b);
    assert_eq!(output.status.code(), Some(JOB_FAILED));
    assert!(said(&output).contains("b/v.nii.gz: another input is named v"), "{}", said(&output));
    assert_eq!(left_in(&out), [out.join("v.nii.gz")]);
}

#[test]
fn a_library_or_provider_that_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let volume = nifti(&folder.path().join("v.nii.gz"), [2, 30, 30], |_| ());
    let out = folder.path().join("out");
    let with = |library: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cdal"));
        command.env("ORT_DYLIB_PATH", library).current_dir(root()).arg("segment");
        command.arg("--bundle").arg(hippocampus()).arg("--out").arg(&out).arg(&volume);
        let line = one_line(&command.output().unwrap(), JOB_FAILED);
        assert!(line.contains("ORT_DYLIB_PATH") && line.contains("make runtime"), "{line}");
        assert!(line.contains(library.to_str().unwrap()), "{line}");
        line
    };
    assert!(with(&folder.path().join("lib.so")).contains("not there"));
    assert!(with(Path::new("libc.so.6")).contains("OrtGetApiBase"));
    assert!(with(&volume).contains("dlopen"));

    // The project's own library is a build for the CPU.
    for provider in ["cuda", "tensorrt"] {
        let words = [format!("execution provider {provider} cannot be used")];
        refused(hippocampus(), &["--provider", provider], &volume, &[&words[0]]);
    }
    assert!(left_in(&out).is_empty());
}

#[test]
fn usage_is_told_with_status_2() {
    let bundle = hippocampus().to_str().unwrap();
    let whole = ["segment", "--bundle", bundle, "--out", "out", "x.png"];
    for (more, word) in [
        (vec!["--votes", "0"], "--votes"),
        (vec!["--votes", "1001"], "--votes"),
        (vec!["--seed", "one"], "--seed"),
        (vec!["--format", "jpeg"], "--format"),
        (vec!["--provider", "tpu"], "--provider"),
        (vec!["--threads", "0"], "--threads"),
        (vec!["--colour"], "--colour"),
    ] {
        let output = cdal(&[&whole[..], &more[..]].concat());
        assert_eq!(output.status.code(), Some(USAGE), "{more:?}");
        assert!(said(&output).contains(word), "{more:?}: {}", said(&output));
    }
    for missing in
        [&whole[..1], &whole[..3], &whole[..5], &["train"], &["serve"], &["nothing"], &[]]
    {
        assert_eq!(cdal(missing).status.code(), Some(USAGE), "{missing:?}");
    }
}

#[test]
fn a_training_configuration_with_faults() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("train.toml");
    let good = fs::read_to_string(root().join("configs/train-phantom.toml")).unwrap();
    let train = || cdal(&["train", "--config", file.to_str().unwrap()]);
    assert!(one_line(&train(), CONFIGURATION).contains("train.toml"));
    for (from, to, word) in [
        ("seed = 1\n", "seed = 1\ncolour = 2\n", "colour"),
        ("batch = 16", "batch = 0", "optimiser.batch"),
        ("batch = 16", "batch = \"many\"", "optimiser.batch"),
        ("steps = 500", "steps = = 500", "train.toml"),
    ] {
        fs::write(&file, good.replace(from, to)).unwrap();
        let line = one_line(&train(), CONFIGURATION);
        assert!(line.contains(word), "{to}: {line}");
    }

    let good = fs::read_to_string(root().join("configs/train-phantom-adversary.toml")).unwrap();
    for (from, to, word) in [
        ("batch = 16", "batch = 6", "multiple of 4"),
        ("lazy_reg = 10", "lazy_reg = 0", "adversary.lazy_reg"),
        ("r1_gamma = 1.0", "r1_gamma = -1.0", "adversary.r1_gamma"),
        ("attention = true", "attention = 1", "adversary.attention"),
        ("learning_rate = 1.25e-4", "learning_rate = nan", "adversary's learning rates"),
    ] {
        fs::write(&file, good.replace(from, to)).unwrap();
        let line = one_line(&train(), CONFIGURATION);
        assert!(line.contains(word), "{to}: {line}");
    }

    fs::create_dir_all(folder.path().join("run/last")).unwrap();
    fs::write(&file, good.replace("../runs/phantom-adversary", "run")).unwrap();
    let line = one_line(&train(), JOB_FAILED);
    assert!(line.contains("--resume"), "{line}");
    assert_eq!(left_in(&folder.path().join("run")), [folder.path().join("run/last")]);
}

/// A daemon's configuration with its folders in `folder`.
fn daemon_configuration(folder: &Path, bundle: &Path) -> PathBuf {
    let file = folder.join("daemon.toml");
    let spool = folder.join("spool");
    let text = format!(
        "[model]\nbundle = \"{}\"\nvotes = 1\n[spool]\ndirectory = \"{}\"\nmin_free_bytes = 0\n\
         [ingest.dicom]\nlisten = \"127.0.0.1:0\"\n[ingest.dicom.completion]\nidle = \"300ms\"\n",
        bundle.display(),
        spool.display()
    );
    fs::write(&file, text).unwrap();
    file
}

#[test]
fn a_daemon_that_cannot_start() {
    let folder = tempfile::tempdir().unwrap();
    let file = daemon_configuration(folder.path(), &folder.path().join("none"));
    let serve = || cdal(&["--log", "error", "serve", "--config", file.to_str().unwrap()]);
    let line = one_line(&serve(), CONFIGURATION);
    assert!(line.contains("none/bundle.toml"), "{line}");

    daemon_configuration(folder.path(), hippocampus());
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("{text}\n[runtime]\nprovider = \"cuda\"\n")).unwrap();
    assert!(one_line(&serve(), CONFIGURATION).contains("execution provider cuda"));
    fs::write(&file, format!("{text}\n[runtime]\nlibrary = \"/none/libonnxruntime.so\"\n"))
        .unwrap();
    assert!(one_line(&serve(), CONFIGURATION).contains("/none/libonnxruntime.so"));
    fs::remove_file(&file).unwrap();
    let line = one_line(&serve(), CONFIGURATION);
    assert_eq!(line.matches("No such file").count(), 1, "{line}");
}

const NAME: &str = "Sekret^Patrizia";
const PATIENT: &str = "PID-4711-X";

/// What must not be read in a log: the patient's name and identity, and every UID.
fn is_discreet(text: &str, uids: &[&str]) {
    for secret in ["Sekret", "Patrizia", PATIENT, "19600102"].iter().chain(uids) {
        assert!(!text.contains(secret), "{secret} is in: {text}");
    }
}

/// A slice with all that identifies a patient.
fn slice(number: u16, size: u16, position: f64) -> Vec<u8> {
    let pixels: Vec<u16> = (0..size * size).map(|n| n.wrapping_mul(number + 3) % 900).collect();
    let sop = format!("2.25.4711{number}");
    let dataset = Dataset::default()
        .text(0x0008, 0x0016, "UI", MR_IMAGE_STORAGE)
        .text(0x0008, 0x0018, "UI", &sop)
        .text(0x0008, 0x0060, "CS", "MR")
        .text(0x0010, 0x0010, "PN", NAME)
        .text(0x0010, 0x0020, "LO", PATIENT)
        .text(0x0010, 0x0030, "DA", "19600102")
        .text(0x0018, 0x0050, "DS", "1")
        .text(0x0020, 0x000D, "UI", "2.25.815")
        .text(0x0020, 0x000E, "UI", "2.25.816")
        .text(0x0020, 0x0013, "IS", &number.to_string())
        .text(0x0020, 0x0032, "DS", &format!("0\\0\\{position}"))
        .text(0x0020, 0x0037, "DS", "1\\0\\0\\0\\1\\0")
        .text(0x0020, 0x0052, "UI", "2.25.817")
        .number(0x0028, 0x0002, 1)
        .text(0x0028, 0x0004, "CS", "MONOCHROME2")
        .number(0x0028, 0x0010, size)
        .number(0x0028, 0x0011, size)
        .text(0x0028, 0x0030, "DS", "1\\1")
        .number(0x0028, 0x0100, 16)
        .number(0x0028, 0x0101, 12)
        .number(0x0028, 0x0102, 11)
        .number(0x0028, 0x0103, 0)
        .words(0x7FE0, 0x0010, &pixels);
    let syntax = uid(crate::support::dicom::EXPLICIT_VR_LITTLE_ENDIAN);
    let mut file = cdal::codec::part10::header(&uid(MR_IMAGE_STORAGE), &uid(&sop), &syntax);
    let dataset: Vec<u8> = dataset.into();
    file.extend(dataset);
    file
}

#[test]
fn no_patient_in_what_is_printed() {
    let folder = tempfile::tempdir().unwrap();
    let uids = ["2.25.4711", "2.25.815", "2.25.816", "2.25.817"];
    let series = |name: &str, slices: &[Vec<u8>]| {
        let path = folder.path().join(name);
        fs::create_dir(&path).unwrap();
        for (number, bytes) in slices.iter().enumerate() {
            fs::write(path.join(format!("{number}.dcm")), bytes).unwrap();
        }
        path
    };
    let good = [slice(1, 20, 0.0), slice(2, 20, 1.0), slice(3, 20, 2.0)];
    let cut = good[1][..good[1].len() - 100].to_vec();
    for (name, slices, status) in [
        ("good", good.clone(), DONE),
        ("cut", [good[0].clone(), cut, good[2].clone()], JOB_FAILED),
        ("gap", [slice(1, 20, 0.0), slice(2, 20, 1.0), slice(3, 20, 5.0)], JOB_FAILED),
        ("double", [slice(1, 20, 0.0), slice(2, 20, 0.0), slice(3, 20, 1.0)], JOB_FAILED),
        ("sizes", [slice(1, 20, 0.0), slice(2, 22, 1.0), slice(3, 20, 2.0)], JOB_FAILED),
        ("large", [slice(1, 130, 0.0), slice(2, 130, 1.0), slice(3, 130, 2.0)], JOB_FAILED),
    ] {
        let out = folder.path().join(format!("{name}-out"));
        let input = series(name, &slices);
        let output = segment(hippocampus(), &out, &["--log", "trace"], &input);
        assert_eq!(output.status.code(), Some(status), "{name}: {}", said(&output));
        is_discreet(&(said(&output) + &String::from_utf8_lossy(&output.stdout)), &uids);
        assert_eq!(left_in(&out).len(), usize::from(status == DONE), "{name}");
    }
}

#[test]
fn no_patient_in_the_log_of_the_daemon() {
    let folder = tempfile::tempdir().unwrap();
    let file = daemon_configuration(folder.path(), hippocampus());
    let log = folder.path().join("log");
    let mut command = crate::support::process::cdal();
    command.args(["--log", "trace", "serve", "--config"]).arg(file).current_dir(root());
    command.stderr(fs::File::create(&log).unwrap());
    let mut daemon = Process::start(&mut command);
    let address = daemon.dicom();
    let text = || fs::read_to_string(&log).unwrap();
    for (name, third, word) in [("good", 2.0, "1 votes"), ("gap", 9.0, "its objects are kept")] {
        let files: Vec<_> = [(1, 0.0), (2, 1.0), (3, third)]
            .map(|(number, position)| {
                let path = folder.path().join(format!("{name}-{number}.dcm"));
                let number = number + if name == "gap" { 10 } else { 0 };
                let bytes = slice(number, 20, position);
                let old = b"2.25.816";
                let at = bytes.windows(8).position(|w| w == old).unwrap();
                let mut bytes = bytes;
                bytes[at + 7] = if name == "gap" { b'8' } else { b'6' };
                fs::write(&path, bytes).unwrap();
                path
            })
            .to_vec();
        crate::support::process::store(address, &files);
        wait_for(&format!("{word:?} in the log"), || text().contains(word).then_some(()));
    }
    daemon.signal("-TERM");
    assert!(daemon.wait().success());
    is_discreet(&text(), &["2.25.4711", "2.25.815", "2.25.816", "2.25.818", "2.25.817"]);
}
