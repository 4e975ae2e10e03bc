//! Redis comes back without its last moments, and what went before the crash is not finished after it
//! as if it were still known: every job reaches its one end.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use millstream::{
    admin::{Admin, Cancelled, Requeued},
    broker::{
        Attempt, Begin, Cancel, Crashes, DeadLetter, Depth, Entry, Limits, Outcome, Place,
        Reopened, Result, Run, Settled, Spent, WorkerId, Written,
        redis::{Options, Redis, keys::Keys},
    },
    event::{Body, Codec, Event},
    job::{ChatRequest, Job, JobId, Lane, Timestamp},
    retry::Schedule,
    state::State,
    worker,
};

use crate::support::{
    dying::{Fate, Plan, Side},
    stack::{Stack, expected, instant},
    subject::{begun, delta, done, failed, failure, far, retrying, soon},
    victim::Victim,
    web::Hand,
};

/// Redis dies and comes back as it was when it was last saved.
async fn fall_back(stack: &mut Stack) {
    stack.server.stop();
    stack.server.restart().await;
}

/// Repeats a call for as long as its connections are dead.
async fn through<T>(call: impl AsyncFn() -> Result<T>) -> T {
    soon(async {
        loop {
            match call().await {
                Err(error) if error.is_transient() => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                answer => break answer.unwrap(),
            }
        }
    })
    .await
}

/// Three jobs that end, each in its way, and the attempts.
async fn three_attempts(stack: &Stack) -> Vec<(Entry, Attempt)> {
    let me = WorkerId::new("me");
    for question in ["done", "retried", "failed"] {
        stack.ask("m", question).await;
    }
    let mut reader = stack.broker.claimer(&stack.partition, &me).await.unwrap();
    let mut attempts = Vec::new();
    for entry in reader.read(Lane::Normal, 3).await.unwrap() {
        let crashes = Crashes { most: 3, alone: true };
        let attempt = begun(stack.broker.begin(&entry, &me, crashes).await.unwrap());
        attempts.push((entry, attempt));
    }
    attempts
}

async fn conclude(stack: &Stack, attempts: &[(Entry, Attempt)]) {
    let ends = [
        (done(1), Outcome::Done { finish_reason: None, usage: None }),
        (
            retrying(1, &attempts[1].1),
            Outcome::Retry { error: failure("again"), delay: Duration::from_hours(1) },
        ),
        (failed(1, failure("no")), Outcome::Failed(failure("no"))),
    ];
    for ((_, attempt), (frame, outcome)) in attempts.iter().zip(ends) {
        // Where the pool has grown meanwhile, the log is seen whole in a later session, as its worker sees it.
        let (mut attempt, frames) = (attempt.clone(), [frame]);
        let written = loop {
            let session = stack.broker.session();
            let written = stack.broker.conclude(&attempt, &frames, &outcome).await.unwrap();
            if written != Written::Behind || attempt.session == session {
                break written;
            }
            attempt.session = session;
        };
        assert_eq!(written, Written::Yes);
    }
}

/// What becomes of the entries of three jobs that were seen to end under this session.
async fn settle(
    stack: &Stack,
    attempts: &[(Entry, Attempt)],
    session: u64,
) -> (bool, Settled, Settled) {
    let [(spent, _), (retried, _), (dead, attempt)] = attempts else { panic!("not three") };
    let letter = DeadLetter::new(dead, failure("no"), 1, attempt.fence);
    let due = Timestamp::now().after(Duration::from_hours(1));
    let broker = &stack.broker;
    (
        through(async || broker.remove(&[Spent::from(spent)], session).await).await,
        through(async || broker.park(retried, 1, due, session).await).await,
        through(async || broker.bury(dead, &letter, false, session).await).await,
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_entry_is_settled_for_an_end_that_may_be_forgotten() {
    let mut stack = Stack::start(instant()).await;
    let attempts = three_attempts(&stack).await;
    stack.server.command(&["SAVE"]);
    conclude(&stack, &attempts).await;
    let session = stack.broker.session();
    fall_back(&mut stack).await;
    let stale = (false, Settled::Stale, Settled::Stale);
    assert_eq!(settle(&stack, &attempts, session).await, stale);
    let mut depth = Depth::default();
    depth.lanes[1].pending = 3;
    assert_eq!(stack.broker.depth(&stack.partition).await.unwrap(), depth);

    // Seen again, they may go.
    conclude_again(&stack, &attempts).await;
    let settled = (true, Settled::Yes, Settled::Yes);
    assert_eq!(settle(&stack, &attempts, stack.broker.session()).await, settled);
    let left = Depth { parked: 1, dead: 1, ..Depth::default() };
    assert_eq!(stack.broker.depth(&stack.partition).await.unwrap(), left);
}

/// The attempts go on, as their workers see that the log is whole.
async fn conclude_again(stack: &Stack, attempts: &[(Entry, Attempt)]) {
    let session = stack.broker.session();
    let within = |(entry, attempt): &(Entry, Attempt)| {
        (entry.clone(), Attempt { session, ..attempt.clone() })
    };
    let attempts: Vec<_> = attempts.iter().map(within).collect();
    conclude(stack, &attempts).await;
}

/// Guards against jobs whose entry Redis has forgotten, and which nothing carried on after a failure.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_whose_entry_is_forgotten_is_parked_and_buried_without_it() {
    let stack = Stack::start(instant()).await;
    let attempts = three_attempts(&stack).await;
    let (broker, session) = (&stack.broker, stack.broker.session());
    let lane = Keys::new("ms").lane(&stack.partition, Lane::Normal);
    stack.server.command(&["XTRIM", &lane, "MAXLEN", "0"]);
    let due = Timestamp::now().after(Duration::from_hours(1));
    // Gone in the session in which it was given out, an entry was settled by somebody else.
    let (entry, attempt) = &attempts[1];
    let known = Entry { session, ..entry.clone() };
    assert_eq!(broker.park(&known, 2, due, session).await.unwrap(), Settled::Gone);
    let letter = DeadLetter::new(entry, failure("no"), 1, attempt.fence);
    assert_eq!(broker.bury(&known, &letter, false, session).await.unwrap(), Settled::Gone);

    let before = Entry { session: session - 1, ..entry.clone() };
    assert_eq!(broker.park(&before, 2, due, session).await.unwrap(), Settled::Yes);
    // A repeat, or a copy of an earlier attempt, changes nothing; one of a later attempt replaces it.
    assert_eq!(broker.park(&before, 2, due, session).await.unwrap(), Settled::Gone);
    assert_eq!(broker.park(&before, 1, due, session).await.unwrap(), Settled::Gone);
    assert_eq!(broker.park(&before, 3, due, session).await.unwrap(), Settled::Yes);
    assert_eq!(broker.bury(&before, &letter, false, session).await.unwrap(), Settled::Yes);
    assert_eq!(broker.bury(&before, &letter, false, session).await.unwrap(), Settled::Gone);
    let depth = broker.depth(&stack.partition).await.unwrap();
    assert_eq!((depth.parked, depth.dead), (1, 1));
    // The entry that comes in its stead goes, and the letter stays one.
    let fields = ["job", "{}", "id", &entry.id.to_string()];
    let again = stack.server.command(&[&["XADD", &lane, "*"], &fields[..]].concat());
    let place = Place { entry: again.trim().to_owned(), ..entry.place.clone() };
    let again = Entry { place, session, ..entry.clone() };
    assert_eq!(broker.bury(&again, &letter, true, session).await.unwrap(), Settled::Yes);
    let depth = broker.depth(&stack.partition).await.unwrap();
    assert_eq!((depth.lanes[1].waiting, depth.dead), (0, 1));
}

/// Guards against a look for a letter that reads through all of the last ones, whatever their size.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_letter_is_looked_for_behind_so_many_bytes() {
    let stack = Stack::start(instant()).await;
    let attempts = three_attempts(&stack).await;
    let (broker, session) = (&stack.broker, stack.broker.session());
    let keys = Keys::new("ms");
    let lane = keys.lane(&stack.partition, Lane::Normal);
    stack.server.command(&["XTRIM", &lane, "MAXLEN", "0"]);
    let (entry, attempt) = &attempts[0];
    let letter = DeadLetter::new(entry, failure("no"), 1, attempt.fence);
    let before = Entry { session: session - 1, ..entry.clone() };
    assert_eq!(broker.bury(&before, &letter, false, session).await.unwrap(), Settled::Yes);
    let others = "for i = 1, ARGV[1] do redis.call('XADD', KEYS[1], '*', 'id', 'x', \
                  'entry:job', string.rep('x', ARGV[2])) end";
    let dead = keys.dead(&stack.partition);
    stack.server.command(&["EVAL", others, "1", &dead, "60", "100"]);
    assert_eq!(broker.bury(&before, &letter, false, session).await.unwrap(), Settled::Gone);
    stack.server.command(&["EVAL", others, "1", &dead, "2", "600000"]);
    stack.reset_counts();
    assert_eq!(broker.bury(&before, &letter, false, session).await.unwrap(), Settled::Yes);
    assert_eq!(stack.command_counts().get("xrevrange"), Some(&2), "it has read on");
}

/// Guards against counters that fall too low: the parking of a retry came late, when its job had been parked,
/// promoted and done, and left a copy that nobody had counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_is_parked_late_counts() {
    let mut stack = Stack::start(instant()).await;
    let limits = Limits { max_jobs: 9, ..Limits::default() };
    let options = Options { url: stack.server.url(), limits, ..Options::default() };
    stack.broker = Arc::new(Redis::connect(options).await.unwrap());
    let (broker, partition) = (stack.broker.clone(), stack.partition.clone());
    for question in ["retried", "another"] {
        stack.ask("m", question).await;
    }
    let me = WorkerId::new("me");
    let mut reader = broker.claimer(&partition, &me).await.unwrap();
    let entry = reader.read(Lane::Normal, 1).await.unwrap().remove(0);
    let session = broker.session();
    let known = Entry { session, ..entry.clone() };
    assert_eq!(broker.park(&known, 1, Timestamp(1), session).await.unwrap(), Settled::Yes);
    assert_eq!(broker.promote(&partition, 9).await.unwrap().count, 1);
    // The first sending, which a worker of an earlier session has made.
    let late = Entry { session: session - 1, ..entry };
    assert_eq!(broker.park(&late, 1, Timestamp(1), session).await.unwrap(), Settled::Yes);
    assert_eq!(broker.promote(&partition, 9).await.unwrap().count, 1);
    assert_eq!(broker.depth(&partition).await.unwrap().load.jobs, 3);
    for entry in reader.read(Lane::Normal, 9).await.unwrap() {
        assert!(broker.remove(&[Spent::from(&entry)], u64::MAX).await.unwrap());
    }
    assert_eq!(broker.depth(&partition).await.unwrap(), Depth::default());
    assert!(broker.reconcile(&partition).await.unwrap().is_none(), "the counters were wrong");
}

/// Guards against a job that runs by an entry which Redis has forgotten: its repeated enqueue was dropped
/// for it, and nothing carried the job on when its worker died.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_of_a_session_that_is_over_is_not_begun_before_it_is_seen_again() {
    let stack = Stack::start(instant()).await;
    stack.ask("m", "question").await;
    let me = WorkerId::new("me");
    let mut reader = stack.broker.claimer(&stack.partition, &me).await.unwrap();
    let entry = reader.read(Lane::Normal, 1).await.unwrap().remove(0);
    let before = Entry { session: 0, ..entry.clone() };
    let crashes = Crashes { most: 3, alone: true };
    assert_eq!(stack.broker.begin(&before, &me, crashes).await.unwrap(), Begin::Stale);
    assert_eq!(stack.broker.job(entry.id).await.unwrap().unwrap().attempt, 0);
    let again = Entry { session: stack.broker.session(), ..entry };
    begun(stack.broker.begin(&again, &me, crashes).await.unwrap());
}

fn options() -> worker::Options {
    worker::Options {
        concurrency: 1,
        flush_interval: Duration::from_millis(2),
        retry: Schedule { initial: Duration::from_millis(20), ..Schedule::default() },
        ..worker::Options::default()
    }
}

fn victim(stack: &Stack, plan: Plan) -> Victim {
    Victim::start(&stack.server.url(), &stack.base_url, options(), Fate::new(plan))
}

/// The events of a job, once they have come to an end.
async fn events(stack: &Stack, id: JobId) -> Vec<Event> {
    soon(stack.listener().listen(id).events().map(std::result::Result::unwrap).collect()).await
}

/// Guards against readers who are told that there is no such job, while it runs: its model is silent, and its
/// worker learned only with the next words that Redis had forgotten it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_job_that_is_forgotten_is_written_again_at_the_next_renewal() {
    let mut stack = Stack::start(instant()).await;
    let options = worker::Options {
        lease: Duration::from_millis(600),
        renewal: Duration::from_millis(150),
        ..worker::Options::default()
    };
    let (_stop, _worker) = stack.worker(options);
    let mut ids = Vec::new();
    for stream in [true, false] {
        let request = ChatRequest::ask("m?ttft=600000", "a long thought");
        let job = Job { stream, ..Job::new(request) };
        ids.push(stack.producer().enqueue(job).await.unwrap().id);
    }
    let running = async |stack: &Stack| {
        for id in &ids {
            let is_running = async || {
                let record = through(async || stack.broker.job(*id).await).await;
                record.is_some_and(|record| record.state == State::Running)
            };
            while !is_running().await {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    };
    soon(running(&stack)).await;
    // Nothing was saved.
    fall_back(&mut stack).await;
    soon(running(&stack)).await;
    for id in ids {
        let record = stack.broker.job(id).await.unwrap().unwrap();
        assert_eq!((record.attempt, record.enqueued_at.is_some()), (1, true));
        let log = stack.broker.read(id, millstream::event::EventId::START, 9).await.unwrap();
        assert_eq!(log.iter().map(|event| event.body.kind()).collect::<Vec<_>>(), ["started"]);
    }
}

/// Guards against a reader that waits in vain, or has words of two attempts: Redis has forgotten the takeover
/// that the reader saw, and the first worker, of which nobody knew that it lived, goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_of_a_takeover_that_is_forgotten_is_told_the_attempt_that_goes_on() {
    let mut stack = Stack::start(instant()).await;
    let id = stack.ask("m", "taken over").await;
    let mut hand = Hand::begin(&stack.broker).await;
    hand.say("a").await;
    let first = hand.attempt.clone();
    stack.server.command(&["SAVE"]);
    hand.lose().await;
    hand.say("x").await;
    let mut events = stack.listener().listen(id).idle_timeout(None).events();
    for _ in 0..4 {
        events.next().await.unwrap().unwrap();
    }
    fall_back(&mut stack).await;
    let (attempt, broker) = (Attempt { session: u64::MAX, ..first }, &stack.broker);
    let outcome = Outcome::Done { finish_reason: None, usage: None };
    let appended =
        through(async || broker.append(&attempt, &[delta(2, "b", Codec::Json)]).await).await;
    let ended = through(async || broker.conclude(&attempt, &[done(3)], &outcome).await).await;
    assert_eq!((appended, ended), (Written::Yes, Written::Yes));
    let seen: Vec<Event> = soon(events.map(std::result::Result::unwrap).collect()).await;
    let kinds: Vec<_> = seen.iter().map(|event| event.body.kind()).collect();
    assert_eq!(kinds, ["started", "delta", "delta", "done"], "{seen:?}");
    assert_eq!(words(&seen), "ab");
}

/// The words of the last attempt.
fn words(events: &[Event]) -> String {
    let texts = events.iter().filter_map(|event| match &event.body {
        Body::Delta(chunk) => Some(chunk.text()),
        _ => None,
    });
    texts.collect()
}

/// A worker whose job has begun when Redis is saved, and has ended when Redis dies; its end is
/// forgotten before it has settled the entry. The events that are kept.
async fn forgotten_end(stack: &mut Stack, model: &str) -> (JobId, Vec<Event>) {
    let victim = victim(stack, Plan::Freeze("begin", 1, Side::After));
    let id = stack.ask(model, "forgotten").await;
    soon(victim.fate.frozen()).await;
    stack.server.command(&["SAVE"]);
    victim.fate.plan(Plan::Freeze("conclude", 1, Side::After));
    victim.fate.thaw();
    soon(victim.fate.frozen()).await;
    assert_ne!(stack.broker.job(id).await.unwrap().unwrap().state, State::Running);
    fall_back(stack).await;
    victim.fate.plan(Plan::Live);
    victim.fate.thaw();
    let events = events(stack, id).await;
    soon(settled(stack)).await;
    victim.kill().await;
    (id, events)
}

/// Waits until nothing is left but dead letters.
async fn settled(stack: &Stack) {
    loop {
        let depth = stack.broker.depth(&stack.partition).await.unwrap();
        if (Depth { dead: 0, ..depth }) == Depth::default() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn ends(events: &[Event]) -> Vec<&str> {
    events.iter().filter(|e| e.body.is_terminal()).map(|e| e.body.kind()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_whose_end_is_forgotten_runs_to_its_end_again() {
    let mut stack = Stack::start(instant()).await;
    let (id, events) = forgotten_end(&mut stack, "m?tokens=5").await;
    assert_eq!(ends(&events), ["done"]);
    let answer = stack.listener().listen(id).answer().await.unwrap();
    assert_eq!(answer.text, expected("m?tokens=5", "forgotten"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_whose_retry_is_forgotten_is_tried_again() {
    let mut stack = Stack::start(instant()).await;
    let (id, events) = forgotten_end(&mut stack, "m?tokens=5,fault=status:503*1").await;
    assert_eq!(ends(&events), ["done"]);
    assert_eq!(stack.broker.job(id).await.unwrap().unwrap().state, State::Done);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_whose_failure_is_forgotten_fails_again_and_can_be_put_back() {
    let mut stack = Stack::start(instant()).await;
    let (id, events) = forgotten_end(&mut stack, "m?fault=status:400").await;
    assert_eq!(ends(&events), ["failed"]);
    let letters = stack.broker.dead_letters(&stack.partition, None, 9).await.unwrap();
    assert_eq!(letters.iter().map(|letter| letter.id).collect::<Vec<_>>(), [id]);
    let requeued = Admin::new(stack.broker.clone()).requeue(&stack.partition, &letters[0]).await;
    assert_eq!(requeued.unwrap(), Requeued::Requeued { run: 2 });
}

/// That connections are cut says nothing of what Redis knows: it is asked. No lease runs out here, and
/// the worker's reader does not come back to look at what it holds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_that_is_not_forgotten_is_settled_at_once() {
    let stories = [
        ("m?tokens=5", "remove"),
        ("m?tokens=5,fault=status:503*1", "park"),
        ("m?fault=status:400", "bury"),
    ];
    for (model, step) in stories {
        let stack = Stack::start(instant()).await;
        let long = Duration::from_hours(1);
        let options = worker::Options { lease: long, renewal: long / 4, ..options() };
        let fate = Fate::new(Plan::Freeze("conclude", 1, Side::After));
        let victim = Victim::start(&stack.server.url(), &stack.base_url, options, fate);
        let id = stack.ask(model, "known").await;
        soon(victim.fate.frozen()).await;
        for client in stack.server.command(&["CLIENT", "LIST"]).lines() {
            let number = client.split([' ', '=']).nth(1).unwrap();
            if !client.contains("cmd=xreadgroup") {
                stack.server.command(&["CLIENT", "KILL", "ID", number]);
            }
        }
        victim.fate.thaw();
        assert_eq!(ends(&events(&stack, id).await).len(), 1, "{model}");
        soon(settled(&stack)).await;
        let steps = victim.fate.steps();
        assert!(steps.iter().filter(|taken| **taken == step).count() >= 2, "{steps:?}");
        victim.kill().await;
    }
}

/// The job was parked when Redis was saved: its promotion is forgotten, and with it the entry by which
/// it runs. Whatever its worker writes again, the entry that comes in its stead carries it on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_whose_promotion_is_forgotten_is_carried_by_the_entry_of_the_next() {
    let stack = Stack::start(instant()).await;
    let mut job = Job::new(ChatRequest::ask("m?tokens=5,fault=status:503*1", "promoted"));
    job.not_before = Some(Timestamp::now().after(Duration::from_millis(300)));
    let id = stack.producer().enqueue(job).await.unwrap().id;
    stack.server.command(&["SAVE"]);
    let victim = victim(&stack, Plan::Freeze("begin", 1, Side::After));
    carried_on(stack, victim, id, 1).await;
}

/// The same of a job whose record still names the entry of the attempt before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_whose_promotion_is_forgotten_is_carried_by_the_entry_of_the_next() {
    let stack = Stack::start(instant()).await;
    let victim = victim(&stack, Plan::Freeze("park", 1, Side::After));
    let id = stack.ask("m?tokens=5,fault=status:503*2", "promoted").await;
    soon(victim.fate.frozen()).await;
    stack.server.command(&["SAVE"]);
    victim.fate.plan(Plan::Freeze("begin", 2, Side::After));
    victim.fate.thaw();
    carried_on(stack, victim, id, 2).await;
}

/// A worker that is about to run an attempt of a promoted job falls back with Redis to when the job
/// was parked. It has one slot, so that the other entry comes after its attempt.
async fn carried_on(mut stack: Stack, victim: Victim, id: JobId, retries: usize) {
    soon(victim.fate.frozen()).await;
    fall_back(&mut stack).await;
    assert_eq!(stack.broker.depth(&stack.partition).await.unwrap().parked, 1);
    victim.fate.plan(Plan::Live);
    victim.fate.thaw();
    let events = events(&stack, id).await;
    assert_eq!(ends(&events), ["done"]);
    let retrying = |event: &&Event| matches!(event.body, Body::Retrying(_));
    assert_eq!(events.iter().filter(retrying).count(), retries, "{events:?}");
    assert!(victim.fate.steps().contains(&"heal"));
    victim.kill().await;
}

/// What is parked of a job goes only where the job is known to be cancelled.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_whose_cancel_is_forgotten_stays_parked_until_it_is_cancelled_again() {
    let mut stack = Stack::start(instant()).await;
    let job = Job { not_before: Some(far()), ..Job::new(ChatRequest::ask("m", "later")) };
    let id = stack.producer().enqueue(job).await.unwrap().id;
    stack.server.command(&["SAVE"]);
    let session = stack.broker.session();
    let cancelled = stack.broker.cancel(id).await.unwrap();
    assert!(matches!(cancelled, Cancel::Cancelled { run: 1, .. }), "{cancelled:?}");
    fall_back(&mut stack).await;
    let unparked = stack.broker.unpark(&stack.partition, id, 1, session).await.unwrap();
    assert_eq!(unparked, Settled::Stale);
    assert_eq!(stack.broker.depth(&stack.partition).await.unwrap().parked, 1);
    let admin = Admin::new(stack.broker.clone());
    assert_eq!(admin.cancel(id).await.unwrap(), Cancelled::Cancelled);
    assert_eq!(stack.broker.depth(&stack.partition).await.unwrap(), Depth::default());
    assert_eq!(ends(&events(&stack, id).await), ["cancelled"]);
}

/// The letter of a run that was opened and cancelled opens the next; that is forgotten, but the letter
/// is put back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_of_a_run_that_is_forgotten_runs_though_the_one_before_was_cancelled() {
    let mut stack = Stack::start(instant()).await;
    let attempts = three_attempts(&stack).await;
    conclude(&stack, &attempts).await;
    settle(&stack, &attempts, stack.broker.session()).await;
    let letters = stack.broker.dead_letters(&stack.partition, None, 9).await.unwrap();
    let (broker, letter) = (stack.broker.clone(), &letters[0]);
    let opened = broker.reopen(&stack.partition, letter).await.unwrap();
    assert_eq!(opened, Reopened::Yes(Run { number: 2, fresh: true }));
    broker.cancel(letter.id).await.unwrap();
    stack.server.command(&["SAVE"]);
    let run = Run { number: 3, fresh: true };
    assert_eq!(broker.reopen(&stack.partition, letter).await.unwrap(), Reopened::Yes(run));
    fall_back(&mut stack).await;
    assert!(through(async || broker.requeue(&stack.partition, letter, run).await).await);
    let (_stop, _worker) = stack.worker(options());
    soon(async {
        while broker.job(letter.id).await.unwrap().unwrap().state != State::Done {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}
