//! The gateway: jobs, events and chat completions over HTTP.

mod access;
mod cache;
mod chat;
mod connections;
mod events;
mod idle;
mod jobs;
mod limits;
mod matrix;
mod memory;
mod processes;
mod repeats;
mod revoked;
mod unserved;
