//! Noise schedule and posterior of the few-step diffusion (`Schedule`), as published.
//!
//! The posterior is computed in double precision and used in single; the tables agree with recorded ones
//! within 1e-6.

/// How the noise variance grows over the continuous time t in (0, 1].
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Variance {
    /// 1 - exp(2·(-¼t²(β_max - β_min) - ½tβ_min)): variance preserving.
    Preserving { beta_min: f64, beta_max: f64 },
    /// β_min·(β_max/β_min)^t.
    Geometric { beta_min: f64, beta_max: f64 },
}

impl Variance {
    fn at(self, t: f64) -> f64 {
        match self {
            Self::Preserving { beta_min, beta_max } => {
                let log_mean = -0.25 * t * t * (beta_max - beta_min) - 0.5 * t * beta_min;
                1.0 - (2.0 * log_mean).exp()
            }
            Self::Geometric { beta_min, beta_max } => beta_min * (beta_max / beta_min).powf(t),
        }
    }
}

/// Every table the sampler and the trainer need, for T time-steps.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// a_k = √(1 - β_k) and σ_k = √β_k for k = 0..=T, β_0 = 1e-8.
    pub a: Vec<f32>,
    pub sigma: Vec<f32>,
    /// Running products of `a` and √(1 - a_cum²), k = 0..=T.
    pub a_cum: Vec<f32>,
    pub sigma_cum: Vec<f32>,
    /// One entry for each time-step i = 0..T.
    pub posterior: Vec<Posterior>,
    /// Time-step that sampling ends with: its x_0 is the sample. 0 but for a sampler cut short.
    pub end: usize,
}

/// q(x_i | x_{i+1}, x_0) at time-step i: a normal distribution with mean
/// `x0_weight`·x_0 + `x_weight`·x_{i+1}.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Posterior {
    pub beta: f32,
    /// ᾱ_i.
    pub alpha_cum: f32,
    pub x0_weight: f32,
    pub x_weight: f32,
    pub variance: f32,
    /// Log of the variance, which is clipped at 1e-20.
    pub log_variance: f32,
}

impl Posterior {
    /// exp(½ log variance): the scale of the noise that a draw adds.
    #[must_use]
    pub fn deviation(&self) -> f32 {
        (0.5 * self.log_variance).exp()
    }
}

impl Schedule {
    /// # Panics
    /// If `steps` is 0 (a bundle with T = 0 is refused when it is read).
    #[must_use]
    pub fn new(steps: usize, variance: Variance) -> Self {
        const SMALLEST_TIME: f64 = 1e-3;
        assert!(steps > 0, "a diffusion has at least one time-step");
        let alpha_bar: Vec<f64> = (0..=steps)
            .map(|k| k as f64 / steps as f64 * (1.0 - SMALLEST_TIME) + SMALLEST_TIME)
            .map(|t| 1.0 - variance.at(t))
            .collect();
        let real: Vec<f64> = alpha_bar.windows(2).map(|w| 1.0 - w[1] / w[0]).collect();
        let betas: Vec<f64> = std::iter::once(1e-8).chain(real.iter().copied()).collect();

        // In single precision, as published: a_0 rounds to 1, so that x_t at t = 0 is x_0 itself.
        let a: Vec<f32> = betas.iter().map(|beta| (1.0 - beta).sqrt() as f32).collect();
        let a_cum: Vec<f32> = a
            .iter()
            .scan(1.0, |product: &mut f32, a| {
                *product *= a;
                Some(*product)
            })
            .collect();
        let alpha_cum = running_product(&real.iter().map(|beta| 1.0 - beta).collect::<Vec<_>>());
        let posterior = (0..steps)
            .map(|i| {
                let (beta, alpha, now) = (real[i], 1.0 - real[i], alpha_cum[i]);
                let before = if i == 0 { 1.0 } else { alpha_cum[i - 1] };
                let variance = beta * (1.0 - before) / (1.0 - now);
                Posterior {
                    beta: beta as f32,
                    alpha_cum: now as f32,
                    x0_weight: (beta * before.sqrt() / (1.0 - now)) as f32,
                    x_weight: ((1.0 - before) * alpha.sqrt() / (1.0 - now)) as f32,
                    variance: variance as f32,
                    log_variance: variance.max(1e-20).ln() as f32,
                }
            })
            .collect();
        Self {
            sigma: betas.iter().map(|beta| beta.sqrt() as f32).collect(),
            sigma_cum: a_cum.iter().map(|a| (1.0 - a * a).sqrt()).collect(),
            a,
            a_cum,
            posterior,
            end: 0,
        }
    }

    /// The same diffusion, of which a sample takes only the first `evaluations` of its T steps.
    #[must_use]
    pub fn cut_short(self, evaluations: usize) -> Self {
        Self { end: self.steps().saturating_sub(evaluations.max(1)), ..self }
    }

    /// T, the number of time-steps.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.posterior.len()
    }
}

fn running_product(values: &[f64]) -> Vec<f64> {
    values
        .iter()
        .scan(1.0, |product, value| {
            *product *= value;
            Some(*product)
        })
        .collect()
}
