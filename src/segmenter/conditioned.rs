use ndarray::{Array4, ArrayView2, ArrayView4, ArrayViewMut4, Axis, concatenate, s};

use crate::{
    bundle::{Crop, Prepared},
    engine::{EngineError, Generator},
    sampler::Denoiser,
};

/// The generator with the condition features of some crops at hand: what the sampler calls a denoiser.
#[derive(Debug)]
pub struct Conditioned<'a> {
    generator: &'a mut Generator,
    /// [crops, nf, H, W], crop `first` at index 0.
    features: Array4<f32>,
    first: usize,
    crop_of: Vec<usize>,
    /// Of `features`, for the entries of the batch; `guided` are those that the generator was told last.
    rows: Vec<usize>,
    guided: Vec<usize>,
}

impl<'a> Conditioned<'a> {
    /// Computes the features of `crops`, which stand at `first` in the case's list, `batch` at a time.
    ///
    /// # Errors
    /// The engine's.
    pub fn encode(
        generator: &'a mut Generator,
        prepared: &Prepared,
        first: usize,
        crops: &[Crop],
        batch: usize,
    ) -> Result<Self, EngineError> {
        let interface = generator.interface();
        let [_, height, width] = interface.image;
        let mut features = Array4::zeros((crops.len(), interface.features, height, width));
        for (number, crops) in crops.chunks(batch).enumerate() {
            let pixels: Vec<_> = crops.iter().map(|&crop| prepared.pixels(crop)).collect();
            let images = concatenate(Axis(0), &pixels).expect("crops share one shape");
            let from = number * batch;
            features
                .slice_mut(s![from..from + crops.len(), .., .., ..])
                .assign(&generator.condition(images.view())?);
        }
        let crop_of = prepared.samples.iter().map(|sample| sample.crop).collect();
        let (rows, guided) = (Vec::new(), Vec::new());
        Ok(Self { generator, features, first, crop_of, rows, guided })
    }
}

impl Denoiser for Conditioned<'_> {
    type Error = EngineError;

    fn denoise(
        &mut self,
        images: &[usize],
        step: usize,
        x: ArrayView4<'_, f32>,
        z: ArrayView2<'_, f32>,
        x0: ArrayViewMut4<'_, f32>,
    ) -> Result<(), EngineError> {
        self.rows.clear();
        self.rows.extend(images.iter().map(|&image| self.crop_of[image] - self.first));
        // Where all entries see one image, its features serve batches of any size.
        if self.rows.iter().all(|&row| row == self.rows[0]) {
            self.rows.truncate(1);
        }
        if self.rows != self.guided {
            self.generator.guide(self.features.view(), &self.rows)?;
            self.guided.clone_from(&self.rows);
        }
        self.generator.denoise(step, x, z, x0)
    }
}
