//! What the engine tells of itself, and the mask while it grows.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use cdal::{
    domain::{Precision, PrecisionChoice, Volume},
    engine::{Options, Progress, Provider},
    phantom::phantom,
    segmenter::{Preview, Request, Segmenter},
};
use ndarray::{Array3, s};

use crate::project::{cdal, cdal_onnx, cdal_onnx_refuses, root, runtime, said};

/// A few slices of a phantom.
fn volume() -> Volume {
    let whole = phantom(3).volume;
    Volume { samples: whole.samples.slice(s![.., 12..15, .., ..]).to_owned(), ..whole }
}

#[test]
fn a_preview_shows_the_vote_grow_and_changes_nothing() {
    let folder = root().join("onnx/phantom");
    // Without engines to build, opening at once is opening.
    let segmenter = Segmenter::open_at_once(runtime(), &folder, Options::default()).unwrap();
    let serving = segmenter.serving();
    assert_eq!((serving.provider, serving.wanted), (Provider::Cpu, Provider::Cpu));
    assert_eq!(serving.progress, Progress::Settled);
    let volume = volume();
    let ask = |votes, rule: &str| Request {
        votes: Some(votes),
        stopping: rule.parse().unwrap(),
        seed: 5,
        ..Request::default()
    };
    for rule in ["never", "exact", "certified:0.99", "adaptive:0.005"] {
        let plain = segmenter.segment(&volume, &ask(7, rule)).unwrap();
        let seen = Arc::new(Mutex::new(Vec::<(usize, Array3<u8>)>::new()));
        let show = {
            let seen = Arc::clone(&seen);
            move |segmentation: cdal::domain::Segmentation, votes| {
                seen.lock().unwrap().push((votes, segmentation.mask));
            }
        };
        let preview = Some(Preview::new(Duration::ZERO, show));
        let outcome = segmenter.segment(&volume, &Request { preview, ..ask(7, rule) }).unwrap();
        assert_eq!(outcome.segmentation, plain.segmentation, "{rule}");
        assert_eq!(outcome.ending, plain.ending, "{rule}");
        let seen = seen.lock().unwrap();
        // As many votes of these few slices as go into one batch.
        let first = seen[0].0;
        assert!((1..7).contains(&first), "{rule}: {first}");
        assert!(seen.windows(2).all(|pair| pair[0].0 <= pair[1].0), "{rule}");
        let those = segmenter.segment(&volume, &ask(first, "never")).unwrap();
        assert_eq!(seen[0].1, those.segmentation.mask, "the first votes are shown");
        if rule == "never" {
            let votes: Vec<usize> = seen.iter().map(|(votes, _)| *votes).collect();
            let doubled = std::iter::successors(Some(first), |votes| Some(2 * votes));
            assert_eq!(votes, doubled.take_while(|&votes| votes < 7).collect::<Vec<_>>());
        }
    }
    // A rest that takes no time is not worth a look.
    let preview = Preview::new(Duration::from_hours(1), |_, _| panic!("shown"));
    let request = Request { preview: Some(preview), ..ask(3, "never") };
    let outcome = segmenter.segment(&volume, &request).unwrap();
    assert_eq!(
        outcome.segmentation,
        segmenter.segment(&volume, &ask(3, "never")).unwrap().segmentation
    );
}

/// A batch takes more than all votes of one small image: there is nothing to show on the way.
#[test]
fn a_preview_of_a_case_that_is_one_batch_changes_nothing() {
    let folder = root().join("onnx/hippocampus");
    let segmenter = Segmenter::open_at_once(runtime(), &folder, Options::default()).unwrap();
    let whole = volume();
    let one = whole.samples.slice(s![.., 1..2, 4..36, 4..36]).to_owned();
    let geometry = segmenter.bundle().manifest.own_geometry();
    let volume = Volume { samples: one, geometry, ..whole };
    for votes in [1, 3] {
        let ask = || Request { votes: Some(votes), ..Request::default() };
        let plain = segmenter.segment(&volume, &ask()).unwrap();
        let preview = Some(Preview::new(Duration::ZERO, |_, _| panic!("shown")));
        let shown = segmenter.segment(&volume, &Request { preview, ..ask() }).unwrap();
        assert_eq!(shown.segmentation, plain.segmentation);
    }
}

#[test]
fn a_preview_lies_beside_the_results_until_they_are_there() {
    let folder = tempfile::tempdir().unwrap();
    let (cases, out) = (folder.path().join("cases"), folder.path().join("out"));
    let [cases_text, out_text] = [&cases, &out].map(|path| path.to_str().unwrap());
    let made = cdal(&["phantom", "--out", cases_text, "--seed", "7"]);
    assert!(made.status.success(), "{}", said(&made));
    let series = cases.join("images/phantom-00007");
    let output = cdal(&[
        "segment",
        "--bundle",
        "onnx/phantom",
        "--votes",
        "2",
        "--preview",
        "--format",
        "nifti",
        "--out",
        out_text,
        series.to_str().unwrap(),
    ]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("phantom-00007: 1 votes, "), "{}", said(&output));
    let left: Vec<_> =
        std::fs::read_dir(out).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["phantom-00007.nii.gz"]);
}

#[test]
fn a_check_names_who_ran_every_node() {
    let output = cdal(&["bundle", "check", "onnx/phantom", "--nodes"]);
    assert!(output.status.success(), "{}", said(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = text.lines().skip(1).collect();
    assert_eq!(lines.len(), 2, "{text}");
    for (line, graph) in lines.iter().zip(["condition", "denoiser"]) {
        assert!(
            line.starts_with(graph) && line.contains("nodes by CPUExecutionProvider"),
            "{line}"
        );
        assert!(line.contains(" Conv") && line.contains("GroupNorm"), "{line}");
    }
}

/// A bundle with denoisers in int8 and float16 beside the canonical one.
fn with_variants(folder: &Path) -> PathBuf {
    let series = folder.join("series");
    let made = cdal(&["phantom", "--out", series.to_str().unwrap(), "--seed", "11"]);
    assert!(made.status.success(), "{}", said(&made));
    let case = series.join("images/phantom-00011");
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let crops = path("crops.safetensors");
    let case = case.to_str().unwrap();
    let taken = cdal(&["bundle", "crops", "onnx/phantom", "--out", &crops, "--each", "6", case]);
    assert!(taken.status.success(), "{}", said(&taken));
    let shipped = root().join("onnx/phantom").to_str().unwrap().to_owned();
    let (int8, both) = (path("int8"), path("both"));
    let ask = ["quantize", "--crops", &crops, "--votes", "2"];
    let first = [&ask[..], &["--bundle", &shipped, "--out", &int8]].concat();
    cdal_onnx_refuses(
        &[&first[..], &["--least-dice", "1.01"]].concat(),
        "asked are 1.01; not written",
    );
    assert!(!Path::new(&int8).exists());
    cdal_onnx(&[&first[..], &["--least-dice", "0.95"]].concat());
    let second = [&ask[..], &["--bundle", &int8, "--out", &both]].concat();
    cdal_onnx_refuses(&second, "has a denoiser in int8 already");
    cdal_onnx(&[&second[..], &["--precision", "fp16", "--least-dice", "0.99"]].concat());
    both.into()
}

#[test]
fn a_variant_is_used_where_it_proves_itself() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = with_variants(folder.path());
    let of = |precision| Options { precision, ..Options::default() };
    let volume = volume();
    let request = Request { votes: Some(3), ..Request::default() };
    let segment = |choice| {
        let segmenter = Segmenter::open(runtime(), &bundle, of(choice)).unwrap();
        segmenter.check_golden().unwrap();
        let outcome = segmenter.segment(&volume, &request).unwrap();
        let provenance = segmenter.provenance(&outcome, 0, "");
        assert_eq!(provenance.precision, outcome.precision);
        outcome
    };
    let [exact, quick, half] =
        [PrecisionChoice::Fp32, PrecisionChoice::Int8, PrecisionChoice::Fp16].map(segment);
    assert_eq!(exact.precision, Precision::Fp32);
    let marked = |mask: &Array3<u8>| mask.iter().filter(|&&value| value > 0).count();
    for (variant, precision, dice) in
        [(&quick, Precision::Int8, 0.9), (&half, Precision::Fp16, 0.99)]
    {
        assert_eq!(variant.precision, precision);
        assert_ne!(exact.segmentation.agreement, variant.segmentation.agreement);
        let pairs = exact.segmentation.mask.iter().zip(&variant.segmentation.mask);
        let both = pairs.filter(|&(&a, &b)| a > 0 && a == b).count();
        let sum = marked(&exact.segmentation.mask) + marked(&variant.segmentation.mask);
        assert!(2.0 * both as f64 >= sum as f64 * dice, "{precision:?}: {both} of {sum}");
    }
    // Which of them is fastest is this machine's affair.
    let auto = segment(PrecisionChoice::Auto);
    let same = [&exact, &quick, &half].into_iter().find(|one| one.precision == auto.precision);
    assert_eq!(auto.segmentation, same.unwrap().segmentation);

    let shipped = root().join("onnx/phantom");
    let missing = Segmenter::open(runtime(), &shipped, of(PrecisionChoice::Fp16));
    let said = missing.unwrap_err().to_string();
    assert!(said.contains("no denoiser in fp16"), "{said}");

    // One that is not what was admitted is an error where it was asked for, and left out where it was not.
    let manifest = bundle.join("bundle.toml");
    let text = std::fs::read_to_string(&manifest).unwrap();
    let at = text.find("golden_rms").unwrap();
    let rms = text[at..].lines().next().unwrap();
    std::fs::write(&manifest, text.replace(rms, "golden_rms = 0.0")).unwrap();
    let refused = Segmenter::open(runtime(), &bundle, of(PrecisionChoice::Int8));
    assert!(refused.unwrap_err().to_string().contains("in int8 came out"));
    let auto = Segmenter::open(runtime(), &bundle, of(PrecisionChoice::Auto)).unwrap();
    assert_ne!(auto.precision().unwrap(), Precision::Int8);
    std::fs::write(bundle.join("denoiser.int8.onnx"), b"other").unwrap();
    let refused = Segmenter::open(runtime(), &bundle, of(PrecisionChoice::Int8));
    assert!(refused.unwrap_err().to_string().contains("SHA-256"));
}
