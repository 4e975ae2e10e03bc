//! What is enqueued.

use millstream::{
    broker::{Partition, Submission},
    job::{ChatRequest, Job, JobId, Timestamp},
};

use super::terms::{Profile, When};
use crate::support::subject;

/// The jobs of a case, as they are enqueued.
pub fn submissions(profiles: &[Profile], partition: &Partition) -> Vec<Submission> {
    let submission = |(no, profile): (usize, &Profile)| {
        let mut job = Job::new(ChatRequest::ask("model", &format!("question {no}")));
        job.lane = profile.lane;
        job.idempotency_key = profile.keyed.then(|| JobId::new().to_string());
        job.expires_at = profile.expired.then_some(Timestamp(1));
        job.not_before = (profile.when == When::Far).then(subject::far);
        let payload = serde_json::to_vec(&job).unwrap();
        Submission { id: job.assign_id(), job, payload, partition: partition.clone() }
    };
    profiles.iter().enumerate().map(submission).collect()
}
