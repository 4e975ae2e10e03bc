//! The subscriber connection: RESP3, so that messages are pushed beside replies and a refused
//! subscription answers with its error.

use std::sync::Arc;

use async_trait::async_trait;
use redis::{PushInfo, PushKind, Value, aio::MultiplexedConnection};

use super::{
    Redis,
    connect::Connector,
    keys::{Channels, Keys},
};
use crate::broker::{Feed, Result, Signal, Sink, Topic};

struct RedisFeed {
    connection: MultiplexedConnection,
    connector: Connector,
    keys: Arc<Keys>,
    channels: Arc<Channels>,
}

/// Opens the connection; its signals go to `sink` from the connection's own task.
pub async fn open(redis: &Redis, sink: Sink) -> Result<Box<dyn Feed>> {
    let channels = Arc::new(Channels::default());
    let known = Arc::clone(&channels);
    let hand_on = move |push: PushInfo| {
        match push.kind {
            PushKind::Message => {
                if let Some((topic, bytes)) = message(&known, push.data) {
                    sink(Signal::Message(topic, bytes));
                }
            }
            PushKind::Disconnection => sink(Signal::Closed),
            _ => {}
        }
        Ok::<(), std::convert::Infallible>(())
    };
    let connector = redis.pool.connector().clone();
    let connection = connector.subscriber(hand_on).await?;
    Ok(Box::new(RedisFeed { connection, connector, keys: Arc::clone(&redis.keys), channels }))
}

/// A pushed message: channel, then payload.
fn message(channels: &Channels, data: Vec<Value>) -> Option<(Topic, Vec<u8>)> {
    let mut data = data.into_iter();
    let (Some(Value::BulkString(channel)), Some(Value::BulkString(bytes))) =
        (data.next(), data.next())
    else {
        return None;
    };
    Some((channels.topic(std::str::from_utf8(&channel).ok()?)?, bytes))
}

#[async_trait]
impl Feed for RedisFeed {
    async fn subscribe(&self, topic: &Topic) -> Result<()> {
        let channel = self.keys.channel(topic);
        self.channels.insert(channel.clone(), topic.clone());
        let result = self.connection.clone().subscribe(&channel).await;
        result.map_err(|error| {
            self.channels.remove(&channel);
            self.connector.classify(error)
        })
    }

    async fn unsubscribe(&self, topic: &Topic) -> Result<()> {
        let channel = self.keys.channel(topic);
        self.channels.remove(&channel);
        let result = self.connection.clone().unsubscribe(&channel).await;
        result.map_err(|e| self.connector.classify(e))
    }

    async fn ping(&self) -> Result<()> {
        let result = redis::cmd("PING").query_async::<()>(&mut self.connection.clone()).await;
        result.map_err(|e| self.connector.classify(e))
    }
}
