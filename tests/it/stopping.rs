//! Votes that end early: what each rule promises, on real networks.

use cdal::{
    domain::Volume,
    engine::Options,
    phantom::phantom,
    sampler::Stopping,
    segmenter::{Outcome, Request, Segmenter},
};
use ndarray::{Array3, Array4};

use crate::project::{reference_bundle, root, runtime};

fn run(segmenter: &Segmenter, volume: &Volume, votes: usize, stopping: &str) -> Outcome {
    let stopping: Stopping = stopping.parse().unwrap();
    let request = Request { votes: Some(votes), seed: 3, stopping, ..Request::default() };
    segmenter.segment(volume, &request).unwrap()
}

/// The least Dice of the labels 1 to `labels`; 1 where neither mask has a label.
fn dice(a: &Array3<u8>, b: &Array3<u8>, labels: u8) -> f64 {
    let of = |label: u8| {
        let size = |mask: &Array3<u8>| mask.iter().filter(|&&value| value == label).count();
        let both = a.iter().zip(b).filter(|&(&a, &b)| a == label && b == label).count();
        let sum = size(a) + size(b);
        if sum == 0 { 1.0 } else { 2.0 * both as f64 / sum as f64 }
    };
    (1..=labels).map(of).fold(1.0, f64::min)
}

#[test]
fn a_trained_model_ends_early_and_keeps_its_word() {
    let segmenter =
        Segmenter::open(runtime(), &root().join("onnx/phantom"), Options::default()).unwrap();
    let votes = 9;
    for seed in [7] {
        let volume = phantom(seed).volume;
        let full = run(&segmenter, &volume, votes, "never");
        assert_eq!(full.ending.votes_drawn, votes as f64);
        assert_eq!(full.ending.to_string(), "");
        let mut before = votes as f64;
        for rule in ["exact", "certified:0.97", "adaptive:0.02"] {
            let early = run(&segmenter, &volume, votes, rule);
            let (mask, ending) = (&early.segmentation.mask, early.ending);
            let found = dice(mask, &full.segmentation.mask, 2);
            println!("phantom {seed}: {ending}, found {found:.4}");
            assert!(ending.votes_drawn < before, "{rule} drew {}", ending.votes_drawn);
            before = ending.votes_drawn;
            match early.ending.rule {
                Stopping::Exact => assert_eq!(mask, &full.segmentation.mask),
                Stopping::Certified { dice } => {
                    assert!(found >= ending.dice && ending.dice >= dice, "{found} {ending}");
                }
                // An expectation, not a bound: twice the error is room enough.
                _ => assert!(found >= 0.96, "{found}"),
            }
        }
    }
}

#[test]
fn a_deadline_leaves_one_vote_at_least_and_says_what_it_cut() {
    let segmenter =
        Segmenter::open(runtime(), &root().join("onnx/phantom"), Options::default()).unwrap();
    let volume = phantom(7).volume;
    let with = |votes, stopping, milliseconds| {
        let deadline = Some(std::time::Duration::from_millis(milliseconds));
        let request =
            Request { votes: Some(votes), seed: 3, stopping, deadline, ..Request::default() };
        segmenter.segment(&volume, &request).unwrap()
    };
    let one = run(&segmenter, &volume, 1, "never").segmentation.mask;
    for stopping in [Stopping::Never, Stopping::Exact] {
        let late = with(9, stopping, 1);
        assert!(late.ending.is_cut);
        assert_eq!((late.ending.votes_drawn, late.votes), (1.0, 9));
        assert_eq!(late.segmentation.mask, one);
        assert!(late.ending.dice < 1.0, "eight votes can turn one over");
        assert!(late.ending.to_string().contains("deadline"));
    }
    let full = run(&segmenter, &volume, 3, "never");
    let in_time = with(3, Stopping::Never, 3_600_000);
    assert!(!in_time.ending.is_cut);
    assert_eq!(in_time.segmentation.mask, full.segmentation.mask);
    assert_eq!(in_time.ending.to_string(), "");
}

#[test]
fn exact_is_exact_where_votes_are_torn_and_polarity_is_inverted() {
    let scratch = tempfile::tempdir().unwrap();
    let Some(folder) = reference_bundle("lung_small", "lung-reduced", scratch.path()) else {
        return;
    };
    let network = std::fs::read_to_string(folder.join("bundle.toml")).unwrap();
    let image = Array4::from_shape_fn((1, 1, 100, 90), |(_, _, y, x)| ((x * y) % 251) as f32);
    let volume = Volume { samples: image, geometry: None, nominal_range: Some((0.0, 255.0)) };
    for at in ["image", "network"] {
        let text = network.replace("rounded = \"image\"", &format!("rounded = \"{at}\""));
        std::fs::write(folder.join("bundle.toml"), text).unwrap();
        let segmenter = Segmenter::open(runtime(), &folder, Options::default()).unwrap();
        for votes in [1, 2, 7] {
            let full = run(&segmenter, &volume, votes, "never");
            let early = run(&segmenter, &volume, votes, "exact");
            assert_eq!(early.segmentation.mask, full.segmentation.mask, "{at} {votes}");
            let certified = run(&segmenter, &volume, votes, "certified:0.9");
            let found = dice(&certified.segmentation.mask, &full.segmentation.mask, 1);
            assert!(found >= certified.ending.dice, "{at} {votes}: {found}");
        }
    }
}
