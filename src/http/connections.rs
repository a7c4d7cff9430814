//! Who is connected, and who gives way when too many are.
//!
//! Invariants:
//! 1. A new connection is always accepted. When there are too many, the one that has waited longest for its own peer is
//!    closed for it, first among those of the address with the most connections; a request that is being answered is not.
//! 2. Requests that read a body, compute or fetch results need a place. Health, metrics and the status page need none, so
//!    they are answered whatever else goes on.
//! 3. A place is held until the answer has been taken. While requests wait for one, a peer that has moved nothing for a
//!    second loses its own.
//!
//! `serve` keeps the connections, `door` hands out the places.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

/// How long a peer may move nothing while other requests wait for its place.
const STILL: Duration = Duration::from_secs(1);

/// What a connection does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doing {
    /// Waits since then for its peer: for a handshake, the head of a request, or until an answer is taken.
    Peer(Instant),
    /// Its request waits since then for a place.
    Queue(Instant),
    /// Its request is being answered.
    Answer,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Line {
    address: IpAddr,
    state: Mutex<State>,
    /// Somebody else needs what it takes up.
    closed: CancellationToken,
    all: Arc<Connections>,
}

#[derive(Debug)]
struct State {
    doing: Doing,
    has_place: bool,
}

impl Line {
    /// Its request is here, and is being answered.
    pub(super) fn answers(&self) {
        self.state().doing = Doing::Answer;
    }

    /// Nothing is to be done until its peer does something.
    pub(super) fn waits(&self) {
        self.state().doing = Doing::Peer(Instant::now());
    }

    /// Its peer has taken something.
    pub(super) fn moved(&self) {
        let mut state = self.state();
        if let Doing::Peer(since) = &mut state.doing {
            *since = Instant::now();
        }
    }

    /// Ends when the connection has to be closed for others.
    pub(super) async fn closed(&self) {
        self.closed.cancelled().await;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn for_tests() -> Arc<Self> {
        let all = Arc::new(Connections::new(1));
        Arc::clone(all.admit(IpAddr::from([127, 0, 0, 1])).unwrap().line())
    }
}

/// All connections of a server.
#[derive(Debug)]
pub(super) struct Connections {
    most: usize,
    lines: Mutex<Lines>,
}

#[derive(Debug, Default)]
struct Lines {
    last: u64,
    open: HashMap<u64, Arc<Line>>,
}

/// A connection that counts as open while this lives.
#[derive(Debug)]
pub(super) struct Open {
    number: u64,
    line: Arc<Line>,
}

impl Open {
    pub(super) fn line(&self) -> &Arc<Line> {
        &self.line
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.line.all.lines().open.remove(&self.number);
    }
}

impl Connections {
    pub(super) fn new(most: usize) -> Self {
        Self { most, lines: Mutex::default() }
    }

    /// Counts a connection in. `None` if every other one is being answered.
    pub(super) fn admit(self: &Arc<Self>, address: IpAddr) -> Option<Open> {
        let address = network_of(address);
        let mut lines = self.lines();
        if lines.open.len() >= self.most {
            let number = lines.to_close()?;
            if let Some(line) = lines.open.remove(&number) {
                line.closed.cancel();
            }
        }
        let state = State { doing: Doing::Peer(Instant::now()), has_place: false };
        let line = Arc::new(Line {
            address,
            state: Mutex::new(state),
            closed: CancellationToken::new(),
            all: Arc::clone(self),
        });
        lines.last += 1;
        let number = lines.last;
        lines.open.insert(number, Arc::clone(&line));
        Some(Open { number, line })
    }

    /// Closes the connection that has held a place for longest while its peer moved nothing; one of `address` if given.
    fn take_back_a_place(&self, address: Option<IpAddr>) {
        let lines = self.lines();
        let still = lines.open.values().filter_map(|line| {
            let state = line.state();
            let is_meant = address.is_none_or(|address| address == line.address);
            match state.doing {
                Doing::Peer(since)
                    if is_meant && state.has_place && !line.closed.is_cancelled() =>
                {
                    (since.elapsed() >= STILL).then_some((since, line))
                }
                _ => None,
            }
        });
        if let Some((_, line)) = still.min_by_key(|(since, _)| *since) {
            line.closed.cancel();
        }
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lines {
    /// Which connection gives way to a new one.
    fn to_close(&self) -> Option<u64> {
        let mut of_address: HashMap<IpAddr, usize> = HashMap::new();
        for line in self.open.values() {
            *of_address.entry(line.address).or_default() += 1;
        }
        let candidates = self.open.iter().filter_map(|(number, line)| {
            let (is_queued, since) = match line.state().doing {
                Doing::Peer(since) => (false, since),
                Doing::Queue(since) => (true, since),
                Doing::Answer => return None,
            };
            let others = usize::MAX - of_address[&line.address];
            Some(((is_queued, others, since), *number))
        });
        candidates.min().map(|(_, number)| number)
    }
}

/// What counts as one address: an IPv6 client usually has a whole /64 to itself.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) if !address.is_loopback() => {
            let bits = address.to_bits() >> 64 << 64;
            IpAddr::V6(Ipv6Addr::from_bits(bits))
        }
        address => address,
    }
}

/// Places for requests that take something: memory, the disk, the model.
#[derive(Debug)]
pub(super) struct Places {
    most: usize,
    most_of_address: usize,
    /// Longest wait for one.
    patience: Duration,
    taken: Mutex<Taken>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    of_address: HashMap<IpAddr, usize>,
}

/// Held until the answer is taken.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    line: Arc<Line>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.line.state().has_place = false;
        let mut taken = self.places.taken();
        taken.all -= 1;
        if let Some(count) = taken.of_address.get_mut(&self.line.address) {
            *count -= 1;
            if *count == 0 {
                taken.of_address.remove(&self.line.address);
            }
        }
        drop(taken);
        self.places.freed.notify_waiters();
    }
}

impl Places {
    pub(super) fn new(most: usize, most_of_address: usize, patience: Duration) -> Self {
        Self { most, most_of_address, patience, taken: Mutex::default(), freed: Notify::new() }
    }

    /// Waits for a place. `None` if there is none in time.
    pub(super) async fn take(self: &Arc<Self>, line: &Arc<Line>) -> Option<Place> {
        let until = Instant::now() + self.patience;
        line.state().doing = Doing::Queue(Instant::now());
        let place = loop {
            let mut freed = std::pin::pin!(self.freed.notified());
            freed.as_mut().enable();
            match self.try_take(line) {
                Ok(place) => break Some(place),
                Err(address) => line.all.take_back_a_place(address),
            }
            let now = Instant::now();
            if now >= until {
                break None;
            }
            let _ = timeout_at(until.min(now + STILL), freed).await;
        };
        line.answers();
        place
    }

    /// A place if there is one; otherwise the address whose share is used up, or none where all places are.
    fn try_take(self: &Arc<Self>, line: &Arc<Line>) -> Result<Place, Option<IpAddr>> {
        let mut taken = self.taken();
        let of_address = taken.of_address.get(&line.address).copied().unwrap_or_default();
        if of_address >= self.most_of_address {
            return Err(Some(line.address));
        }
        if taken.all >= self.most {
            return Err(None);
        }
        taken.all += 1;
        taken.of_address.insert(line.address, of_address + 1);
        drop(taken);
        line.state().has_place = true;
        Ok(Place { places: Arc::clone(self), line: Arc::clone(line) })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    fn is_closed(open: &Open) -> bool {
        open.line.closed.is_cancelled()
    }

    /// It has waited for its peer for so many seconds.
    fn waits_for(open: &Open, seconds: u64) {
        let since = Instant::now().checked_sub(Duration::from_secs(seconds)).unwrap();
        open.line.state().doing = Doing::Peer(since);
    }

    #[test]
    fn who_has_waited_longest_for_its_peer_gives_way() {
        let all = Arc::new(Connections::new(3));
        let open = [(); 3].map(|()| all.admit(A).unwrap());
        waits_for(&open[0], 30);
        waits_for(&open[1], 20);
        waits_for(&open[2], 10);
        open[0].line.answers();
        let next = all.admit(A).unwrap();
        assert_eq!(open.each_ref().map(is_closed), [false, true, false]);
        waits_for(&next, 20);
        open[2].line.moved();
        let last = all.admit(A).unwrap();
        assert!(is_closed(&next) && !is_closed(&open[2]), "bytes have moved");
        for open in [&open[2], &last] {
            open.line.answers();
        }
        assert!(all.admit(A).is_none(), "all are being answered");
        drop(last);
        assert!(all.admit(A).is_some());
    }

    #[test]
    fn the_address_with_the_most_connections_gives_way_first() {
        let all = Arc::new(Connections::new(3));
        let lone = all.admit(B).unwrap();
        let many = [all.admit(A).unwrap(), all.admit(A).unwrap()];
        waits_for(&lone, 30);
        waits_for(&many[0], 20);
        let _next = all.admit(B).unwrap();
        assert!(!is_closed(&lone) && is_closed(&many[0]));
    }

    #[tokio::test]
    async fn an_address_has_its_share_of_the_places_and_no_more() {
        let all = Arc::new(Connections::new(9));
        let places = Arc::new(Places::new(3, 2, Duration::ZERO));
        let open = [(); 3].map(|()| all.admit(A).unwrap());
        let first = places.take(&open[0].line).await.unwrap();
        let _second = places.take(&open[1].line).await.unwrap();
        assert!(places.take(&open[2].line).await.is_none());
        let other = all.admit(B).unwrap();
        let _third = places.take(&other.line).await.unwrap();
        let late = all.admit(B).unwrap();
        assert!(places.take(&late.line).await.is_none(), "all are taken");
        assert!(!open.iter().any(is_closed), "those are being answered");
        drop(first);
        assert!(places.take(&open[2].line).await.is_some());
    }

    #[tokio::test]
    async fn a_peer_that_takes_nothing_loses_its_place_to_a_request_that_waits() {
        let all = Arc::new(Connections::new(9));
        let places = Arc::new(Places::new(1, 1, Duration::from_hours(1)));
        let slow = all.admit(A).unwrap();
        let place = places.take(&slow.line).await.unwrap();
        waits_for(&slow, 2);
        let line = Arc::clone(&slow.line);
        tokio::spawn(async move {
            line.closed().await;
            drop(place);
        });
        let other = all.admit(A).unwrap();
        assert!(places.take(&other.line).await.is_some());
        assert!(is_closed(&slow));
    }

    #[test]
    fn an_ipv6_network_is_one_address() {
        let network = |text: &str| network_of(text.parse().unwrap());
        assert_eq!(network("2001:db8::1"), network("2001:db8::ffff:2"));
        assert_ne!(network("2001:db8::1"), network("2001:db8:0:1::1"));
        assert_eq!(network("::ffff:10.0.0.1"), A);
        assert!(network("::1").is_loopback());
    }
}
