//! Which of a bundle's denoisers runs: the float32 one, or a variant that proves itself and is faster here.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ndarray::{Array2, Array4};

use super::{SegmenterError, golden, graphs, interface};
use crate::{
    bundle::{Bundle, Variant},
    domain::{Precision, PrecisionChoice},
    engine::{Device, EngineError, Engines, Generator, Graphs, Options, Provider, Runtime},
};

/// A variant must be faster by this much; a smaller difference may be chance.
const WORTH: f64 = 0.95;
/// A sample must be so much faster in a batch of twice the size; less is not worth the memory.
const WORTH_DOUBLING: f64 = 0.9;
/// Steps that are timed; the fastest counts.
const TIMED: usize = 3;

/// Loads what may run of the bundle, holds it against the golden case, and keeps the fastest. A variant that does not
/// reproduce the golden case on this machine is left out; if it alone was asked for, that is an error.
pub(super) fn fastest(
    runtime: &Arc<Runtime>,
    bundle: &Arc<Bundle>,
    options: Options,
) -> Result<Device<Generator>, SegmenterError> {
    let choice = options.precision;
    let variants: Vec<&Variant> =
        bundle.manifest.variants.iter().filter(|v| choice.allows(v.precision)).collect();
    let mut best = None;
    if choice.allows(Precision::Fp32) {
        let device = proven(runtime, bundle, graphs(bundle), None, options)?;
        if variants.is_empty() && options.provider != Provider::Cuda {
            return Ok(device);
        }
        best = Some((settle(&device, options.provider)?, device));
    }
    for variant in variants {
        let precision = variant.precision.name();
        let made = bundle
            .variant(variant)
            .map_err(SegmenterError::from)
            .map(|denoiser| Graphs { denoiser, precision: variant.precision, ..graphs(bundle) })
            .and_then(|graphs| proven(runtime, bundle, graphs, Some(variant), options))
            .and_then(|device| Ok((settle(&device, options.provider)?, device)));
        let (time, device) = match made {
            Ok(made) => made,
            Err(error) if choice == PrecisionChoice::Auto => {
                tracing::warn!(precision, %error, "a variant of the model is not used");
                continue;
            }
            Err(error) => return Err(error),
        };
        let ratio = best.as_ref().map(|(best, _): &(Duration, _)| time.div_duration_f64(*best));
        tracing::debug!(precision, ratio, "a variant's step by that of the best so far");
        if ratio.is_none_or(|ratio| ratio < WORTH) {
            best = Some((time, device));
        }
    }
    let missing = || SegmenterError::Precision {
        bundle: bundle.manifest.name.clone(),
        asked: format!("{choice:?}").to_lowercase(),
    };
    best.map(|(_, device)| device).ok_or_else(missing)
}

/// Loads graphs on a thread of their own.
pub(super) fn start(
    runtime: &Arc<Runtime>,
    bundle: &Bundle,
    graphs: Graphs,
    options: Options,
) -> Result<Device<Generator>, SegmenterError> {
    let (runtime, interface) = (Arc::clone(runtime), interface(&bundle.manifest));
    Device::start(move || {
        Generator::load(&runtime, &graphs, interface, &options).map_err(SegmenterError::from)
    })
}

/// Loads graphs and runs the golden case. Engines that this had to build are kept for the next start.
fn proven(
    runtime: &Arc<Runtime>,
    bundle: &Arc<Bundle>,
    graphs: Graphs,
    variant: Option<&Variant>,
    options: Options,
) -> Result<Device<Generator>, SegmenterError> {
    let to_build = Engines::of(runtime, &graphs, &options).filter(|engines| !engines.are_whole());
    let unkept = |error: &dyn std::fmt::Display| {
        tracing::warn!(%error, "engines are not kept; the next start builds them again");
    };
    if let Some(Err(error)) = to_build.as_ref().map(Engines::clear) {
        unkept(&error);
    }
    let device = start(runtime, bundle, graphs, options)?;
    match variant {
        None => golden::prove(bundle, &device)?,
        Some(variant) => golden::prove_variant(bundle, variant, &device)?,
    };
    if let Some(Err(error)) = to_build.as_ref().map(Engines::seal) {
        unkept(&error);
    }
    Ok(device)
}

/// What a step takes at best, for each sample of a batch. How large batches are is found out on CUDA, from one sample on: a
/// batch of twice the size must be worth it.
fn settle(device: &Device<Generator>, provider: Provider) -> Result<Duration, EngineError> {
    device.run(move |generator| {
        let most = generator.batch();
        if provider != Provider::Cuda {
            return pace(generator, most);
        }
        let (mut batch, mut best) = (1, pace(generator, 1)?);
        while 2 * batch <= most {
            // Where memory ends, the smaller batch will do.
            let Ok(next) = pace(generator, 2 * batch) else { break };
            if next.div_duration_f64(best) > WORTH_DOUBLING {
                break;
            }
            (batch, best) = (2 * batch, next);
        }
        generator.set_batch(batch);
        tracing::debug!(batch, microseconds = best.as_micros(), "a step of a sample");
        Ok(best)
    })?
}

/// What a step of a batch takes at best, for each sample.
fn pace(generator: &mut Generator, batch: usize) -> Result<Duration, EngineError> {
    let interface = generator.interface();
    let [l, h, w] = interface.label();
    let features = Array4::zeros((1, interface.features, h, w));
    generator.guide(features.view(), &[0])?;
    let (x, z) = (Array4::zeros((batch, l, h, w)), Array2::zeros((batch, interface.latent)));
    let mut x0 = x.clone();
    let mut best = Duration::MAX;
    for _ in 0..=TIMED {
        let started = Instant::now();
        generator.denoise(0, x.view(), z.view(), x0.view_mut())?;
        best = best.min(started.elapsed());
    }
    Ok(best / batch as u32)
}
