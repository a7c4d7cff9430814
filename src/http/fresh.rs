use std::future::Future;
use std::time::Instant;

use tokio::sync::Mutex;

/// Work whose result several requests may share: however many ask at once, it is done for one of them at a time, and none
/// gets what was begun before it asked.
#[derive(Debug)]
pub(super) struct Fresh<T>(Mutex<Option<(Instant, T)>>);

impl<T> Default for Fresh<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T: Clone> Fresh<T> {
    /// What `make` gives now, or gave to another who asked meanwhile.
    ///
    /// # Errors
    /// What `make` fails with; then nothing is shared.
    pub(super) async fn get<E>(&self, make: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let asked = Instant::now();
        let mut last = self.0.lock().await;
        if let Some((begun, value)) = &*last
            && *begun >= asked
        {
            return Ok(value.clone());
        }
        let begun = Instant::now();
        let value = make.await?;
        *last = Some((begun, value.clone()));
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn many_who_ask_at_once_share_two_answers_and_later_ones_get_their_own() {
        let fresh = Arc::new(Fresh::default());
        let (made, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
        let ask = || {
            let (fresh, made, go) = (Arc::clone(&fresh), Arc::clone(&made), Arc::clone(&go));
            async move {
                let make = async {
                    go.acquire().await.unwrap().forget();
                    Ok::<_, ()>(made.fetch_add(1, Ordering::SeqCst))
                };
                fresh.get(make).await.unwrap()
            }
        };
        let asked: Vec<_> = (0..50).map(|_| tokio::spawn(ask())).collect();
        for _ in 0..100 {
            tokio::task::yield_now().await; // all of them wait now
        }
        go.add_permits(100);
        for answer in asked {
            assert!(answer.await.unwrap() <= 1);
        }
        assert_eq!(ask().await, 2);
        assert_eq!(ask().await, 3);
    }
}
