//! Losses and gradients of the training sessions against the recorded ones of the published model.
//!
//! A binary of its own: one runtime library serves one process, and this one is the training build.
//! The training API keeps gradients to itself. Without momenta and with an epsilon that dwarfs the gradients,
//! Adam is plain gradient descent, w - rate/epsilon · g, and with a rate large enough the weights tell the gradient.

#[allow(dead_code, reason = "shared with the other integration tests, which use the rest")]
#[path = "../it/project.rs"]
mod project;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use cdal::{
    engine::{Purpose, Runtime},
    train::{Inputs, Outputs, TrainingSession},
};
use ndarray::{Array1, Array4, ArrayD, aview1};
use project::{cdal_onnx, reference, tensors};
use safetensors::SafeTensors;

const MODELS: [&str; 3] = ["hippocampus", "lung", "nuclei"];
const EPSILON: f32 = 1_099_511_627_776.0; // 2^40

type Named = BTreeMap<String, ArrayD<f32>>;

fn training_runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME
        .get_or_init(|| Runtime::load(Purpose::Training, None).expect("run `make runtime` first"))
}

fn is_supported() -> bool {
    if cfg!(not(target_arch = "x86_64")) {
        println!("left out: no training build of ONNX Runtime is published for this processor");
    }
    cfg!(target_arch = "x86_64")
}

/// A recorded file of a small model.
fn recorded(model: &str, file: &str) -> Option<PathBuf> {
    reference(&format!("{model}_small"), &format!("{file}.safetensors"))
}

/// The artifacts of a small model with the recorded weights.
fn artifacts(model: &str, out: &Path, more: &[&str]) -> PathBuf {
    let (folder, epsilon) = (out.join("artifacts"), EPSILON.to_string());
    let path = |path: PathBuf| path.to_str().unwrap().to_owned();
    let parameters = path(reference(&format!("{model}_small"), "parameters.json").unwrap());
    let discriminator = path(recorded(model, "discriminator").unwrap());
    let generator = recorded(model, "generator").map(path);
    let mut arguments = vec![
        "artifacts",
        "--parameters",
        &parameters,
        "--preset",
        model,
        "--epsilon",
        &epsilon,
        "--betas",
        "0",
        "0",
        "--adversary",
        "--adversary-betas",
        "0",
        "0",
        "--adversary-checkpoint",
        &discriminator,
        "--out",
        folder.to_str().unwrap(),
    ];
    if let Some(generator) = &generator {
        arguments.extend(["--checkpoint", generator]);
    }
    arguments.extend(more);
    cdal_onnx(&arguments);
    folder
}

fn session(artifacts: &Path) -> TrainingSession {
    let checkpoint = artifacts.join("checkpoint");
    TrainingSession::load(training_runtime(), artifacts, &checkpoint, 2).unwrap()
}

fn weights(session: &TrainingSession, artifacts: &Path) -> Named {
    let names: Vec<_> = tensors(&artifacts.join("parameters.safetensors")).into_keys().collect();
    session.named_parameters(&names).unwrap()
}

/// What a first step finds, and the gradients that it goes down.
fn gradients(artifacts: &Path, inputs: &Inputs<'_>) -> (Outputs, Named) {
    const SCALE: f32 = 1_073_741_824.0; // 2^30: rounding of the weights stays far below the gradients
    let mut session = session(artifacts);
    let before = weights(&session, artifacts);
    let found = session.step(inputs, SCALE * EPSILON).unwrap();
    let gradients = weights(&session, artifacts)
        .into_iter()
        .map(|(name, after)| {
            let gradient = (&before[&name] - &after) / SCALE;
            (name, gradient)
        })
        .collect();
    (found, gradients)
}

/// Every recorded gradient within 1e-3 in relative L2; below 1e-5 of the largest, within 1e-3 of that. Those of a
/// bias before a norm, of the keys of an attention and of D's last biases under R1 are zero but for rounding.
fn assert_gradients(what: &str, found: &Named, recorded: &Named, prefix: &str) {
    let norm =
        |values: &ArrayD<f32>| values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    let expected: BTreeMap<_, _> = recorded
        .iter()
        .filter_map(|(name, gradient)| Some((name.strip_prefix(prefix)?, gradient)))
        .collect();
    let largest = expected.values().map(|gradient| norm(gradient)).fold(0.0, f64::max);
    let names: Vec<_> = found.keys().map(String::as_str).collect();
    assert!(names.iter().eq(expected.keys()), "{what}: other parameters than recorded");
    let mut worst = (0.0, "");
    for (name, expected) in expected {
        if norm(expected) < 1e-6 * largest {
            assert!(norm(&found[name]) < 1e-6 * largest, "{what}: gradient of {name} is not zero");
            continue;
        }
        let distance = norm(&(&found[name] - expected)) / norm(expected).max(1e-5 * largest);
        if distance > worst.0 {
            worst = (distance, name);
        }
    }
    println!("{what}: {} gradients, farthest {:.1e} ({})", names.len(), worst.0, worst.1);
    assert!(worst.0 < 1e-3, "{what}: gradient of {} is off by {:.1e}", worst.1, worst.0);
}

fn assert_close(what: &str, found: f32, expected: f32) {
    let off = (found / expected - 1.0).abs();
    assert!(off < 1e-4, "{what}: {found} where {expected} is recorded, off by {off:.1e}");
}

/// Time-steps [N].
fn time_steps(path: &Path) -> Array1<i64> {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let four = file.tensor("t").unwrap().data().chunks_exact(4);
    four.map(|b| i64::from(i32::from_le_bytes(b.try_into().unwrap()))).collect()
}

/// What the generator's step was recorded on.
fn generator_inputs<'a>(step: &'a Named, t: &'a Array1<i64>) -> Inputs<'a> {
    Inputs::new()
        .floats("x", step["x_tp1"].view())
        .integers("t", t.view())
        .floats("image", step["y"].view())
        .floats("z", step["z"].view())
        .floats("target", step["label"].view())
}

#[test]
fn the_discriminators_step_agrees_with_the_recorded_one() {
    if !is_supported() {
        return;
    }
    for model in MODELS {
        let folder = tempfile::tempdir().unwrap();
        let place = artifacts(model, folder.path(), &[]).join("discriminator");
        let path = recorded(model, "discriminator_step").unwrap();
        let (step, t) = (tensors(&path), time_steps(&path));
        let run = |r1_weight: f32| {
            let inputs = Inputs::new()
                .floats("x_t", step["x_t"].view())
                .integers("t", t.view())
                .floats("x_tp1", step["x_tp1"].view())
                .floats("x_pos", step["x_fake"].view());
            gradients(&place, &inputs.floats("r1_weight", aview1(&[r1_weight])))
        };
        let scalar = |name: &str| step[name].first().copied().unwrap();

        let (found, without) = run(0.0);
        assert_close(model, found.scalar("real").unwrap(), scalar("loss_real"));
        assert_close(model, found.scalar("fake").unwrap(), scalar("loss_fake"));
        assert_close(
            model,
            found.scalar("loss").unwrap(),
            scalar("loss_real") + scalar("loss_fake"),
        );
        assert_eq!(found.scalar("r1").unwrap(), 0.0);
        assert_gradients(&format!("{model}, GAN terms"), &without, &step, "grad_gan.module.");

        // So heavy that the penalty's gradient stands clear of the other terms' rounding.
        let heavy = 524_288.0; // 2^19, where ½·r1_gamma = ½ is recorded
        let (found, with) = run(heavy);
        assert_close(model, found.scalar("r1").unwrap() / (2.0 * heavy), scalar("r1_penalty"));
        let penalty: Named = with
            .into_iter()
            .map(|(name, gradient)| {
                let alone = (gradient - &without[&name]) / (2.0 * heavy);
                (name, alone)
            })
            .collect();
        assert_gradients(&format!("{model}, R1"), &penalty, &step, "grad_r1.module.");

        let inputs = Inputs::new()
            .floats("x_t", step["x_t"].view())
            .integers("t", t.view())
            .floats("x_tp1", step["x_tp1"].view());
        let attention = session(&place).evaluate(&inputs).unwrap().take("attention").unwrap();
        let scale = step["attention"].iter().fold(0.0, |m: f32, v| m.max(v.abs()));
        let off = project::largest_difference(&attention, &step["attention"]) / scale;
        assert!(off < 1e-4, "{model}: attention is off by {off:.1e}");
    }
}

#[test]
fn the_generators_step_agrees_with_the_recorded_one() {
    if !is_supported() {
        return;
    }
    for model in MODELS {
        let (Some(_), Some(path)) =
            (recorded(model, "generator"), recorded(model, "generator_step"))
        else {
            continue;
        };
        let folder = tempfile::tempdir().unwrap();
        let place = artifacts(model, folder.path(), &[]);
        let (step, t) = (tensors(&path), time_steps(&path));
        let (found, gradients) = gradients(&place, &generator_inputs(&step, &t));
        assert_close(model, found.scalar("loss").unwrap(), *step["loss_mse"].first().unwrap());
        assert_gradients(&format!("{model}, MSE"), &gradients, &step, "grad.module.");
    }
}

#[test]
fn the_generator_descends_the_adversarial_term() {
    if !is_supported() {
        return;
    }
    let model = "hippocampus";
    let folder = tempfile::tempdir().unwrap();
    let place = artifacts(model, folder.path(), &["--adversarial-term"]);
    let path = recorded(model, "generator_step").unwrap();
    let (step, t) = (tensors(&path), time_steps(&path));
    let mut critic = session(&place.join("discriminator"));
    let its_weights: Vec<_> = weights(&critic, &place.join("discriminator"))
        .into_iter()
        .map(|(name, values)| (format!("discriminator.{name}"), values))
        .collect();
    let given = |x0_weight: &'static [f32; 4], x_rest, weight: &'static [f32; 1]| {
        let x0_weight = aview1(x0_weight).into_shape_with_order((4, 1, 1, 1)).unwrap();
        its_weights.iter().fold(
            generator_inputs(&step, &t)
                .floats("x0_weight", x0_weight)
                .floats("x_rest", x_rest)
                .floats("adversarial_weight", aview1(weight)),
            |inputs, (name, values)| inputs.floats(name.as_str(), values.view()),
        )
    };

    // Of a posterior sample that is the discriminator's own fake, the term is what D says of it.
    let fake: Array4<f32> = Array4::from_shape_fn((4, 3, 32, 32), |(n, c, y, x)| {
        ((n + 3 * c + 5 * y + 7 * x) % 11) as f32 / 5.0 - 1.0
    });
    let mut generator = session(&place);
    let found = generator.step(&given(&[0.0; 4], fake.view(), &[1.0]), 0.0).unwrap();
    let its_view = Inputs::new()
        .floats("x_t", fake.view())
        .integers("t", t.view())
        .floats("x_tp1", step["x_tp1"].view())
        .floats("x_pos", fake.view())
        .floats("r1_weight", aview1(&[0.0]));
    let real = critic.step(&its_view, 0.0).unwrap().scalar("real").unwrap();
    assert_close("adversarial term", found.scalar("adversarial").unwrap(), real);
    assert_close("mse", found.scalar("mse").unwrap(), *step["loss_mse"].first().unwrap());

    // The loss falls as steeply as the gradient says.
    let rest = Array4::zeros(fake.dim());
    let heavy = given(&[1.0; 4], rest.view(), &[1e3]);
    let mut generator = session(&place);
    let before = weights(&generator, &place);
    let slope = 1e-9;
    let high = generator.step(&heavy, slope * EPSILON).unwrap().scalar("loss").unwrap();
    let moved: f64 = weights(&generator, &place)
        .iter()
        .flat_map(|(name, after)| after.iter().zip(&before[name]))
        .map(|(after, before)| f64::from(after - before).powi(2))
        .sum();
    let low = generator.step(&heavy, 0.0).unwrap().scalar("loss").unwrap();
    let expected = moved / f64::from(slope);
    let share = f64::from(high - low) / expected;
    println!("fell by {} where {expected} is expected", high - low);
    assert!((share - 1.0).abs() < 0.1, "the loss fell by {share} of what the gradient says");
}

/// Graphs of ONNX's own operators are also what runs of earlier versions go on with.
#[test]
fn our_operators_learn_what_the_standard_ones_learn() {
    if !is_supported() {
        return;
    }
    for (model, adversarial) in [("hippocampus", true), ("lung", false)] {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let term: &[&str] = if adversarial { &["--adversarial-term"] } else { &[] };
        let [ours, standard] = [&[][..], &["--standard-operators"]].map(|operators| {
            let number = usize::from(!operators.is_empty());
            artifacts(model, folders[number].path(), &[operators, term].concat())
        });

        let path = recorded(model, "discriminator_step").unwrap();
        let (step, t) = (tensors(&path), time_steps(&path));
        let inputs = Inputs::new()
            .floats("x_t", step["x_t"].view())
            .integers("t", t.view())
            .floats("x_tp1", step["x_tp1"].view())
            .floats("x_pos", step["x_fake"].view())
            .floats("r1_weight", aview1(&[1e4]));
        let [found, wanted] =
            [&ours, &standard].map(|place| gradients(&place.join("discriminator"), &inputs));
        for term in ["loss", "real", "fake", "r1"] {
            assert_close(model, found.0.scalar(term).unwrap(), wanted.0.scalar(term).unwrap());
        }
        assert_gradients(&format!("{model}'s discriminator"), &found.1, &wanted.1, "");

        if !adversarial {
            continue;
        }
        let path = recorded(model, "generator_step").unwrap();
        let (step, t) = (tensors(&path), time_steps(&path));
        let place = ours.join("discriminator");
        let its_weights: Vec<_> = weights(&session(&place), &place)
            .into_iter()
            .map(|(name, values)| (format!("discriminator.{name}"), values))
            .collect();
        let (x0_weight, rest) = (Array4::ones((4, 1, 1, 1)), Array4::zeros((4, 3, 32, 32)));
        let inputs = its_weights.iter().fold(
            generator_inputs(&step, &t)
                .floats("x0_weight", x0_weight.view())
                .floats("x_rest", rest.view())
                .floats("adversarial_weight", aview1(&[0.3])),
            |inputs, (name, values)| inputs.floats(name.as_str(), values.view()),
        );
        let [found, wanted] = [&ours, &standard].map(|place| gradients(place, &inputs));
        for term in ["loss", "mse", "adversarial"] {
            assert_close(model, found.0.scalar(term).unwrap(), wanted.0.scalar(term).unwrap());
        }
        assert_gradients(&format!("{model}'s generator"), &found.1, &wanted.1, "");
    }
}
