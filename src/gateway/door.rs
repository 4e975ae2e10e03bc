//! The address that a gateway listens on.

use std::{net::SocketAddr, time::Duration};

use tokio::net::{TcpListener, TcpSocket};

use super::{Error, Options, auth::Keys};

/// Connections that wait to be accepted.
const BACKLOG: u32 = 4096;

/// How long to wait when no connection can be accepted: descriptors may have run out.
pub(super) const RESPITE: Duration = Duration::from_millis(50);

/// An address that is listened on.
#[derive(Debug)]
pub struct Door {
    listener: TcpListener,
    addr: SocketAddr,
}

impl Door {
    /// Listens. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Keys`] and [`Error::NoSecret`] for keys that cannot be used, [`Error::Open`] where strangers could
    /// come in without a key, [`Error::Bind`] for an address that is taken.
    pub fn open(options: &Options) -> Result<Self, Error> {
        // What is wrong with the keys does not pass by waiting.
        Keys::load(options)?;
        let addr = options.listen;
        if options.keys.as_os_str().is_empty() {
            if !addr.ip().is_loopback() {
                return Err(Error::Open(addr));
            }
            tracing::warn!(%addr, "no API keys: whoever is on this machine has every right (gateway.keys)");
        }
        let listen = || {
            let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            socket.set_reuseaddr(true)?;
            socket.bind(addr)?;
            let listener = socket.listen(BACKLOG)?;
            let addr = listener.local_addr()?;
            Ok(Self { listener, addr })
        };
        listen().map_err(|source| Error::Bind { addr, source })
    }

    /// The address, with the port that was really taken.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(super) fn into_listener(self) -> TcpListener {
        self.listener
    }
}
