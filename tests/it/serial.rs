//! The serial link over pseudo terminals, with a line that damages what it carries.

use std::io::{ErrorKind, Read, Write};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use cdal::deliver::serial::{LinkError, Pace, push};
use cdal::ingest::Refusal;
use cdal::ingest::serial::Receiver;
use serialport::{SerialPort, TTYPort};
use tokio_util::sync::CancellationToken;

const POLL: Duration = Duration::from_millis(10);

fn pace() -> Pace {
    Pace { silence: Duration::from_millis(150), ..Pace::new(Duration::from_secs(15)) }
}

fn pair() -> (TTYPort, TTYPort) {
    let (mut a, mut b) = TTYPort::pair().expect("a pair of pseudo terminals");
    a.set_timeout(POLL).unwrap();
    b.set_timeout(POLL).unwrap();
    (a, b)
}

fn content(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n * n / 7) as u8).collect()
}

/// A receiving end that keeps what it gets.
#[derive(Clone, Default)]
struct Shelf(Arc<Mutex<Vec<Received>>>);

/// Name and content.
type Received = (String, Vec<u8>);

impl Shelf {
    fn store(&self, name: &str, bytes: &[u8]) {
        self.0.lock().unwrap().push((name.to_owned(), bytes.to_vec()));
    }

    fn receive(&self, mut line: TTYPort, stop: &CancellationToken) -> JoinHandle<()> {
        let (shelf, stop) = (self.clone(), stop.clone());
        std::thread::spawn(move || {
            let mut receiver = Receiver::new(move |name, bytes| {
                shelf.store(name, bytes);
                Ok::<(), Refusal>(())
            });
            let _ = receiver.run(&mut line, &stop);
        })
    }
}

/// Xorshift: the same faults in every run.
struct Chance(u64);

impl Chance {
    fn once_in(&mut self, n: u64) -> bool {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.is_multiple_of(n)
    }
}

/// Carries bytes from `from` to `to`, and once in `rate` bytes flips, drops or doubles one.
fn carry(mut from: TTYPort, mut to: TTYPort, rate: u64, seed: u64, stop: CancellationToken) {
    std::thread::spawn(move || {
        let mut chance = Chance(seed);
        let mut buffer = [0; 512];
        while !stop.is_cancelled() {
            let count = match from.read(&mut buffer) {
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::TimedOut => continue,
                Err(_) => return,
            };
            let mut out = Vec::new();
            for &byte in &buffer[..count] {
                match () {
                    () if chance.once_in(rate) => out.push(byte ^ 0x10),
                    () if chance.once_in(rate) => {}
                    () if chance.once_in(rate) => out.extend([byte, byte]),
                    () => out.push(byte),
                }
            }
            let mut rest = &out[..];
            while !rest.is_empty() && !stop.is_cancelled() {
                match to.write(rest) {
                    Ok(count) => rest = &rest[count..],
                    Err(error) if error.kind() == ErrorKind::TimedOut => {}
                    Err(_) => return,
                }
            }
        }
    });
}

#[test]
fn files_cross_a_clean_line_and_the_same_file_again_is_no_second_one() {
    let (mut near, far) = pair();
    let (shelf, stop) = (Shelf::default(), CancellationToken::new());
    let receiving = shelf.receive(far, &stop);
    for (name, length) in [("a.dcm", 1), ("b.dcm", 1024), ("c.dcm", 50_001), ("c.dcm", 50_001)] {
        push(&mut near, name, &content(length), pace()).unwrap();
    }
    stop.cancel();
    receiving.join().unwrap();
    let got = shelf.0.lock().unwrap();
    let names: Vec<_> = got.iter().map(|(name, bytes)| (name.as_str(), bytes.len())).collect();
    assert_eq!(names, [("a.dcm", 1), ("b.dcm", 1024), ("c.dcm", 50_001)]);
    assert!(got[2].1 == content(50_001));
}

#[test]
fn a_line_that_flips_drops_and_doubles_bytes_still_carries_the_file() {
    let (mut near, wire_in) = pair();
    let (wire_out, far) = pair();
    let (shelf, stop) = (Shelf::default(), CancellationToken::new());
    let receiving = shelf.receive(far, &stop);
    let (back_in, back_out) =
        (wire_out.try_clone_native().unwrap(), wire_in.try_clone_native().unwrap());
    carry(wire_in, wire_out, 3000, 0x9E37_79B9, stop.clone());
    carry(back_in, back_out, 3000, 0x7F4A_7C15, stop.clone());
    push(&mut near, "mask.dcm", &content(60_000), pace()).unwrap();
    stop.cancel();
    receiving.join().unwrap();
    let got = shelf.0.lock().unwrap();
    assert!(got.len() == 1 && got[0].1 == content(60_000));
}

/// Hangs up after a number of bytes in both directions together.
struct Cut<L> {
    line: L,
    left: usize,
}

impl<L: Read> Read for Cut<L> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.line.read(buffer)?;
        self.spend(count)
    }
}

impl<L: Write> Write for Cut<L> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.spend(bytes.len())?;
        self.line.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.line.flush()
    }
}

impl<L> Cut<L> {
    fn spend(&mut self, count: usize) -> std::io::Result<usize> {
        self.left = self.left.checked_sub(count).ok_or(ErrorKind::BrokenPipe)?;
        Ok(count)
    }
}

#[test]
fn after_a_pulled_cable_the_transfer_goes_on_where_it_broke() {
    let (near, far) = pair();
    let (shelf, stop) = (Shelf::default(), CancellationToken::new());
    let receiving = shelf.receive(far, &stop);
    let bytes = content(40_000);
    let mut cut = Cut { line: near, left: 25_000 };
    assert!(matches!(push(&mut cut, "mask.dcm", &bytes, pace()), Err(LinkError::Line(_))));
    assert!(shelf.0.lock().unwrap().is_empty());
    std::thread::sleep(Duration::from_millis(100));
    // What is left fits only because the first part is not sent again.
    cut.left = 25_000;
    push(&mut cut, "mask.dcm", &bytes, pace()).unwrap();
    stop.cancel();
    receiving.join().unwrap();
    assert!(shelf.0.lock().unwrap()[0].1 == bytes);
}

#[test]
fn a_dead_line_and_a_refused_name_end_the_attempt() {
    let (mut near, far) = pair();
    let quick = Pace { give_up: Duration::from_millis(300), ..pace() };
    assert!(matches!(push(&mut near, "a", b"x", quick), Err(LinkError::Stalled(_))));
    let (shelf, stop) = (Shelf::default(), CancellationToken::new());
    let receiving = shelf.receive(far, &stop);
    let result = push(&mut near, "../../etc/passwd", b"x", pace());
    assert!(matches!(result, Err(LinkError::Refused)));
    stop.cancel();
    receiving.join().unwrap();
    assert!(shelf.0.lock().unwrap().is_empty());
}
