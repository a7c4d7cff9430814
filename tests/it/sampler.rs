//! The Rust schedule and sampler against recorded runs of the published model.

use cdal::{
    bundle::Bundle,
    engine::{Generator, Options},
    sampler::{Ballot, Denoiser, Philox, Recorded, Schedule, Shape, Tally, Variance, sample},
    segmenter::Segmenter,
};
use ndarray::{Array3, Array4, Array5, ArrayD, ArrayView2, ArrayView4, ArrayViewMut4, Axis, Zip};

use crate::project::{largest_difference, reference, reference_bundle, runtime, tensors};

#[test]
fn schedule_agrees_with_every_recorded_table() {
    for (model, steps) in [("hippocampus_small", 2), ("lung_small", 2), ("nuclei_small", 4)] {
        let recorded = tensors(&reference(model, "schedule.safetensors").unwrap());
        let schedule = Schedule::new(steps, Variance::Preserving { beta_min: 0.1, beta_max: 20.0 });
        let posterior = |of: fn(&cdal::sampler::Posterior) -> f32| {
            schedule.posterior.iter().map(of).collect::<Vec<_>>()
        };
        for (name, ours) in [
            ("a_s", schedule.a.clone()),
            ("sigmas", schedule.sigma.clone()),
            ("a_s_cum", schedule.a_cum.clone()),
            ("sigmas_cum", schedule.sigma_cum.clone()),
            ("betas", posterior(|p| p.beta)),
            ("alphas_cumprod", posterior(|p| p.alpha_cum)),
            ("posterior_mean_coef1", posterior(|p| p.x0_weight)),
            ("posterior_mean_coef2", posterior(|p| p.x_weight)),
            ("posterior_variance", posterior(|p| p.variance)),
        ] {
            let theirs = &recorded[name];
            assert_eq!(theirs.len(), ours.len(), "{model} {name}");
            let worst = largest_difference(theirs, &ours);
            assert!(worst <= 1e-6, "{model} {name}: {worst}");
        }
        // The clipped logarithm is around -46, where single precision itself is 4e-6 wide.
        let logs = posterior(|p| p.log_variance);
        for (theirs, ours) in recorded["posterior_log_variance_clipped"].iter().zip(logs) {
            assert!((theirs - ours).abs() <= 1e-6 * theirs.abs().max(1.0), "{theirs} {ours}");
        }
    }
}

#[test]
fn geometric_variance_is_supported() {
    let schedule = Schedule::new(4, Variance::Geometric { beta_min: 0.1, beta_max: 0.9 });
    let first = 1.0 - 0.1 * 9.0_f64.powf(1e-3);
    let second = 1.0 - 0.1 * 9.0_f64.powf(0.25 * 0.999 + 1e-3);
    assert!((f64::from(schedule.posterior[0].beta) - (1.0 - second / first)).abs() < 1e-6);
}

struct OneImage<'a>(&'a mut Generator);

impl Denoiser for OneImage<'_> {
    type Error = cdal::engine::EngineError;

    fn denoise(
        &mut self,
        _: &[usize],
        step: usize,
        x: ArrayView4<'_, f32>,
        z: ArrayView2<'_, f32>,
        x0: ArrayViewMut4<'_, f32>,
    ) -> Result<(), Self::Error> {
        self.0.denoise(step, x, z, x0)
    }
}

#[test]
fn sampler_agrees_with_every_recorded_step() {
    let scratch = tempfile::tempdir().unwrap();
    for (model, preset) in
        [("hippocampus_small", "hippocampus"), ("lung_small", "lung"), ("nuclei_small", "nuclei")]
    {
        let Some(folder) = reference_bundle(model, preset, scratch.path()) else { continue };
        let bundle = Bundle::open(&folder).unwrap();
        let schedule = bundle.manifest.diffusion.schedule();
        let interface = cdal::segmenter::interface(&bundle.manifest);
        let segmenter = Segmenter::load(runtime(), bundle, Options::default()).unwrap();
        let recorded = tensors(&reference(model, "sampler.safetensors").unwrap());
        let shape = Shape { label: interface.label(), latent: interface.latent };
        segmenter
            .with_generator(move |generator| {
                let fixed = |name: &str| recorded[name].clone();
                let image: Array4<f32> = fixed("image").into_dimensionality().unwrap();
                let x_init: Array4<f32> = fixed("x_init").into_dimensionality().unwrap();
                let z: Array3<f32> = fixed("z").into_dimensionality().unwrap();
                let noise: Array5<f32> = fixed("noise").into_dimensionality().unwrap();
                let noise = Recorded { x_init: x_init.view(), z: z.view(), noise: noise.view() };
                let ballots: Vec<_> =
                    (0..x_init.dim().0).map(|vote| Ballot { image: 0, vote }).collect();
                let features = generator.condition(image.view()).unwrap();
                generator.guide(features.view(), &[0]).unwrap();
                let mut denoiser = OneImage(generator);
                let compare = |name: &str, ours: &ArrayD<f32>| {
                    let worst = largest_difference(&recorded[name], ours);
                    println!("{model} {name}: {worst:.1e}");
                    assert!(worst <= 1e-4, "{model} {name}: {worst}");
                };
                let x = sample(&mut denoiser, &schedule, shape, &noise, &ballots, |i, x0, x| {
                    compare(&format!("x0_step{i}"), &x0.to_owned().into_dyn());
                    compare(&format!("x_step{i}"), &x.to_owned().into_dyn());
                })
                .unwrap();
                let short = schedule.clone().cut_short(1);
                let first = sample(&mut denoiser, &short, shape, &noise, &ballots, |_, _, _| ());
                let last_step = schedule.steps() - 1;
                compare(&format!("x0_step{last_step}"), &first.unwrap().into_dyn());
                let mut tally = Tally::new(shape.label);
                x.axis_iter(Axis(0)).for_each(|x0| tally.add(x0));
                compare("mean", &tally.mean().insert_axis(Axis(0)).into_dyn());
                let mask = tally.mask();
                for ((ours, theirs), mean) in
                    mask.iter().zip(&recorded["mask"]).zip(&recorded["mean"])
                {
                    assert!(ours == theirs || (mean - 0.5).abs() <= 1e-3, "{model} mask");
                }
            })
            .unwrap();
    }
}

/// x_0 from x and the first latent, without a network.
struct Mixture;

impl Denoiser for Mixture {
    type Error = std::convert::Infallible;

    fn denoise(
        &mut self,
        _images: &[usize],
        _step: usize,
        x: ArrayView4<'_, f32>,
        z: ArrayView2<'_, f32>,
        mut x0: ArrayViewMut4<'_, f32>,
    ) -> Result<(), Self::Error> {
        for ((mut x0, x), z) in x0.outer_iter_mut().zip(x.outer_iter()).zip(z.outer_iter()) {
            Zip::from(&mut x0).and(&x).for_each(|x0, &x| *x0 = 0.5 * x + z[0]);
        }
        Ok(())
    }
}

#[test]
fn a_sample_has_the_same_bits_in_a_batch_so_large_that_threads_share_its_noise() {
    let schedule = Schedule::new(2, Variance::Preserving { beta_min: 0.1, beta_max: 20.0 });
    let shape = Shape { label: [1, 256, 256], latent: 3 };
    let ballots: Vec<_> =
        (0..5).map(|number| Ballot { image: number / 3, vote: number % 3 }).collect();
    let draw = |ballots: &[Ballot]| {
        let noise = Philox::new(3, 5);
        sample(&mut Mixture, &schedule, shape, &noise, ballots, |_, _, _| ()).unwrap()
    };
    let together = draw(&ballots);
    for (ballot, drawn) in ballots.iter().zip(together.outer_iter()) {
        assert_eq!(draw(&[*ballot]).index_axis(Axis(0), 0), drawn, "{ballot:?}");
    }
}
