//! The gateway: jobs, events and chat completions over HTTP.

mod access;
mod cache;
mod chat;
mod events;
mod jobs;
mod limits;
