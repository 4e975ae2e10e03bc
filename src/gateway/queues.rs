//! `/v1/queues`.

use std::sync::Arc;

use axum::{Json as Reply, extract::State};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    app::App,
    auth::{Known, Right},
    error::Refusal,
    params::{Asked, Params},
};
use crate::{broker::Partition, job::QueueName};

/// How much is where.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Queues {
    /// `list`.
    object: &'static str,
    data: Vec<Depth>,
}

#[derive(Debug, Serialize, ToSchema)]
struct Depth {
    queue: String,
    /// Jobs that no worker has.
    waiting: u64,
    /// Jobs in workers' hands.
    in_flight: u64,
    /// Jobs that wait for a time.
    parked: u64,
    dead: u64,
    /// Live workers that serve it.
    workers: usize,
}

/// A queue's name.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Queue {
    /// Another queue than the gateway's own.
    #[param(value_type = Option<String>, pattern = "^[A-Za-z0-9_.@-]{1,64}$", nullable = false)]
    queue: Option<QueueName>,
}

impl Asked for Queue {
    const ALLOWED: &'static [(&'static str, &'static str)] =
        &[("queue", "1 to 64 of letters, digits and _ . - @")];
}

/// How much waits, runs, is parked and is dead; needs the right `admin`
///
/// Of one queue: the gateway's own, unless another is named.
#[utoipa::path(get, path = "/v1/queues", operation_id = "list_queues", tag = "operation", params(Queue),
    responses((status = 200, description = "Of one queue", body = Queues)))]
pub(super) async fn queues(
    State(app): State<Arc<App>>,
    Known(caller): Known,
    Params(Queue { queue }): Params<Queue>,
) -> Result<Reply<Queues>, Refusal> {
    caller.needs(Right::Admin)?;
    let queue = queue.unwrap_or_else(|| app.options.queue.clone());
    let partition = Partition::first(queue.clone());
    let (depth, workers) =
        tokio::join!(app.broker.depth(&partition), app.producer.live_workers(&queue));
    let (depth, workers) = (app.noticed(depth)?, app.noticed(workers)?);
    let depth = Depth {
        queue: queue.to_string(),
        waiting: depth.lanes.iter().map(|lane| lane.waiting).sum(),
        in_flight: depth.lanes.iter().map(|lane| lane.pending).sum(),
        parked: depth.parked,
        dead: depth.dead,
        workers,
    };
    Ok(Reply(Queues { object: "list", data: vec![depth] }))
}
