//! No step allocates, once every batch shape has been seen.
//!
//! What is counted: every allocation and reallocation that this program asks of its own allocator, on any thread, while
//! whole cases are segmented; the engine's kernels for the operators `cdal` are part of it. The C++ heap of ONNX Runtime
//! is another one; that it does not grow from step to step either is seen in the resident memory of the process.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use cdal::{
    domain::Volume,
    engine::{Options, Purpose, Runtime},
    phantom::phantom,
    segmenter::{Request, Segmenter},
};
use ndarray::{Array4, s};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        unsafe { System.realloc(old, layout, size) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        unsafe { System.dealloc(old, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// One test, so that nothing else allocates beside it.
#[test]
fn further_votes_and_steps_cost_not_one_allocation() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let runtime = Arc::new(Runtime::load(Purpose::Inference, None).expect("run `make runtime`"));
    let pixels = Array4::from_shape_fn((1, 1, 96, 96), |(_, _, y, x)| ((x * y) % 251) as f32);
    let picture = Volume { samples: pixels, geometry: None, nominal_range: Some((0.0, 255.0)) };
    let mut slices = phantom(1).volume;
    slices.samples = slices.samples.slice(s![.., ..5, .., ..]).to_owned();
    slices.geometry = None;
    // The lung model sees one image, whose features all batches share; of the phantom's slices each has its own.
    for (bundle, volume) in [("onnx/lung", picture), ("onnx/phantom", slices)] {
        let segmenter =
            Segmenter::open(Arc::clone(&runtime), &root.join(bundle), Options::default()).unwrap();
        let case = |votes| {
            let request = Request { votes: Some(votes), ..Request::default() };
            let before = ALLOCATIONS.load(Relaxed);
            segmenter.segment(&volume, &request).unwrap();
            ALLOCATIONS.load(Relaxed) - before
        };
        // The last batch of a case may be smaller than the others.
        for votes in [3, 9] {
            case(votes);
        }
        // The least of several: what a thread or a channel takes once in a while is not of a step.
        let least = |votes| (0..5).map(|_| case(votes)).min().expect("there are five");
        let (few, before) = (least(3), resident());
        let many = least(9);
        let grown = resident() - before;
        println!("{bundle}: {few} allocations for 3 votes, {many} for 9; memory {grown:+} KiB");
        assert!(few > 0, "the count counts");
        assert_eq!(few, many, "{bundle}");
        assert!(grown < 2048, "{bundle}: {grown} KiB");
    }
}

/// Resident memory in KiB.
fn resident() -> i64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
