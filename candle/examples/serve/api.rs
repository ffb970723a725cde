//! OpenAI-style completions over HTTP.

use crate::engine::{Engine, Job, Reply};
use crate::metrics::{Metrics, Outcome};
use crate::request::Request;
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

/// The routes. Whatever is not understood gets a JSON error.
pub fn router(shared: Arc<Shared>) -> Router {
    let none = || async {
        refusal(StatusCode::NOT_FOUND, "expected POST /v1/completions, GET /metrics or GET /health")
    };
    let wrong = || async { refusal(StatusCode::METHOD_NOT_ALLOWED, "this path has another method") };
    Router::new()
        .route("/v1/completions", post(completions))
        .route("/metrics", get(metrics))
        .route("/health", get(health))
        .fallback(none)
        .method_not_allowed_fallback(wrong)
        .with_state(shared)
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], shared.metrics.page()).into_response()
}

async fn health(State(shared): State<Arc<Shared>>) -> Response {
    match shared.engine.runs() {
        true => "ok\n".into_response(),
        false => refusal(StatusCode::SERVICE_UNAVAILABLE, STOPPED),
    }
}

const STOPPED: &str = "the model has stopped";

fn refusal(status: StatusCode, message: &str) -> Response {
    let kind = if status.is_client_error() { "invalid_request_error" } else { "server_error" };
    (status, Json(json!({ "error": { "message": message, "type": kind, "code": status.as_u16() } })))
        .into_response()
}

async fn completions(State(shared): State<Arc<Shared>>, body: Result<Bytes, BytesRejection>) -> Response {
    match complete(&shared, body).await {
        Ok(answer) => answer,
        Err((status, message)) => {
            let busy = status == StatusCode::SERVICE_UNAVAILABLE;
            shared.metrics.ended(if busy { Outcome::Busy } else { Outcome::Refused });
            let refusal = refusal(status, &message);
            if busy { ([(header::RETRY_AFTER, "1")], refusal).into_response() } else { refusal }
        }
    }
}

async fn complete(shared: &Arc<Shared>, body: Result<Bytes, BytesRejection>) -> Result<Response, Refused> {
    let body = body.map_err(|error| (error.status(), error.body_text()))?;
    let request = check(shared, &body)?;
    let busy = |text: String| (StatusCode::SERVICE_UNAVAILABLE, text);
    let place = shared.engine.place().ok_or_else(|| {
        busy(format!("all {} slots and {} places to wait are taken", shared.slots, shared.waiting))
    })?;
    let Request { prompt, max_tokens, temperature, seed, stream } = request;
    // It can take a while, and the threads of the server have other clients.
    let tokens = tokio::task::spawn_blocking({
        let shared = shared.clone();
        move || tokens(&shared, &prompt, max_tokens)
    });
    let prompt =
        tokens.await.unwrap_or_else(|_| Err(bad("prompt: its tokens cannot be found".to_owned())))?;
    let (reply, replies) = channel(max_tokens + 2);
    let prompt_tokens = prompt.len();
    if !shared.engine.submit(Job { prompt, max_tokens, temperature, seed, reply, place: Some(place) }) {
        return Err(busy(STOPPED.to_owned()));
    }
    let answer = Answer {
        id: format!("cmpl-{}", shared.served.fetch_add(1, Relaxed)),
        created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        model: shared.name.clone(),
        prompt_tokens,
    };
    Ok(match stream {
        true => Sse::new(Events { replies, answer, ended: false, closed: false }).into_response(),
        false => whole(replies, &answer).await,
    })
}

fn bad(text: String) -> Refused {
    (StatusCode::BAD_REQUEST, text)
}

/// The request, as far as it can be checked without the tokens of its prompt.
fn check(shared: &Shared, body: &[u8]) -> Result<Request, Refused> {
    let (request, model) = Request::read(body).map_err(bad)?;
    if let Some(model) = model.filter(|model| *model != shared.name) {
        return Err((StatusCode::NOT_FOUND, format!("model {model:?}: this server has {:?}", shared.name)));
    }
    let (bytes, context) = (request.prompt.len(), shared.context);
    // A request that is refused takes no place from others.
    if request.max_tokens == 0 {
        return Err(bad(format!("max_tokens 0: expected 1 to {context}")));
    }
    if bytes > context.saturating_mul(shared.text.longest()) {
        return Err(bad(format!(
            "a prompt of {bytes} bytes: more tokens than the context of {context} holds"
        )));
    }
    Ok(request)
}

/// The tokens of a prompt, with room for `max_tokens` behind them.
fn tokens(shared: &Shared, prompt: &str, max_tokens: usize) -> Result<Vec<u32>, Refused> {
    let prompt = shared.text.encode(prompt).map_err(|error| bad(format!("prompt: {error}")))?;
    let (found, context) = (prompt.len(), shared.context);
    if !(1..context).contains(&found) {
        let most = context - 1;
        return Err(bad(format!(
            "a prompt of {found} tokens: expected at least one token and at most {most}, for a context of \
             {context}"
        )));
    }
    let room = context - found;
    if !(1..=room).contains(&max_tokens) {
        return Err(bad(format!(
            "max_tokens {max_tokens} after a prompt of {found} tokens: expected 1 to {room}, within a \
             context of {context}"
        )));
    }
    Ok(prompt)
}

/// The status and the reason.
type Refused = (StatusCode, String);

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
            None => return refusal(StatusCode::INTERNAL_SERVER_ERROR, STOPPED),
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
                json!({ "error": { "message": STOPPED, "type": "server_error", "code": 500 } })
            }
        };
        Poll::Ready(Some(Ok(Event::default().data(body.to_string()))))
    }
}
