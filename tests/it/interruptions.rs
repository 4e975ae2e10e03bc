//! Errors of a server that restarts, changes its role or is meddled with: claims, renewals and
//! readers go on by themselves, and an answer under way is neither lost nor stolen.

use std::time::Duration;

use futures_util::StreamExt as _;
use millstream::{
    broker::redis::keys::Keys,
    event::{Body, Event},
    job::{JobId, Lane},
    worker,
};
use tokio::task::JoinHandle;

use crate::support::{
    redis::Server,
    stack::{Stack, connect, expected, paced},
    subject::soon,
};

const LEASE: Duration = Duration::from_millis(1500);

fn options() -> worker::Options {
    worker::Options {
        lease: LEASE,
        // No part of the lease: the last one before its end is well before it.
        renewal: Duration::from_millis(400),
        sweep: Duration::from_millis(50),
        ..worker::Options::default()
    }
}

fn lane(stack: &Stack) -> String {
    Keys::new("ms").lane(&stack.partition, Lane::Normal)
}

async fn pause() {
    tokio::time::sleep(Duration::from_millis(5)).await;
}

/// An answer under way on one worker, a second worker that would take it, and a reader.
struct Scene {
    stack: Stack,
    id: JobId,
    model: &'static str,
    reader: JoinHandle<Vec<Event>>,
}

impl Scene {
    /// `model` speaks for as long as the trouble lasts.
    async fn start(model: &'static str, server: Server) -> Self {
        let stack = Stack::on(server, paced(40.0)).await;
        // It has the job before there is anybody else, and does not sweep.
        let alone = worker::Options { sweep: Duration::from_hours(1), ..options() };
        let (stop, worker) = stack.worker(alone);
        let id = stack.ask(model, "interrupted").await;
        let mut events = stack.listener().listen(id).events();
        let (sender, spoke) = tokio::sync::oneshot::channel();
        let reader = tokio::spawn(async move {
            let (mut seen, mut sender) = (Vec::new(), Some(sender));
            while let Some(event) = events.next().await {
                let event: Event = event.unwrap();
                if matches!(event.body, Body::Delta(_))
                    && let Some(sender) = sender.take()
                {
                    sender.send(()).unwrap();
                }
                seen.push(event);
            }
            seen
        });
        soon(spoke).await.unwrap();
        // In another process, as far as Redis can tell.
        let elsewhere = connect(&stack.server.url()).await;
        drop((stop, worker, stack.worker_on(elsewhere, options())));
        // It has calmed down: from here on it takes what has run out of lease.
        tokio::time::sleep(LEASE + options().sweep * 4).await;
        Self { stack, id, model, reader }
    }

    /// The answer comes whole from the one attempt, its reader saw all of it, and new jobs run.
    async fn end(self) {
        let Self { stack, id, model, reader } = self;
        let answer = soon(stack.listener().listen(id).answer()).await.unwrap();
        assert_eq!(answer.text, expected(model, "interrupted"));
        let log: Vec<Event> =
            stack.listener().listen(id).events().map(Result::unwrap).collect().await;
        let started = log.iter().filter(|event| matches!(event.body, Body::Started(_))).count();
        assert_eq!(started, 1, "a live worker's answer was taken");
        assert!(log.windows(2).all(|pair| pair[0].id.precedes(pair[1].id)), "a hole: {log:?}");
        assert_eq!(soon(reader).await.unwrap(), log, "the reader saw something else");
        for n in 0..4 {
            let question = format!("afterwards {n}");
            let id = stack.ask("m?tokens=3,rate=0", &question).await;
            let answer = soon(stack.listener().listen(id).answer()).await.unwrap();
            assert_eq!(answer.text, expected("m?tokens=3,rate=0", &question));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_loads_is_waited_for() {
    let mut scene = Scene::start("m?tokens=160", Server::durable().await).await;
    // Each of these keys takes a while to load.
    let fill = "for i = 1, 8000 do redis.call('SET', 'filler:' .. i, i) end";
    scene.stack.server.command(&["EVAL", fill, "0"]);
    scene.stack.server.stop();
    scene.stack.server.start_again(&["--key-load-delay", "100"]);
    let mut loading = 0;
    soon(async {
        loop {
            match scene.stack.server.ask(&["EXISTS", "filler:1"]) {
                Err(error) if error.code() == Some("LOADING") => loading += 1,
                Ok(_) => return,
                Err(_) => {}
            }
            pause().await;
        }
    })
    .await;
    assert!(loading > 1, "it loaded at once");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_forgot_the_scripts_is_told_them_again() {
    let scene = Scene::start("m?tokens=140", Server::start().await).await;
    for _ in 0..40 {
        scene.stack.server.command(&["SCRIPT", "FLUSH"]);
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    let id = scene.stack.ask("m?tokens=3,rate=0", "without scripts").await;
    scene.stack.server.command(&["SCRIPT", "FLUSH"]);
    soon(scene.stack.listener().listen(id).answer()).await.unwrap();
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blocked_reader_that_is_thrown_out_reads_on() {
    let scene = Scene::start("m?tokens=140", Server::start().await).await;
    let blocked = |server: &Server| -> Vec<String> {
        let clients = server.command(&["CLIENT", "LIST"]);
        let id = |line: &str| line.split(' ').next()?.strip_prefix("id=").map(str::to_owned);
        clients.lines().filter(|line| line.contains(" flags=b ")).filter_map(id).collect()
    };
    let server = &scene.stack.server;
    for round in 0..6 {
        let ids = soon(async {
            loop {
                let ids = blocked(server);
                if ids.len() == 2 {
                    return ids;
                }
                pause().await;
            }
        })
        .await;
        for id in ids {
            match round % 3 {
                0 => server.command(&["CLIENT", "UNBLOCK", &id, "ERROR"]),
                1 => server.command(&["CLIENT", "KILL", "ID", &id]),
                _ => server.command(&["CLIENT", "KILL", "TYPE", "pubsub"]),
            };
        }
    }
    scene.end().await;
}

/// Guards against a change of roles that costs a live worker its answer: writes are refused, so that
/// it cannot renew its lease, and whoever sweeps was not refused anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_was_a_replica_for_a_while_loses_nothing() {
    let scene = Scene::start("m?tokens=200", Server::start().await).await;
    let server = &scene.stack.server;
    // Nobody listens there: it keeps what it has, and refuses writes.
    server.command(&["REPLICAOF", "127.0.0.1", "1"]);
    let refused = server.ask(&["SET", "k", "v"]).unwrap_err();
    assert_eq!(refused.code(), Some("READONLY"));
    // Until the lease is all but over: the live worker cannot renew it, and the other one sweeps.
    let key = lane(&scene.stack);
    let idle = || -> u128 {
        let pending = server.command(&["XPENDING", &key, "workers", "-", "+", "1"]);
        pending.lines().nth(2).unwrap().parse().unwrap()
    };
    soon(async {
        while idle() + 40 < LEASE.as_millis() {
            pause().await;
        }
    })
    .await;
    server.command(&["REPLICAOF", "NO", "ONE"]);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_destroyed_under_an_answer_is_made_again() {
    let stack = Stack::start(paced(40.0)).await;
    let (_stop, _worker) = stack.worker(options());
    let id = stack.ask("m?tokens=80", "no group").await;
    let mut events = stack.listener().listen(id).events();
    while !matches!(soon(events.next()).await.unwrap().unwrap().body, Body::Delta(_)) {}
    assert_eq!(stack.server.command(&["XGROUP", "DESTROY", &lane(&stack), "workers"]), "1");
    let answer = soon(stack.listener().listen(id).answer()).await.unwrap();
    assert_eq!(answer.text, expected("m?tokens=80", "no group"));
    assert_eq!(answer.outcome.unwrap().attempts, 1, "its own worker took it from itself");
    let id = stack.ask("m?tokens=3,rate=0", "afterwards").await;
    let answer = soon(stack.listener().listen(id).answer()).await.unwrap();
    assert_eq!(answer.text, expected("m?tokens=3,rate=0", "afterwards"));
}
