use std::{
    sync::mpsc,
    thread::{self, JoinHandle},
};

use super::EngineError;

type Job<M> = Box<dyn FnOnce(&mut M) + Send>;

/// The one thread that owns a device's model. Work is handed to it as closures and done in order.
///
/// Sessions never cross threads, so buffers and device memory need no locks, and a call that stands in line
/// is a wait on a channel.
#[derive(Debug)]
pub struct Device<M: 'static> {
    jobs: Option<mpsc::Sender<Job<M>>>,
    thread: Option<JoinHandle<()>>,
}

impl<M: 'static> Device<M> {
    /// Starts the thread and makes the model on it.
    ///
    /// # Errors
    /// What `make` gives, or [`EngineError::Gone`] if no thread can be had.
    pub fn start<E>(make: impl FnOnce() -> Result<M, E> + Send + 'static) -> Result<Self, E>
    where
        E: From<EngineError> + Send + 'static,
    {
        let (jobs, queue) = mpsc::channel::<Job<M>>();
        let (ready, made) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("engine".into())
            .spawn(move || {
                let mut model = match make() {
                    Ok(model) => {
                        let _ = ready.send(Ok(()));
                        model
                    }
                    Err(error) => {
                        let _ = ready.send(Err(error));
                        return;
                    }
                };
                for job in queue {
                    job(&mut model);
                }
            })
            .map_err(|_| EngineError::Gone)?;
        made.recv().map_err(|_| EngineError::Gone)??;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Runs `work` on the owner thread and waits for its result.
    ///
    /// # Errors
    /// [`EngineError::Gone`] if the thread has ended or the work panicked.
    pub fn run<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut M) -> R + Send + 'static,
    ) -> Result<R, EngineError> {
        let (done, result) = mpsc::channel();
        let job: Job<M> = Box::new(move |model| {
            let _ = done.send(work(model));
        });
        self.jobs.as_ref().ok_or(EngineError::Gone)?.send(job).map_err(|_| EngineError::Gone)?;
        result.recv().map_err(|_| EngineError::Gone)
    }
}

impl<M: 'static> Drop for Device<M> {
    fn drop(&mut self) {
        self.jobs = None; // closes the queue: the thread finishes what it has and ends
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_runs_in_order_on_one_thread_and_a_failed_start_is_reported() {
        let device = Device::start(|| Ok::<_, EngineError>(Vec::new())).unwrap();
        for n in 0..3 {
            device.run(move |seen: &mut Vec<_>| seen.push((n, thread::current().id()))).unwrap();
        }
        let seen = device.run(|seen| seen.clone()).unwrap();
        assert_eq!(seen.iter().map(|s| s.0).collect::<Vec<_>>(), [0, 1, 2]);
        assert!(seen.iter().all(|s| s.1 == seen[0].1 && s.1 != thread::current().id()));

        let failed = Device::<()>::start(|| Err(EngineError::NotFinite { graph: "condition" }));
        assert!(matches!(failed, Err(EngineError::NotFinite { .. })));
    }

    #[test]
    fn a_panic_in_the_work_is_an_error_of_the_call() {
        let device = Device::start(|| Ok::<_, EngineError>(())).unwrap();
        assert!(matches!(device.run(|()| panic!("on purpose")), Err(EngineError::Gone)));
    }
}
