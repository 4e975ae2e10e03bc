//! `millstream-gateway`: serves jobs to the web.

use std::process::ExitCode;

use millstream::cli;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // An error means that a provider is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    cli::main(cli::gateway::run)
}
