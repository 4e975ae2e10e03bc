//! Workers are restarted one after another while jobs flow, told to hurry, and drained by name.

use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, future::join_all};
use millstream::{
    event::{Body, Event},
    job::{ChatRequest, Job, JobId},
};

use crate::support::{
    program::{MILLSTREAM, Ran, Running, WORKER, run},
    stack::{Stack, expected, instant, oracle, paced},
    subject::soon,
};

fn process(stack: &Stack, args: &[&str]) -> Running {
    let url = stack.server.url();
    let env = [("REDIS_URL", url.as_str()), ("OPENAI_BASE_URL", stack.base_url.as_str())];
    let mut running = Running::start(WORKER, args, &env);
    running.wait_for("serving");
    running
}

async fn end(running: Running) -> (Option<i32>, String) {
    tokio::task::spawn_blocking(|| running.end()).await.unwrap()
}

async fn admin(stack: &Stack, args: &'static [&'static str], more: &str) -> Ran {
    let (url, more) = (stack.server.url(), more.to_owned());
    let run = move || {
        let args: Vec<&str> = args.iter().copied().chain([more.as_str()]).collect();
        run(MILLSTREAM, &args, &[("REDIS_URL", url.as_str())])
    };
    tokio::task::spawn_blocking(run).await.unwrap()
}

/// The attempts that began.
async fn attempts(stack: &Stack, id: JobId) -> Vec<u32> {
    let events: Vec<Event> =
        stack.listener().listen(id).events().map(Result::unwrap).collect().await;
    let started = |event: &Event| match &event.body {
        Body::Started(started) => Some(started.attempt),
        _ => None,
    };
    events.iter().filter_map(started).collect()
}

/// Waits until the job's answer has begun this often.
async fn begun(stack: &Stack, id: JobId, times: usize) {
    let mut events = stack.listener().listen(id).events();
    let mut begun = 0;
    while begun < times {
        let event = soon(events.next()).await.unwrap().unwrap();
        begun += usize::from(matches!(event.body, Body::Started(_)));
    }
}

/// The numbers in `worker stopped (…): 12 jobs finished, 3 left to other workers`.
fn told(said: &str) -> (usize, usize) {
    let line = said.lines().find(|line| line.contains("worker stopped")).unwrap_or_else(|| {
        panic!("it does not say what it did: {said}");
    });
    let number = |before: &str| {
        let text = &line[..line.find(before).unwrap()];
        text.rsplit(' ').next().unwrap().parse().unwrap()
    };
    let left = number(" left to other workers");
    assert_eq!(said.lines().filter(|line| line.contains("left: ")).count(), left, "{said}");
    (number(" jobs finished"), left)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_restarted_one_after_another_lose_and_count_nothing() {
    let stack = Stack::start(paced(0.0)).await;
    // Some answers outlast the drain, and some do not.
    let args = ["--concurrency", "8", "--set", "worker.drain=250ms"];
    let mut workers: Vec<Running> = (0..3).map(|_| process(&stack, &args)).collect();
    let producer = stack.producer();
    let flow = async {
        let mut jobs = Vec::new();
        for number in 0..150_u32 {
            let model = if number % 3 == 0 { "m?tokens=90,rate=80" } else { "m?tokens=8,rate=80" };
            let request = ChatRequest::ask(model, &format!("rolling {number}"));
            let id = producer.enqueue(Job::new(request.clone())).await.unwrap().id;
            jobs.push((id, request));
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        jobs
    };
    let restarts = async {
        let (mut finished, mut left) = (0, 0);
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_millis(600)).await;
            let old = workers.remove(0);
            old.signal("TERM");
            let (code, said) = end(old).await;
            assert_eq!(code, Some(0), "{said}");
            let (more, given_back) = told(&said);
            (finished, left) = (finished + more, left + given_back);
            workers.push(process(&stack, &args));
        }
        (finished, left)
    };
    let (jobs, (mut finished, left)) = tokio::join!(flow, restarts);
    println!("{finished} finished by those that left, {left} given back");
    assert!(finished > 0 && left > 0, "nothing was under way: {finished} and {left}");
    let listener = stack.listener();
    let answers = soon(join_all(jobs.iter().map(|(id, _)| listener.listen(*id).answer()))).await;
    let requests: Vec<String> =
        jobs.iter().map(|(_, request)| serde_json::to_string(request).unwrap()).collect();
    let mut begun = 0;
    for ((answer, (id, _)), text) in answers.into_iter().zip(&jobs).zip(oracle(&requests, &[])) {
        let answer = answer.unwrap();
        assert_eq!(answer.text, text);
        assert_eq!(answer.outcome.unwrap().attempts, 1, "a release was counted");
        let attempts = attempts(&stack, *id).await;
        assert!(attempts.iter().all(|attempt| *attempt == 1), "{attempts:?}");
        begun += attempts.len();
    }
    for worker in workers {
        worker.signal("TERM");
        let (code, said) = end(worker).await;
        assert_eq!(code, Some(0), "{said}");
        let (more, left) = told(&said);
        assert_eq!(left, 0, "{said}");
        finished += more;
    }
    assert_eq!(finished, jobs.len(), "each job was finished by one worker");
    assert!(begun <= jobs.len() + left, "{begun} attempts of {} jobs, {left} releases", jobs.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_gives_back_at_once() {
    let stack = Stack::start(paced(60.0)).await;
    // It would drain for longer than the test may take.
    let hurried = process(&stack, &["--set", "worker.drain=10m"]);
    let id = stack.ask("m?tokens=300", "hurry").await;
    begun(&stack, id, 1).await;
    let _heir = process(&stack, &[]);
    hurried.signal("TERM");
    // The first signal is heard: it claims no more, and its job runs on.
    let owner = async |id| stack.broker.job(id).await.unwrap().unwrap().worker;
    let first = owner(id).await;
    soon(async {
        loop {
            let next = stack.ask("m?tokens=1,rate=0", "who claims?").await;
            stack.listener().listen(next).answer().await.unwrap();
            if owner(next).await != first {
                return;
            }
        }
    })
    .await;
    assert_eq!(owner(id).await, first);
    let signalled = Instant::now();
    hurried.signal("TERM");
    begun(&stack, id, 2).await;
    let took = signalled.elapsed();
    let (code, said) = end(hurried).await;
    assert_eq!((code, told(&said).1), (Some(0), 1), "{said}");
    assert!(said.contains(&format!("left: {id}")), "{said}");
    assert!(took <= Duration::from_secs(3), "{took:?}");
    let answer = soon(stack.listener().listen(id).answer()).await.unwrap();
    assert_eq!(answer.text, expected("m?tokens=300", "hurry"));
    assert_eq!(attempts(&stack, id).await, [1, 1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_is_drained_by_its_name() {
    let stack = Stack::start(instant()).await;
    let worker = process(&stack, &["--name", "leaving"]);
    let id = stack.ask("m?tokens=30,rate=60", "drain").await;
    begun(&stack, id, 1).await;
    let name = stack.broker.job(id).await.unwrap().unwrap().worker.unwrap();
    assert!(name.starts_with("leaving-"), "{name}");
    let unknown = admin(&stack, &["workers", "drain"], "leaving-000000000000").await;
    assert_eq!(unknown.code, Some(4), "{unknown:?}");
    let (line, words) = (unknown.err.trim(), "no worker leaving-000000000000 listens");
    assert!(line.contains(words) && line.contains("`millstream workers`"), "{line}");
    assert_eq!(line.lines().count(), 1, "{line}");
    let told_so = admin(&stack, &["workers", "drain"], &name).await;
    assert_eq!((told_so.code, told_so.out.trim()), (Some(0), format!("{name} drains").as_str()));
    let (code, said) = end(worker).await;
    assert_eq!((code, told(&said)), (Some(0), (1, 0)), "{said}");
    let answer = soon(stack.listener().listen(id).answer()).await.unwrap();
    assert_eq!(answer.text, expected("m?tokens=30,rate=60", "drain"));
    // It is gone, and nobody listens under its name.
    assert_eq!(admin(&stack, &["workers", "drain"], &name).await.code, Some(4));
}
