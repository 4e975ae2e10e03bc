//! What the tests stand on: private servers, brokers under test, and a vocabulary for behaviours.

pub mod dying;
pub mod gate;
pub mod port;
pub mod program;
pub mod proxy;
pub mod recorder;
pub mod redis;
pub mod stack;
pub mod subject;
pub mod victim;
pub mod web;
