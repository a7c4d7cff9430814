//! One provider serves while the sessions of a slower one are made.
//!
//! TensorRT builds its engines for minutes when it meets a model, a device or a version for the first time. Until then
//! another provider does the work: [`Standby`] swaps the device under those who use it once the new one has been built and
//! has proved itself, and keeps the old one if it has not.

use std::{
    sync::{Arc, Mutex, PoisonError, RwLock},
    thread,
    time::{Duration, Instant},
};

use super::{Device, EngineError, Provider};

/// Who runs the graphs, and what is under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Serving {
    /// That runs them now.
    pub provider: Provider,
    /// That was asked for.
    pub wanted: Provider,
    pub progress: Progress,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Nothing is to come.
    Settled,
    /// The wanted provider's sessions are being made, since so long.
    Building { since: Instant },
    /// They could not be made, or gave other results; the other provider stays.
    Failed { reason: String },
}

impl Progress {
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Settled => "settled",
            Self::Building { .. } => "building",
            Self::Failed { .. } => "failed",
        }
    }

    /// How long it has been building.
    #[must_use]
    pub fn building_for(&self) -> Option<Duration> {
        if let Self::Building { since } = self { Some(since.elapsed()) } else { None }
    }
}

/// A device that may be replaced by a better one while it is used.
#[derive(Debug)]
pub struct Standby<M: 'static> {
    shared: Arc<Shared<M>>,
}

#[derive(Debug)]
struct Shared<M: 'static> {
    device: RwLock<Arc<Device<M>>>,
    serving: Mutex<Serving>,
}

impl<M: 'static> Standby<M> {
    /// The device that was asked for.
    #[must_use]
    pub fn settled(device: Device<M>, provider: Provider) -> Self {
        Self::new(device, Serving { provider, wanted: provider, progress: Progress::Settled })
    }

    /// `device` serves by `provider` while `build` makes and proves the one that is `wanted`, on a thread of its own.
    ///
    /// # Errors
    /// If no thread can be had.
    pub fn building(
        device: Device<M>,
        provider: Provider,
        wanted: Provider,
        build: impl FnOnce() -> Result<Device<M>, String> + Send + 'static,
    ) -> Result<Self, EngineError> {
        let progress = Progress::Building { since: Instant::now() };
        let standby = Self::new(device, Serving { provider, wanted, progress });
        let shared = Arc::clone(&standby.shared);
        let work = move || {
            let built = std::panic::catch_unwind(std::panic::AssertUnwindSafe(build));
            shared.end(wanted, built.unwrap_or_else(|_| Err("the build panicked".into())));
        };
        thread::Builder::new()
            .name("engine-build".into())
            .spawn(work)
            .map_err(|_| EngineError::Gone)?;
        Ok(standby)
    }

    fn new(device: Device<M>, serving: Serving) -> Self {
        let shared = Shared { device: RwLock::new(Arc::new(device)), serving: Mutex::new(serving) };
        Self { shared: Arc::new(shared) }
    }

    /// Runs `work` on the device of this moment, as [`Device::run`]. A swap waits for nobody: work under way ends where it
    /// began.
    ///
    /// # Errors
    /// As [`Device::run`].
    pub fn run<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut M) -> R + Send + 'static,
    ) -> Result<R, EngineError> {
        self.current().run(work)
    }

    /// The device of this moment.
    #[must_use]
    pub fn current(&self) -> Arc<Device<M>> {
        Arc::clone(&self.shared.device.read().unwrap_or_else(PoisonError::into_inner))
    }

    #[must_use]
    pub fn serving(&self) -> Serving {
        self.shared.serving.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl<M: 'static> Shared<M> {
    fn end(&self, wanted: Provider, built: Result<Device<M>, String>) {
        let mut serving = self.serving.lock().unwrap_or_else(PoisonError::into_inner);
        let Serving { provider, progress, .. } = &mut *serving;
        let seconds = progress.building_for().unwrap_or_default().as_secs();
        match built {
            Ok(device) => {
                // The last user of the old device ends it.
                *self.device.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(device);
                tracing::info!(
                    provider = wanted.name(),
                    seconds,
                    "engine built; it serves from now on"
                );
                (*provider, *progress) = (wanted, Progress::Settled);
            }
            Err(reason) => {
                tracing::error!(
                    wanted = wanted.name(),
                    serving = provider.name(),
                    seconds,
                    reason,
                    "the engine could not be built; the other provider goes on serving"
                );
                *progress = Progress::Failed { reason };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn device(name: &'static str) -> Device<&'static str> {
        Device::start(move || Ok::<_, EngineError>(name)).unwrap()
    }

    fn served_by(standby: &Standby<&'static str>) -> &'static str {
        standby.run(|name| *name).unwrap()
    }

    fn wait_for_the_end(standby: &Standby<&'static str>) -> Serving {
        loop {
            let serving = standby.serving();
            if serving.progress.building_for().is_none() {
                return serving;
            }
            thread::yield_now();
        }
    }

    #[test]
    fn the_other_provider_serves_until_the_engine_is_built() {
        let (finish, wait) = mpsc::channel::<()>();
        let build = move || {
            wait.recv().unwrap();
            Ok(device("engine"))
        };
        let standby =
            Standby::building(device("cuda"), Provider::Cuda, Provider::TensorRt, build).unwrap();
        assert_eq!(served_by(&standby), "cuda");
        let Serving { provider, wanted, progress } = standby.serving();
        assert_eq!((provider, wanted), (Provider::Cuda, Provider::TensorRt));
        assert_eq!(progress.name(), "building");

        // Work that began before the swap ends on the device where it began.
        let (enter, entered) = mpsc::channel();
        let (leave, left) = mpsc::channel::<()>();
        thread::scope(|scope| {
            let early = scope.spawn(|| {
                standby
                    .run(move |name| {
                        enter.send(()).unwrap();
                        left.recv().unwrap();
                        *name
                    })
                    .unwrap()
            });
            entered.recv().unwrap();
            finish.send(()).unwrap();
            let serving = wait_for_the_end(&standby);
            assert_eq!(serving.provider, Provider::TensorRt);
            assert_eq!(serving.progress, Progress::Settled);
            assert_eq!(served_by(&standby), "engine");
            leave.send(()).unwrap();
            assert_eq!(early.join().unwrap(), "cuda");
        });
    }

    #[test]
    fn a_build_that_fails_or_panics_leaves_the_other_provider_at_work() {
        type Build = fn() -> Result<Device<&'static str>, String>;
        let builds: [(Build, &str); 2] = [
            (|| Err("golden case 0.3 away".into()), "golden case 0.3 away"),
            (|| panic!("on purpose"), "the build panicked"),
        ];
        for (build, said) in builds {
            let standby =
                Standby::building(device("cuda"), Provider::Cuda, Provider::TensorRt, build)
                    .unwrap();
            let serving = wait_for_the_end(&standby);
            assert_eq!(serving.provider, Provider::Cuda);
            assert_eq!(serving.progress, Progress::Failed { reason: said.into() });
            assert_eq!(served_by(&standby), "cuda");
        }
    }
}
