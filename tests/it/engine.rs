//! What the engine tells of itself, and the mask while it grows.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use cdal::{
    domain::Volume,
    engine::{Options, Progress, Provider},
    phantom::phantom,
    segmenter::{Preview, Request, Segmenter},
};
use ndarray::{Array3, s};

use crate::project::{cdal, root, runtime, said};

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
        assert_eq!(seen[0].0, 1, "{rule}");
        assert!(seen.windows(2).all(|pair| pair[0].0 <= pair[1].0), "{rule}");
        let single = segmenter.segment(&volume, &ask(1, "never")).unwrap();
        assert_eq!(seen[0].1, single.segmentation.mask, "the first vote is shown");
        if rule == "never" {
            let votes: Vec<usize> = seen.iter().map(|(votes, _)| *votes).collect();
            assert_eq!(votes, [1, 2, 4]);
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
