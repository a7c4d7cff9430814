use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use super::lanes::{LANES, Line};

/// Memory that threads compute in, one buffer for each of them: kernels of a session run one after the other and share it,
/// and none of it is given back between them.
#[derive(Debug)]
pub(super) struct Scratch {
    buffers: Vec<Mutex<Vec<Line>>>,
    /// What all threads of a node read or write parts of.
    shared: Mutex<Vec<Line>>,
}

impl Scratch {
    pub fn new(threads: usize) -> Self {
        let buffers = (0..threads.max(1)).map(|_| Mutex::default()).collect();
        Self { buffers, shared: Mutex::default() }
    }

    pub fn threads(&self) -> usize {
        self.buffers.len()
    }

    /// Sees to it that each buffer has this many lines, so that nothing is allocated in the loop, whoever takes part in it.
    pub fn reserve(&self, lines: usize) {
        for buffer in &self.buffers {
            let mut buffer = buffer.lock().unwrap_or_else(PoisonError::into_inner);
            if buffer.len() < lines {
                buffer.resize(lines, Line::ZERO);
            }
        }
    }

    /// Room for this many numbers, of any content, that a node shares among its threads.
    pub fn shared(&self, numbers: usize) -> MutexGuard<'_, Vec<Line>> {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = numbers.div_ceil(LANES);
        if shared.len() < lines {
            shared.resize(lines, Line::ZERO);
        }
        shared
    }

    /// A buffer that nobody uses. More threads than were told of wait for one.
    pub fn take(&self) -> MutexGuard<'_, Vec<Line>> {
        let free = self.buffers.iter().find_map(|buffer| match buffer.try_lock() {
            Ok(buffer) => Some(buffer),
            Err(TryLockError::Poisoned(buffer)) => Some(buffer.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        });
        free.unwrap_or_else(|| self.buffers[0].lock().unwrap_or_else(PoisonError::into_inner))
    }
}
