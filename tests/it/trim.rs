//! Batched trimming: rare, and never an entry that somebody needs.

use millstream::{
    broker::{Partition, redis::keys::Keys},
    job::{ChatRequest, Job, Lane},
};

use crate::support::stack::{Stack, instant};

fn jobs(count: usize) -> Vec<Job> {
    (0..count).map(|n| Job::new(ChatRequest::ask("m", &format!("trim {n}")))).collect()
}

#[tokio::test]
async fn ten_thousand_enqueues_trim_at_most_ten_times() {
    let stack = Stack::start(instant()).await;
    stack.reset_counts();
    let results = stack.producer().enqueue_all(jobs(10_000)).await;
    assert!(results.iter().all(Result::is_ok));
    let trims = stack.command_counts()["xinfo|groups"];
    assert!((9..=10).contains(&trims), "{trims} trims");
    let depth = stack.broker.depth(&stack.partition).await.unwrap();
    assert_eq!(depth.lanes[Lane::Normal.index()].waiting, 10_000, "nothing unread is trimmed");
}

#[tokio::test]
async fn beside_a_consumer_that_only_acks_its_entries_go_and_no_other() {
    let stack = Stack::start(instant()).await;
    let lane = Keys::new("ms").lane(&Partition::first(Default::default()), Lane::Normal);
    let producer = stack.producer();
    assert!(producer.enqueue_all(jobs(2000)).await.iter().all(Result::is_ok));

    // A consumer in another language reads 700, acks 600 of them and deletes none.
    let read = ["XREADGROUP", "GROUP", "workers", "theirs", "COUNT", "700", "STREAMS", &lane, ">"];
    let reply = stack.server.command(&read);
    let ids: Vec<&str> = reply
        .lines()
        .filter(|line| line.contains('-') && line.len() < 24 && line[..1].parse::<u8>().is_ok())
        .collect();
    assert_eq!(ids.len(), 700);
    let mut ack = vec!["XACK", &lane, "workers"];
    ack.extend(&ids[..300]);
    ack.extend(&ids[400..]);
    assert_eq!(stack.server.command(&ack), "600");

    assert!(producer.enqueue_all(jobs(1000)).await.iter().all(Result::is_ok));
    let length: u64 = stack.server.command(&["XLEN", &lane]).parse().unwrap();
    let depth = stack.broker.depth(&stack.partition).await.unwrap().lanes[Lane::Normal.index()];
    // The oldest pending one is the 301st: everything before it is gone, nothing after it.
    assert_eq!(length, 3000 - 300);
    assert_eq!(depth.pending, 100);
    for id in &ids[300..400] {
        assert!(!stack.server.command(&["XRANGE", &lane, id, id]).is_empty(), "{id} is pending");
    }
    let unread =
        ["XREADGROUP", "GROUP", "workers", "theirs", "COUNT", "5000", "STREAMS", &lane, ">"];
    let rest = stack.server.command(&unread).matches("\njob\n").count();
    assert_eq!(rest, 2300, "every unread entry is there");
}

#[tokio::test]
async fn a_lane_without_its_one_group_is_left_alone() {
    let stack = Stack::start(instant()).await;
    let lane = Keys::new("ms").lane(&stack.partition, Lane::Normal);
    assert!(stack.producer().enqueue_all(jobs(10)).await.iter().all(Result::is_ok));
    stack.server.command(&["XGROUP", "CREATE", &lane, "others", "$"]);
    assert_eq!(stack.broker.trim(&stack.partition, Lane::Normal).await.unwrap(), 0);
    stack.server.command(&["XGROUP", "DESTROY", &lane, "others"]);
    stack.server.command(&["XGROUP", "DESTROY", &lane, "workers"]);
    assert_eq!(stack.broker.trim(&stack.partition, Lane::Normal).await.unwrap(), 0);
    assert_eq!(stack.server.command(&["XLEN", &lane]), "10");
}
