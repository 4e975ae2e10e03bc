//! A TCP proxy in front of Redis, whose connections can be closed, torn in the middle of a message,
//! stranded without a word, or held still for a while and then let go on: what was held arrives
//! late.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
};
use tokio_util::task::AbortOnDropHandle;

/// How long a connection that is to be torn waits for something to tear.
const TEAR_WITHIN: Duration = Duration::from_millis(500);

/// How a connection is cut.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Cut {
    /// Both sides are closed.
    #[default]
    Closed,
    /// Both sides are closed in the middle of what it carries next.
    Torn,
    /// Nobody is told: what is sent vanishes, as behind a router that forgot the connection.
    Stranded,
}

/// What all connections of a proxy obey.
#[derive(Debug, Clone, Copy, Default)]
struct Weather {
    /// Connections of an earlier one are cut.
    epoch: u64,
    cut: Cut,
    /// Nothing gets through, in either direction.
    still: bool,
}

/// A proxy to one port of this machine. It ends with this value.
#[derive(Debug)]
pub struct Proxy {
    addr: SocketAddr,
    weather: watch::Sender<Weather>,
    _task: AbortOnDropHandle<()>,
}

impl Proxy {
    pub async fn to(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let weather = watch::Sender::new(Weather::default());
        let task = tokio::spawn(accept(listener, port, weather.subscribe()));
        Self { addr, weather, _task: AbortOnDropHandle::new(task) }
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.addr)
    }

    /// Cuts every connection that there is.
    pub fn cut(&self, cut: Cut) {
        self.weather.send_modify(|weather| {
            weather.epoch += 1;
            weather.cut = cut;
        });
    }

    /// Lets nothing through for a while; connections stay, and new ones are taken.
    pub async fn stall(&self, time: Duration) {
        self.weather.send_modify(|weather| weather.still = true);
        tokio::time::sleep(time).await;
        self.weather.send_modify(|weather| weather.still = false);
    }
}

async fn accept(listener: TcpListener, port: u16, weather: watch::Receiver<Weather>) {
    loop {
        let Ok((client, _)) = listener.accept().await else { return };
        tokio::spawn(connection(client, port, weather.clone()));
    }
}

/// The weather as soon as it is like this.
async fn once(
    weather: &mut watch::Receiver<Weather>,
    like: impl FnMut(&Weather) -> bool,
) -> io::Result<Weather> {
    let met = weather.wait_for(like).await.map_err(|_| io::ErrorKind::BrokenPipe)?;
    Ok(*met)
}

/// Carries one connection until either side closes it or it is cut.
async fn connection(client: TcpStream, port: u16, mut weather: watch::Receiver<Weather>) {
    let epoch = weather.borrow().epoch;
    match once(&mut weather, |weather| !weather.still || weather.epoch != epoch).await {
        Ok(weather) if weather.epoch == epoch => {}
        _ => return,
    }
    // Nobody there: the client's connection closes, too.
    let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let up = carry(from_client, to_server, weather.clone(), epoch);
    let down = carry(from_server, to_client, weather, epoch);
    // Whichever ends first drops both sockets.
    tokio::select! {
        _ = up => {}
        _ = down => {}
    }
}

async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut weather: watch::Receiver<Weather>,
    epoch: u64,
) -> io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let length = tokio::select! {
            biased;
            cut = once(&mut weather, |weather| weather.epoch != epoch) => {
                return end(from, to, cut?.cut, &mut buffer).await;
            }
            length = from.read(&mut buffer) => length?,
        };
        if length == 0 {
            return Ok(());
        }
        let now = once(&mut weather, |weather| !weather.still || weather.epoch != epoch).await?;
        if now.epoch != epoch {
            if now.cut == Cut::Torn {
                return to.write_all(&buffer[..length / 2]).await;
            }
            return end(from, to, now.cut, &mut buffer).await;
        }
        to.write_all(&buffer[..length]).await?;
    }
}

/// What a direction still does once it is cut.
async fn end(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    cut: Cut,
    buffer: &mut [u8],
) -> io::Result<()> {
    match cut {
        Cut::Closed => Ok(()),
        Cut::Torn => match tokio::time::timeout(TEAR_WITHIN, from.read(buffer)).await {
            Ok(length) => to.write_all(&buffer[..length? / 2]).await,
            Err(_) => Ok(()),
        },
        Cut::Stranded => {
            while from.read(buffer).await? > 0 {}
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that says back what it hears.
    async fn echo() -> (u16, AbortOnDropHandle<()>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
        (port, AbortOnDropHandle::new(task))
    }

    async fn said_back(stream: &mut TcpStream, word: &[u8]) -> io::Result<usize> {
        stream.write_all(word).await?;
        let mut buffer = [0; 64];
        stream.read(&mut buffer).await
    }

    #[tokio::test]
    async fn a_connection_is_held_torn_closed_and_stranded() {
        let (port, _echo) = echo().await;
        let proxy = Proxy::to(port).await;
        let mut held = TcpStream::connect(proxy.addr).await.unwrap();
        assert_eq!(said_back(&mut held, b"12345678").await.unwrap(), 8);
        let mut buffer = [0; 64];
        let stall = proxy.stall(Duration::from_millis(200));
        let heard = async {
            held.write_all(b"12345678").await.unwrap();
            tokio::time::timeout(Duration::from_millis(100), held.read(&mut buffer)).await
        };
        let ((), heard) = tokio::join!(stall, heard);
        assert!(heard.is_err(), "nothing gets through");
        assert_eq!(held.read(&mut buffer).await.unwrap(), 8, "it arrives late");
        proxy.cut(Cut::Torn);
        let torn = said_back(&mut held, b"12345678").await.unwrap_or_default();
        assert!(torn < 8, "{torn}");
        let mut cut = TcpStream::connect(proxy.addr).await.unwrap();
        assert_eq!(said_back(&mut cut, b"1").await.unwrap(), 1);
        proxy.cut(Cut::Closed);
        assert_eq!(cut.read(&mut buffer).await.unwrap_or_default(), 0);
        let mut stranded = TcpStream::connect(proxy.addr).await.unwrap();
        assert_eq!(said_back(&mut stranded, b"1").await.unwrap(), 1);
        proxy.cut(Cut::Stranded);
        let said = said_back(&mut stranded, b"1");
        let said = tokio::time::timeout(Duration::from_millis(100), said).await;
        assert!(said.is_err(), "nobody answers and nobody hangs up");
    }
}
