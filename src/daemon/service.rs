use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The service manager that started this process, told how it is doing (`sd_notify(3)`). Outside systemd every call
/// does nothing.
#[derive(Debug, Default)]
pub struct ServiceManager {
    link: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl ServiceManager {
    /// Reads `NOTIFY_SOCKET` and `WATCHDOG_USEC`.
    #[must_use]
    pub fn from_environment() -> Self {
        let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return Self::default() };
        let micros = std::env::var("WATCHDOG_USEC").ok().and_then(|text| text.parse().ok());
        Self::at(socket.as_bytes(), micros.map(Duration::from_micros))
    }

    fn at(socket: &[u8], watchdog: Option<Duration>) -> Self {
        let address = match socket.strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name),
            None => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(socket)),
        };
        let link = address.and_then(|address| {
            let socket = UnixDatagram::unbound()?;
            socket.set_nonblocking(true)?; // a manager that does not listen must not stop the daemon
            Ok((socket, address))
        });
        let link =
            link.inspect_err(|error| tracing::warn!(%error, "no word to the service manager"));
        Self { link: link.ok(), watchdog }
    }

    /// How often it wants a sign of life: twice as often as it must have one.
    #[must_use]
    pub fn interval(&self) -> Option<Duration> {
        self.watchdog.map(|watchdog| watchdog / 2).filter(|interval| !interval.is_zero())
    }

    pub fn ready(&self) {
        self.tell("READY=1");
    }

    pub fn reloading(&self) {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let micros = now.tv_sec * 1_000_000 + now.tv_nsec / 1000;
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={micros}"));
    }

    pub fn alive(&self) {
        self.tell("WATCHDOG=1");
    }

    /// Draining, for `longest`.
    pub fn stopping(&self, longest: Duration) {
        let micros = (longest + Duration::from_secs(5)).as_micros();
        self.tell(&format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={micros}"));
    }

    fn tell(&self, message: &str) {
        if let Some((socket, address)) = &self.link
            && let Err(error) = socket.send_to_addr(message.as_bytes(), address)
        {
            tracing::warn!(%error, "no word to the service manager");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manager_hears_every_state() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let service =
            ServiceManager::at(path.as_os_str().as_bytes(), Some(Duration::from_secs(10)));
        assert_eq!(service.interval(), Some(Duration::from_secs(5)));
        service.ready();
        service.reloading();
        service.alive();
        service.stopping(Duration::from_secs(1));
        let mut buffer = [0; 128];
        for expected in [
            "READY=1",
            "RELOADING=1\nMONOTONIC_USEC=",
            "WATCHDOG=1",
            "STOPPING=1\nEXTEND_TIMEOUT_USEC=6000000",
        ] {
            let length = manager.recv(&mut buffer).unwrap();
            let text = std::str::from_utf8(&buffer[..length]).unwrap();
            assert!(text.starts_with(expected), "{text}");
        }
        ServiceManager::default().ready();
    }
}
