//! Ports for whoever must know its own before it listens, or comes back to it.

use std::{
    hash::{BuildHasher as _, RandomState},
    net::{Ipv4Addr, TcpListener},
};

/// A free port below those that the system gives to outgoing connections and to listeners of port 0:
/// nobody takes it while its owner is away.
pub fn free() -> u16 {
    loop {
        // Another number each time, and in each process.
        let port = 12_000 + u16::try_from(RandomState::new().hash_one(()) % 18_000).unwrap();
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}
