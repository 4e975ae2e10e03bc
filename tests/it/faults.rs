//! Faults in a worker's own tasks: it must not go on as if it were whole.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use millstream::{
    broker::{Topic, Wake},
    event::Body,
    listener::{self, Heard, Link, Listener},
    worker::{Options, Reason, Task},
};

use crate::support::{
    dying::{Dying, Fate, Plan},
    stack::{Stack, connect, expected, paced},
    subject::soon,
};

fn options() -> Options {
    Options {
        lease: Duration::from_millis(600),
        renewal: Duration::from_millis(100),
        sweep: Duration::from_millis(100),
        ..Options::default()
    }
}

/// Guards against a worker that looks alive and reads, renews, sweeps or hears nothing any more: it
/// stops by itself and says why, and its jobs come to their ends. What it can neither renew nor start
/// it gives back.
async fn stops(task: Task, call: &'static str) {
    let stack = Stack::start(paced(200.0)).await;
    // Long enough for the worker to come back to it with a new connection.
    let model = if task == Task::Control { "m?tokens=800" } else { "m?tokens=200" };
    let id = stack.ask(model, call).await;
    let fate = Fate::new(Plan::Panic(call));
    let broker = Dying::around(connect(&stack.server.url()).await, Arc::clone(&fate));
    let (_stop, worker) = stack.worker_on(broker, options());
    if task == Task::Control {
        // It reads the records when its subscription comes back, and holds something.
        let mut events = stack.listener().listen(id).events();
        while !matches!(soon(events.next()).await.unwrap().unwrap().body, Body::Delta(_)) {}
        stack.server.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    }
    let stopped = soon(worker).await.unwrap();
    assert_eq!(stopped.reason, Reason::TaskEnded(task));
    assert!(fate.fell());
    if task == Task::Lease || call == "wake" {
        assert_eq!(stopped.unfinished, [id]);
    } else {
        assert!(stopped.unfinished.is_empty(), "{stopped:?}");
    }
    let (_stop, _heir) = stack.worker(options());
    let answer = soon(stack.listener().listen(id).answer()).await.unwrap();
    assert_eq!(answer.text, expected(model, call));
}

/// Guards against readers and workers that take a subscription for live whose task is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_connection_whose_task_panicked_comes_back() {
    let stack = Stack::start(paced(200.0)).await;
    let fate = Fate::new(Plan::Panic("subscribe"));
    let broker = Dying::around(connect(&stack.server.url()).await, Arc::clone(&fate));
    let hub = Listener::new(broker, listener::Options::default()).hub();
    let mut wakes = hub.subscribe(Topic::Wake(stack.partition.clone()));
    while !matches!(wakes.current(), Link::Live(_)) {
        soon(wakes.next_link()).await;
    }
    assert!(fate.fell());
    stack.broker.wake(&stack.partition, Wake::Added).await.unwrap();
    while !matches!(soon(wakes.next()).await, Heard::Message(_)) {}
}

macro_rules! faults {
    ($($name:ident: $task:ident in $call:literal;)+) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            stops(Task::$task, $call).await;
        })+
    };
}

faults! {
    a_worker_whose_reader_ends_stops: Reader in "wait";
    a_worker_whose_reader_ends_with_its_hands_full_stops: Reader in "wake";
    a_worker_whose_sweeper_ends_stops: Sweeper in "sweep";
    a_worker_whose_promoter_ends_stops: Promoter in "promote";
    a_worker_whose_janitor_ends_stops: Janitor in "retire";
    a_worker_whose_leases_are_not_renewed_stops: Lease in "renew";
    a_worker_that_hears_no_orders_stops: Control in "cancelled";
    a_worker_that_acknowledges_nothing_stops: Settle in "remove";
}
