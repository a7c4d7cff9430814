//! The one place that writes to stdout and stderr.
//!
//! Results go to stdout: [`out!`] gives an error where they cannot be written, and a command passes it on with `?`. A
//! reader that has closed the pipe, as `head` does, has what it wanted: [`super::run`] then ends the process without a
//! word, with status 0. Messages go to stderr: [`say!`] writes them where somebody reads them, and their loss stops no
//! work. The macros of the standard library panic in both cases, and a lint keeps them out of the library.

use std::fmt;
use std::io::{self, IsTerminal, Write};

/// Results could not be written.
#[derive(Debug, thiserror::Error)]
pub(super) enum OutputError {
    #[error("nobody reads the output any more")]
    Closed,
    #[error("write to stdout: {0}")]
    Failed(io::Error),
}

/// Writes a line to stdout, formatted as by `out!`.
macro_rules! out {
    ($($format:tt)*) => {
        $crate::cli::output::line(format_args!($($format)*))
    };
}

/// Writes a line to stderr, formatted as by `say!`.
macro_rules! say {
    () => {
        $crate::cli::output::message(format_args!(""))
    };
    ($($format:tt)*) => {
        $crate::cli::output::message(format_args!($($format)*))
    };
}

/// # Errors
/// If the line cannot be written.
pub(super) fn line(text: fmt::Arguments<'_>) -> Result<(), OutputError> {
    text_whole(&format!("{text}\n"))
}

/// Writes `text` as it is and flushes it.
///
/// # Errors
/// If it cannot be written.
pub(super) fn text_whole(text: &str) -> Result<(), OutputError> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(|error| {
        match error.kind() {
            io::ErrorKind::BrokenPipe => OutputError::Closed,
            _ => OutputError::Failed(error),
        }
    })
}

pub(super) fn message(text: fmt::Arguments<'_>) {
    // One write for a line, so that lines of several threads do not mix.
    let _ = io::stderr().lock().write_all(format!("{text}\n").as_bytes());
}

/// How far a long piece of work is: one line that is drawn over on a terminal, nothing elsewhere.
#[derive(Debug)]
pub(super) struct ProgressLine {
    is_terminal: bool,
    is_drawn: bool,
}

impl ProgressLine {
    pub(super) fn new() -> Self {
        Self { is_terminal: io::stderr().is_terminal(), is_drawn: false }
    }

    pub(super) fn draw(&mut self, text: fmt::Arguments<'_>) {
        if self.is_terminal {
            // Back to the first column, and erase to the end of the line (ECMA-48: CR, EL).
            let _ = io::stderr().lock().write_all(format!("\r{text}\x1b[K").as_bytes());
            self.is_drawn = true;
        }
    }

    /// Erases the line, so that a message can stand in its place.
    pub(super) fn clear(&mut self) {
        if std::mem::take(&mut self.is_drawn) {
            let _ = io::stderr().lock().write_all(b"\r\x1b[K");
        }
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        self.clear();
    }
}
