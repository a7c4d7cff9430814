//! What `cdal_onnx` makes, and files written whole or not at all.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use ndarray::ArrayD;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use super::{Config, Start, TrainError, python};
use crate::durable;

/// Makes the training graphs in `folder`.
pub(super) fn make_artifacts(
    config: &Config,
    folder: &Path,
    stop: &AtomicBool,
) -> Result<(), TrainError> {
    let betas = config.optimiser.betas.map(|beta| beta.to_string());
    let seed = config.model.seed.to_string();
    let mut arguments: Vec<&OsStr> = vec![
        "artifacts".as_ref(),
        "--parameters".as_ref(),
        config.model.parameters.as_ref(),
        "--preset".as_ref(),
        config.model.preset.as_ref(),
        "--seed".as_ref(),
        seed.as_ref(),
        "--betas".as_ref(),
        betas[0].as_ref(),
        betas[1].as_ref(),
        "--out".as_ref(),
        folder.as_ref(),
    ];
    let recovered = config.run_folder.join("start.safetensors");
    let start = match &config.model.start {
        Some(Start::Bundle(bundle)) => {
            recover_weights(config, bundle, &recovered, stop)?;
            Some(&recovered)
        }
        Some(Start::Checkpoint(checkpoint)) => Some(checkpoint),
        None => config.model.checkpoint.as_ref(),
    };
    if let Some(checkpoint) = start {
        arguments.extend(["--checkpoint".as_ref(), checkpoint.as_os_str()]);
    }
    for pattern in &config.model.freeze {
        arguments.extend([OsStr::new("--freeze"), OsStr::new(pattern)]);
    }
    let its_betas;
    if let Some(adversary) = &config.adversary {
        its_betas = adversary.betas.map(|beta| beta.to_string());
        arguments.extend(["--adversary", "--adversary-betas"].map(OsStr::new));
        arguments.extend(its_betas.iter().map(OsStr::new));
        if let Some(checkpoint) = &adversary.checkpoint {
            arguments.extend(["--adversary-checkpoint".as_ref(), checkpoint.as_os_str()]);
        }
        if adversary.adversarial_weight > 0.0 {
            arguments.push("--adversarial-term".as_ref());
        }
    }
    python::call(config, &arguments, stop)
}

/// The weights of a bundle, from its graphs.
fn recover_weights(
    config: &Config,
    bundle: &Path,
    out: &Path,
    stop: &AtomicBool,
) -> Result<(), TrainError> {
    if out.exists() {
        fs::remove_file(out).map_err(|e| file(out, &e))?;
    }
    python::call(
        config,
        &[
            "weights".as_ref(),
            "--bundle".as_ref(),
            bundle.as_ref(),
            "--parameters".as_ref(),
            config.model.parameters.as_ref(),
            "--out".as_ref(),
            out.as_ref(),
        ],
        stop,
    )
}

/// Makes the bundle of `weights`, with `notes` (Markdown) in its card, in place of an earlier one.
pub(super) fn export(
    config: &Config,
    weights: &Path,
    notes: &Path,
    out: &Path,
    stop: &AtomicBool,
) -> Result<(), TrainError> {
    if out.is_dir() {
        fs::remove_dir_all(out).map_err(|e| file(out, &e))?;
    }
    let card = &config.card;
    python::call(
        config,
        &[
            "export".as_ref(),
            "--checkpoint".as_ref(),
            weights.as_ref(),
            "--parameters".as_ref(),
            config.model.parameters.as_ref(),
            "--preset".as_ref(),
            config.model.preset.as_ref(),
            "--name".as_ref(),
            card.name.as_ref(),
            "--model-version".as_ref(),
            card.version.as_ref(),
            "--weights".as_ref(),
            card.weights.as_ref(),
            "--data".as_ref(),
            card.data.as_ref(),
            "--licence".as_ref(),
            card.licence.as_ref(),
            "--notes".as_ref(),
            notes.as_ref(),
            "--out".as_ref(),
            out.as_ref(),
        ],
        stop,
    )
}

pub(super) fn file(path: &Path, error: &std::io::Error) -> TrainError {
    TrainError::File { path: path.into(), reason: error.to_string() }
}

/// Writes and syncs a file, then renames it into place.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), TrainError> {
    durable::write_whole(path, bytes).map_err(|error| file(path, &error.source))
}

/// Names of the tensors in a safetensors file.
pub(super) fn tensor_names(path: &PathBuf) -> Result<Vec<String>, TrainError> {
    let bytes = fs::read(path).map_err(|e| file(path, &e))?;
    let tensors = SafeTensors::deserialize(&bytes)
        .map_err(|e| TrainError::File { path: path.clone(), reason: e.to_string() })?;
    Ok(tensors.names().into_iter().map(str::to_owned).collect())
}

/// The arrays of a safetensors file of float32 arrays.
pub(super) fn read_arrays(path: &Path) -> Result<BTreeMap<String, ArrayD<f32>>, TrainError> {
    let wrong = |reason: String| TrainError::File { path: path.into(), reason };
    let bytes = fs::read(path).map_err(|e| file(path, &e))?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(|e| wrong(e.to_string()))?;
    tensors
        .iter()
        .map(|(name, view)| {
            if view.dtype() != Dtype::F32 {
                return Err(wrong(format!("{name} is not float32")));
            }
            let values = view.data().chunks_exact(4);
            let values = values.map(|b| f32::from_le_bytes(b.try_into().expect("chunks of four")));
            let array = ArrayD::from_shape_vec(view.shape(), values.collect())
                .map_err(|e| wrong(e.to_string()))?;
            Ok((name.to_owned(), array))
        })
        .collect()
}

/// The bytes of a safetensors file of float32 arrays.
pub(super) fn safetensors(arrays: &BTreeMap<String, ArrayD<f32>>) -> Result<Vec<u8>, TrainError> {
    let bytes: BTreeMap<&str, (Vec<usize>, Vec<u8>)> = arrays
        .iter()
        .map(|(name, array)| {
            let data = array.iter().flat_map(|value| value.to_le_bytes()).collect();
            (name.as_str(), (array.shape().to_vec(), data))
        })
        .collect();
    let fault = |e: safetensors::SafeTensorError| TrainError::Runtime(e.to_string());
    let views: Vec<_> = bytes
        .iter()
        .map(|(name, (shape, data))| {
            Ok((*name, TensorView::new(Dtype::F32, shape.clone(), data).map_err(fault)?))
        })
        .collect::<Result<_, TrainError>>()?;
    safetensors::serialize(views, None).map_err(fault)
}
