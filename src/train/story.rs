//! What the model card tells of the training.

use std::fmt::Write;

use serde_json::Value;

use super::{Augmentation, Config, Data, Start};
use crate::domain::Label;

/// A section of Markdown: steps, data, augmentation, first weights, and the last validation, `dice` by label.
/// `cases` is `None` where they are generated.
pub(super) fn story(
    config: &Config,
    cases: Option<usize>,
    validated: usize,
    labels: &[Label],
    dice: &[Option<f64>],
) -> String {
    let (o, model) = (&config.optimiser, &config.model);
    let mut rows = vec![
        ("steps", format!("{} of {} slices", o.steps, o.batch)),
        (
            "optimiser",
            format!(
                "Adam, betas {} and {}, learning rate {:e} to {:e} by cosine; average of weights with decay {}",
                o.betas[0], o.betas[1], o.learning_rate, o.final_learning_rate, o.ema_decay
            ),
        ),
        (
            "cases",
            match (&config.data, cases) {
                (Data::Phantom { first_seed, .. }, _) => {
                    format!("generated, from seed {first_seed} on")
                }
                (_, cases) => format!("{}", cases.unwrap_or(0)),
            },
        ),
        ("augmentation", augmentation(&config.augmentation)),
        (
            "first weights",
            match (&model.start, &model.checkpoint) {
                (Some(Start::Bundle(path)), _) => format!("the bundle {}", name(path)),
                (Some(Start::Checkpoint(path)), _) | (None, Some(path)) => name(path),
                (None, None) => format!("drawn with seed {}", model.seed),
            },
        ),
    ];
    if !model.freeze.is_empty() {
        rows.push(("kept as they were", model.freeze.join(", ")));
    }
    if validated > 0 {
        let each = labels.iter().zip(dice).map(|(label, dice)| {
            let figure = dice.map_or("not defined".into(), |dice| format!("{dice:.4}"));
            format!("{} {figure}", label.name)
        });
        let mut how = each.collect::<Vec<_>>().join(", ");
        let _ = write!(how, "; mean over {validated} cases");
        if let Some(votes) = config.validation.votes {
            let _ = write!(how, ", votes {votes}");
        }
        if let Some(overlap) = config.validation.overlap {
            let _ = write!(how, ", overlap {overlap}");
        }
        rows.push(("validation Dice", how));
    }
    let mut text = "## Training\n\n| | |\n|---|---|\n".to_owned();
    for (what, figure) in rows {
        let _ = writeln!(text, "| {what} | {} |", figure.replace('|', "/"));
    }
    text
}

/// What differs from doing nothing.
fn augmentation(by: &Augmentation) -> String {
    let object = |by: &Augmentation| match serde_json::to_value(by) {
        Ok(Value::Object(object)) => object,
        _ => serde_json::Map::new(),
    };
    let nothing = object(&Augmentation::default());
    let done = object(by).into_iter().filter(|(key, value)| nothing.get(key) != Some(value));
    let done: Vec<_> = done
        .map(|(key, value)| match value {
            Value::String(text) => format!("{key} {text}"),
            Value::Bool(_) => key,
            // Numbers are single precision.
            value => format!("{key} {}", value.as_f64().unwrap_or(0.0) as f32),
        })
        .collect();
    if done.is_empty() { "none".into() } else { done.join(", ") }
}

fn name(path: &std::path::Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}
