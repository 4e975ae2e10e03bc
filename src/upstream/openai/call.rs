//! One call of an endpoint: by way of redirects within its origin, without a retry, every error status kept.
//!
//! async-openai makes the request and reads what comes of it by itself. Its reader hides what an answer's end needs,
//! so the response is handed over beside it: the caller leaves a place ([`response`]), and the client is told `null`.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use async_openai::{error::OpenAIError, middleware::HttpRequestFactory};
use futures_util::StreamExt as _;

use super::{fault, redirect};
use crate::error::{Code, Failure};

tokio::task_local! {
    /// Where the caller of this task wants its response.
    static PLACE: Arc<Mutex<Option<reqwest::Response>>>;
}

/// The response that a call of the client gets, unread.
pub(super) async fn response(
    call: impl Future<Output = Result<serde::de::IgnoredAny, OpenAIError>>,
) -> Result<reqwest::Response, Failure> {
    let place = Arc::default();
    let called = PLACE.scope(Arc::clone(&place), call).await;
    called.map_err(fault::of_client)?;
    let taken = place.lock().unwrap_or_else(PoisonError::into_inner).take();
    taken.ok_or_else(|| Failure::new(Code::UpstreamConnection, "the call got no response"))
}

/// The body of a response, of at most so many bytes.
pub(super) async fn whole(response: reqwest::Response, most: usize) -> Result<Vec<u8>, Failure> {
    let mut body = Vec::new();
    let mut pieces = response.bytes_stream();
    while let Some(piece) = pieces.next().await {
        body.extend_from_slice(&piece.map_err(|error| fault::of_broken(&error))?);
        if body.len() > most {
            return Err(fault::too_large(most));
        }
    }
    Ok(body)
}

/// Puts a response where its caller wants it.
fn handed_over(response: reqwest::Response) -> reqwest::Response {
    let Ok(place) = PLACE.try_with(Arc::clone) else { return response };
    *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(response);
    http::Response::new("null").into()
}

/// Makes one call and turns every error status into a [`Failure`] that keeps it.
#[derive(Clone)]
pub(super) struct OneCall {
    pub(super) http: reqwest::Client,
}

type Calling = Pin<Box<dyn Future<Output = Result<reqwest::Response, OpenAIError>> + Send>>;

impl tower::Service<HttpRequestFactory> for OneCall {
    type Response = reqwest::Response;
    type Error = OpenAIError;
    type Future = Calling;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), OpenAIError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: HttpRequestFactory) -> Calling {
        let http = self.http.clone();
        Box::pin(async move {
            let request = request.build().await?;
            match called(&http, request).await {
                Ok(response) => Ok(handed_over(response)),
                Err(failure) => Err(OpenAIError::Boxed(Box::new(failure))),
            }
        })
    }
}

/// Makes a call, by way of the redirects that stay within its origin.
async fn called(
    http: &reqwest::Client,
    mut request: reqwest::Request,
) -> Result<reqwest::Response, Failure> {
    let mut followed = 0;
    loop {
        let (again, from) = (request.try_clone(), request.url().clone());
        let response = http.execute(request).await.map_err(|error| {
            // Of an address, the part that may hold a secret is for nobody.
            let host = from.host_str().unwrap_or_default().to_owned();
            let failure = fault::of_connection(&error.without_url());
            let detail = failure.detail.as_ref().map(|detail| format!("{host}: {detail}"));
            Failure { detail, ..failure }
        })?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        if !status.is_redirection() {
            return Err(refused(response).await);
        }
        let led = redirect::target(&from, status, response.headers());
        let to = led.and_then(|to| match (followed < redirect::MOST, again) {
            (true, Some(again)) => Ok((to, again)),
            _ => Err(format!("{} to {to}, after {followed} others", status.as_u16())),
        });
        let (to, mut again) = to.map_err(|why| {
            let words = "the model's endpoint redirects the request to another place, which is not followed";
            fault::hidden(Code::UpstreamRedirect, words, why).at(status.as_u16(), None)
        })?;
        *again.url_mut() = to;
        (request, followed) = (again, followed + 1);
    }
}

/// Most bytes of an error's body that are read.
const ERROR_BODY: usize = 64 * 1024;

async fn refused(response: reqwest::Response) -> Failure {
    let status = response.status();
    let after = retry_after(response.headers());
    let mut body = Vec::new();
    let mut chunks = response.bytes_stream();
    while let Some(Ok(chunk)) = chunks.next().await {
        body.extend_from_slice(&chunk);
        if body.len() > ERROR_BODY {
            break;
        }
    }
    let reason = status.canonical_reason().unwrap_or("error");
    fault::of_status(status.as_u16(), reason, &body, after)
}

/// `retry-after-ms`, then `Retry-After` as seconds or as an HTTP date (RFC 9110, 10.2.3).
fn retry_after(headers: &reqwest::header::HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(ms) = text("retry-after-ms").and_then(|value| value.trim().parse::<f64>().ok()) {
        return Duration::try_from_secs_f64(ms / 1000.0).ok();
    }
    let value = text("retry-after")?.trim();
    if let Ok(seconds) = value.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let until = httpdate::parse_http_date(value).ok()?;
    Some(until.duration_since(SystemTime::now()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_read_in_all_forms() {
        let after = |name: &'static str, value: &str| {
            let mut headers = reqwest::header::HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            retry_after(&headers)
        };
        assert_eq!(after("retry-after-ms", "1500"), Some(Duration::from_millis(1500)));
        assert_eq!(after("retry-after", "2"), Some(Duration::from_secs(2)));
        let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(60));
        assert!(after("retry-after", &date).is_some_and(|d| (58..=60).contains(&d.as_secs())));
        assert_eq!(after("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        assert_eq!(after("retry-after", "soon"), None);
        assert_eq!(after("retry-after", "-1"), None);
    }
}
