//! `cargo bench --bench pieces`: the inner pieces by themselves, with criterion.
//!
//! `cargo bench --bench pieces -- --save-baseline before`, then `-- --baseline before`, tells what a change gave.

use std::{hint::black_box, path::Path};

use cdal::{
    bundle::{Bundle, prepare},
    codec::{self, dicom::encode_mr_series},
    phantom::phantom,
    sampler::{Agreement, Draw, Noise, Philox, Tally, Voice, reachable, upset},
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ndarray::Array3;

/// Pixels of the lung preset's image.
const SIDE: usize = 256;

fn sampler(criterion: &mut Criterion) {
    let noise = Philox::new(1, 2);
    let mut row = vec![0.0; SIDE * SIDE];
    let mut group = criterion.benchmark_group("256 x 256");
    group.throughput(Throughput::Elements((SIDE * SIDE) as u64));
    group
        .bench_function("noise", |b| b.iter(|| noise.fill(0, 1, Draw::Start, black_box(&mut row))));

    let sample = Array3::from_shape_vec((1, SIDE, SIDE), row.clone()).expect("as many");
    let mut tally = Tally::new([1, SIDE, SIDE]);
    group.bench_function("a vote counted", |b| b.iter(|| tally.add(black_box(sample.view()))));
    let mut tally = Tally::new([1, SIDE, SIDE]);
    (0..5).for_each(|_| tally.add(sample.view()));
    group.bench_function("mask", |b| b.iter(|| black_box(&tally).mask()));
    group.bench_function("reachable means", |b| b.iter(|| reachable(black_box(&tally), 30)));
    group.bench_function("agreement fitted", |b| {
        b.iter(|| Agreement::fit([black_box(&tally)], &[0]));
    });
    group.finish();

    let voices: Vec<Voice> =
        (0..8).map(|n| Voice { stand: if n < 5 { 1 } else { -1 }, turnover: 0.1 }).collect();
    criterion.bench_function("a voxel's upset among 8 windows", |b| {
        b.iter(|| upset(black_box(&voices), false));
    });
}

fn cases(criterion: &mut Criterion) {
    let volume = phantom(7).volume;
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let slices = encode_mr_series(&volume, 7).expect("a phantom has a place in space");
    for (number, bytes) in slices.iter().enumerate() {
        std::fs::write(folder.path().join(format!("{number:03}.dcm")), bytes).expect("a slice");
    }
    let bundle = Path::new(env!("CARGO_MANIFEST_DIR")).join("onnx/hippocampus");
    criterion.bench_function("bundle opened, digests checked", |b| {
        b.iter(|| Bundle::open(black_box(&bundle)).expect("the bundle is sound"));
    });
    let manifest = Bundle::open(&bundle).expect("the bundle is sound").manifest;
    let count = slices.len();
    criterion.bench_function(&format!("series of {count} slices written"), |b| {
        b.iter(|| encode_mr_series(black_box(&volume), 7).expect("it was before"));
    });
    criterion.bench_function(&format!("series of {count} slices read"), |b| {
        b.iter(|| codec::read(black_box(folder.path())).expect("a series"));
    });
    criterion.bench_function("volume prepared", |b| {
        b.iter(|| prepare(&manifest, black_box(&volume)).expect("the model takes it"));
    });
}

criterion_group!(pieces, sampler, cases);
criterion_main!(pieces);
