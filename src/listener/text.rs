//! Events as text.

use futures_util::{Stream, StreamExt};

use super::Error;
use crate::{
    event::{Body, Cancelled, Done, Event, Failed, Retrying},
    job::JobId,
};

/// What a reader of text is told.
#[derive(Debug, Clone, PartialEq)]
pub enum Text {
    /// Discard what was appended: an attempt starts over.
    Reset,
    /// Append this.
    Append(String),
    /// The attempt failed; another follows.
    Retrying(Retrying),
    /// The text is whole.
    Done(Done),
    /// No answer will come; what was appended is what there is.
    Failed(Failed),
    /// The job was cancelled; what was appended is what there is.
    Cancelled(Cancelled),
}

/// A whole answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The job.
    pub id: JobId,
    /// The first choice's text, as the last attempt gave it.
    pub text: String,
    /// How it ended; a cancelled job has failed with [`Code::Cancelled`](crate::error::Code::Cancelled).
    pub outcome: Result<Done, Failed>,
}

pub(super) fn of_events(
    events: impl Stream<Item = Result<Event, Error>> + Send + Unpin,
) -> impl Stream<Item = Result<Text, Error>> + Send + Unpin {
    let mut shown = false;
    events.filter_map(move |event| {
        let text = match event {
            Err(error) => Some(Err(error)),
            Ok(Event { body: Body::Started(_), .. }) => {
                std::mem::take(&mut shown).then_some(Ok(Text::Reset))
            }
            Ok(Event { body: Body::Delta(chunk), .. }) => {
                let text = chunk.text();
                shown |= !text.is_empty();
                (!text.is_empty()).then_some(Ok(Text::Append(text)))
            }
            Ok(Event { body: Body::Retrying(data), .. }) => Some(Ok(Text::Retrying(data))),
            Ok(Event { body: Body::Done(data), .. }) => Some(Ok(Text::Done(data))),
            Ok(Event { body: Body::Failed(data), .. }) => Some(Ok(Text::Failed(data))),
            Ok(Event { body: Body::Cancelled(data), .. }) => Some(Ok(Text::Cancelled(data))),
            Ok(Event { body: Body::Requeued(_) | Body::Unknown { .. }, .. }) => None,
        };
        std::future::ready(text)
    })
}

pub(super) async fn whole(
    id: JobId,
    events: impl Stream<Item = Result<Event, Error>> + Send + Unpin,
) -> Result<Answer, Error> {
    let mut parts = of_events(events);
    let mut text = String::new();
    let mut outcome = None;
    while let Some(part) = parts.next().await {
        match part? {
            Text::Reset => text.clear(),
            Text::Append(more) => text.push_str(&more),
            Text::Retrying(_) => {}
            Text::Done(done) => outcome = Some(Ok(done)),
            Text::Failed(failed) => outcome = Some(Err(failed)),
            Text::Cancelled(cancelled) => outcome = Some(Err(cancelled.into())),
        }
    }
    outcome.map(|outcome| Answer { id, text, outcome }).ok_or(Error::Expired(id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Chunk, EventId, Started};
    use futures_util::stream;

    #[expect(clippy::unnecessary_wraps, reason = "the item of a stream of events")]
    fn event(seq: u64, body: Body) -> Result<Event, Error> {
        Ok(Event { id: EventId { fence: 1, seq }, body })
    }

    fn delta(text: &str) -> Body {
        let piece = serde_json::json!({"choices": [{"index": 0, "delta": {"content": text}}]});
        Body::Delta(serde_json::from_value::<Chunk>(piece).unwrap())
    }

    fn started(attempt: u32) -> Body {
        Body::Started(Started { attempt, worker: "w".to_owned() })
    }

    #[tokio::test]
    async fn a_second_attempt_resets_the_text_of_the_first() {
        let events = || {
            stream::iter([
                event(0, started(1)),
                event(1, delta("wrong")),
                event(2, started(2)),
                event(3, delta("ri")),
                event(4, delta("ght")),
                event(5, Body::Done(Done::default())),
            ])
        };
        let texts: Vec<Text> = of_events(events()).map(Result::unwrap).collect().await;
        assert_eq!(texts[..2], [Text::Append("wrong".to_owned()), Text::Reset]);
        let id = JobId::new();
        assert_eq!(whole(id, events()).await.unwrap().text, "right");
    }
}
