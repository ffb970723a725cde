//! OpenAI-style completions over HTTP.

use crate::engine::{Engine, Job, Reply};
use crate::metrics::{Metrics, Outcome};
use crate::text::Text;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::{StatusCode, header};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_core::Stream;
use serde::Deserialize;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc::{Receiver, channel};

/// What all requests share.
pub struct Shared {
    pub engine: Engine,
    pub text: Arc<Text>,
    pub metrics: Arc<Metrics>,
    /// The name of the model in answers.
    pub name: String,
    /// The most tokens of a prompt and its answer together.
    pub context: usize,
    pub slots: usize,
    pub waiting: usize,
    pub served: AtomicU64,
}

/// A request, of which any other field is refused.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Completion {
    prompt: String,
    #[serde(default)]
    model: Option<String>,
    #[serde(default = "sixteen")]
    max_tokens: usize,
    #[serde(default)]
    temperature: f32,
    #[serde(default)]
    seed: u64,
    #[serde(default)]
    stream: bool,
    /// Taken and not used, as clients send it.
    #[serde(default, rename = "user")]
    _user: Option<String>,
}

fn sixteen() -> usize {
    16
}

/// The routes. Whatever is not understood gets a JSON error.
pub fn router(shared: Arc<Shared>) -> Router {
    let none = || async {
        refusal(StatusCode::NOT_FOUND, "expected POST /v1/completions, GET /metrics or GET /health")
    };
    let wrong = || async { refusal(StatusCode::METHOD_NOT_ALLOWED, "this path has another method") };
    Router::new()
        .route("/v1/completions", post(completions))
        .route("/metrics", get(metrics))
        .route("/health", get(|| async { "ok\n" }))
        .fallback(none)
        .method_not_allowed_fallback(wrong)
        .with_state(shared)
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], shared.metrics.page()).into_response()
}

fn refusal(status: StatusCode, message: &str) -> Response {
    let kind = if status.is_client_error() { "invalid_request_error" } else { "server_error" };
    (status, Json(json!({ "error": { "message": message, "type": kind, "code": status.as_u16() } })))
        .into_response()
}

async fn completions(State(shared): State<Arc<Shared>>, body: Result<Bytes, BytesRejection>) -> Response {
    let checked = match body {
        Ok(body) => check(&shared, &body),
        Err(error) => Err((error.status(), error.body_text())),
    };
    let (request, prompt) = match checked {
        Ok(checked) => checked,
        Err((status, message)) => {
            shared.metrics.ended(Outcome::Refused);
            return refusal(status, &message);
        }
    };
    let (reply, replies) = channel(request.max_tokens + 2);
    let Completion { max_tokens, temperature, seed, .. } = request;
    let prompt_tokens = prompt.len();
    if let Err(reason) = shared.engine.submit(Job { prompt, max_tokens, temperature, seed, reply }) {
        shared.metrics.ended(Outcome::Busy);
        let text = format!("{reason}: {} slots and {} places before them", shared.slots, shared.waiting);
        let refusal = refusal(StatusCode::SERVICE_UNAVAILABLE, &text);
        return ([(header::RETRY_AFTER, "1")], refusal).into_response();
    }
    let answer = Answer {
        id: format!("cmpl-{}", shared.served.fetch_add(1, Relaxed)),
        created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        model: shared.name.clone(),
        prompt_tokens,
    };
    match request.stream {
        true => Sse::new(Events { replies, answer, ended: false, closed: false }).into_response(),
        false => whole(replies, &answer).await,
    }
}

/// The request and the tokens of its prompt.
fn check(shared: &Shared, body: &[u8]) -> Result<(Completion, Vec<u32>), (StatusCode, String)> {
    let bad = |text: String| (StatusCode::BAD_REQUEST, text);
    let request: Completion =
        serde_json::from_slice(body).map_err(|error| bad(format!("the body: {error}")))?;
    if let Some(model) = request.model.as_ref().filter(|model| **model != shared.name) {
        return Err((StatusCode::NOT_FOUND, format!("model {model:?}: this server has {:?}", shared.name)));
    }
    if !(0.0..=2.0).contains(&request.temperature) {
        return Err(bad(format!("temperature {}: expected 0 to 2", request.temperature)));
    }
    let prompt = shared.text.encode(&request.prompt).map_err(|error| bad(format!("prompt: {error}")))?;
    if prompt.is_empty() {
        return Err(bad("prompt: expected at least one token".to_owned()));
    }
    let room = shared.context.saturating_sub(prompt.len());
    if !(1..=room).contains(&request.max_tokens) {
        return Err(bad(format!(
            "max_tokens {} after a prompt of {} tokens: expected 1 to {room}, within a context of {}",
            request.max_tokens,
            prompt.len(),
            shared.context
        )));
    }
    Ok((request, prompt))
}

/// What every answer of a request begins with.
struct Answer {
    id: String,
    created: u64,
    model: String,
    prompt_tokens: usize,
}

impl Answer {
    fn body(&self, text: &str, reason: Option<&str>, tokens: Option<usize>) -> Value {
        let choice = json!({ "text": text, "index": 0, "logprobs": null, "finish_reason": reason });
        let (created, model) = (self.created, &self.model);
        let mut body = json!({
            "id": self.id, "object": "text_completion", "created": created, "model": model, "choices": [choice],
        });
        if let Some(tokens) = tokens {
            let (prompt, total) = (self.prompt_tokens, self.prompt_tokens + tokens);
            let usage =
                json!({ "prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": total });
            body["usage"] = usage;
        }
        body
    }
}

async fn whole(mut replies: Receiver<Reply>, answer: &Answer) -> Response {
    let mut text = String::new();
    loop {
        match replies.recv().await {
            Some(Reply::Text(more)) => text.push_str(&more),
            Some(Reply::End { reason, tokens }) => {
                return Json(answer.body(&text, Some(reason), Some(tokens))).into_response();
            }
            Some(Reply::Failed(error)) => return refusal(StatusCode::INTERNAL_SERVER_ERROR, &error),
            None => return refusal(StatusCode::INTERNAL_SERVER_ERROR, "the model has stopped"),
        }
    }
}

/// An answer piece by piece. Once the client is gone it is dropped, and with it the receiver: that frees the
/// slot.
struct Events {
    replies: Receiver<Reply>,
    answer: Answer,
    ended: bool,
    closed: bool,
}

impl Stream for Events {
    type Item = Result<Event, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<Option<Self::Item>> {
        if self.closed {
            return Poll::Ready(None);
        }
        if self.ended {
            self.closed = true;
            return Poll::Ready(Some(Ok(Event::default().data("[DONE]"))));
        }
        let body = match ready!(self.replies.poll_recv(context)) {
            Some(Reply::Text(text)) => self.answer.body(&text, None, None),
            Some(Reply::End { reason, tokens }) => {
                self.ended = true;
                self.answer.body("", Some(reason), Some(tokens))
            }
            Some(Reply::Failed(error)) => {
                self.ended = true;
                json!({ "error": { "message": error, "type": "server_error", "code": 500 } })
            }
            None => {
                self.ended = true;
                json!({ "error": { "message": "the model has stopped", "type": "server_error", "code": 500 } })
            }
        };
        Poll::Ready(Some(Ok(Event::default().data(body.to_string()))))
    }
}
