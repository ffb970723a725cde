//! The model on its own thread: a bounded number of slots, one token of each a step, and a bounded queue
//! before them.

use crate::metrics::{Metrics, Outcome, Tally};
use crate::text::Text;
use candle_core::Tensor;
use critbeta_candle::Cache;
use critbeta_candle::llama::{Llama, Step, Watch};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use tokio::sync::mpsc::Sender;

/// Prompt tokens of one sequence in one step.
const CHUNK: usize = 128;

/// What a client asks for. Its lengths fit the context of the model.
pub struct Job {
    pub prompt: Vec<u32>,
    pub max_tokens: usize,
    pub temperature: f32,
    pub seed: u64,
    /// Has room for `max_tokens` and two more. Once the client is gone it is closed.
    pub reply: Sender<Reply>,
}

/// What a client gets.
pub enum Reply {
    /// More text.
    Text(String),
    /// The end, and how many tokens there were.
    End { reason: &'static str, tokens: usize },
    /// The model could not go on.
    Failed(String),
}

/// The door to the thread of the model. The thread ends when all doors are gone.
#[derive(Clone)]
pub struct Engine {
    jobs: SyncSender<Job>,
    metrics: Arc<Metrics>,
}

impl Engine {
    /// Starts the thread, with `slots` sequences at once and `waiting` in the queue.
    pub fn start(
        model: Llama,
        text: Arc<Text>,
        metrics: Arc<Metrics>,
        slots: usize,
        waiting: usize,
    ) -> std::io::Result<Engine> {
        let (jobs, queue) = sync_channel(waiting);
        let door = Engine { jobs, metrics: metrics.clone() };
        let run = move || Worker { model, text: &text, metrics: &metrics, limit: slots }.run(&queue);
        std::thread::Builder::new().name("model".to_owned()).spawn(run)?;
        Ok(door)
    }

    /// Hands a job over. It comes back if the queue is full, and nothing of it is kept.
    pub fn submit(&self, job: Job) -> Result<(), &'static str> {
        self.metrics.waiting(1);
        self.jobs.try_send(job).map_err(|error| {
            self.metrics.waiting(-1);
            match error {
                TrySendError::Full(_) => "all slots and waiting places are taken",
                TrySendError::Disconnected(_) => "the model has stopped",
            }
        })
    }
}

struct Worker<'a> {
    model: Llama,
    text: &'a Text,
    metrics: &'a Metrics,
    limit: usize,
}

type Stream<'a> = tokenizers::tokenizer::DecodeStream<
    'a,
    tokenizers::ModelWrapper,
    tokenizers::NormalizerWrapper,
    tokenizers::PreTokenizerWrapper,
    tokenizers::PostProcessorWrapper,
    tokenizers::DecoderWrapper,
>;

/// One sequence that runs.
struct Slot<'a> {
    job: Job,
    cache: Cache,
    /// Tokens that the model has not seen yet: the rest of the prompt, or the last token.
    next: Vec<u32>,
    made: usize,
    stream: Stream<'a>,
    rng: StdRng,
}

impl<'a> Worker<'a> {
    fn run(&self, queue: &Receiver<Job>) {
        let mut slots: Vec<Slot> = Vec::new();
        loop {
            while slots.len() < self.limit {
                let job = match slots.is_empty() {
                    true => queue.recv().map_err(|_| TryRecvError::Disconnected),
                    false => queue.try_recv(),
                };
                match job {
                    Ok(job) => {
                        self.metrics.waiting(-1);
                        slots.extend(self.open(job));
                    }
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) if slots.is_empty() => return,
                    Err(TryRecvError::Disconnected) => break,
                }
            }
            self.metrics.slots(slots.len());
            if !slots.is_empty() {
                self.step(&mut slots);
                self.metrics.slots(slots.len());
            }
        }
    }

    /// A slot for a job, unless its client is gone or there is no memory for it.
    fn open(&self, job: Job) -> Option<Slot<'a>> {
        if job.reply.is_closed() {
            self.metrics.ended(Outcome::Dropped);
            return None;
        }
        match self.model.cache(job.prompt.len() + job.max_tokens) {
            Ok(cache) => {
                let (next, rng) = (job.prompt.clone(), StdRng::seed_from_u64(job.seed));
                let stream = self.text.tokenizer().decode_stream(true);
                Some(Slot { job, cache, next, made: 0, stream, rng })
            }
            Err(error) => {
                self.fail(&job, error.to_string());
                None
            }
        }
    }

    fn fail(&self, job: &Job, error: String) {
        eprintln!("error: a request failed: {error}");
        self.metrics.ended(Outcome::Failed);
        // The client may be gone.
        let _ = job.reply.try_send(Reply::Failed(error));
    }

    /// One step of all slots. Those that end leave.
    fn step(&self, slots: &mut Vec<Slot>) {
        slots.retain(|slot| {
            let gone = slot.job.reply.is_closed();
            if gone {
                self.metrics.ended(Outcome::Dropped);
            }
            !gone
        });
        if slots.is_empty() {
            return;
        }
        // A panic is a defect. It must not take the other requests of the server with it.
        let logits = catch_unwind(AssertUnwindSafe(|| self.logits(slots)));
        let logits = logits.unwrap_or_else(|_| Err(candle_core::Error::msg("the model panicked")));
        let logits = match logits.and_then(|logits| logits.to_vec2::<f32>()) {
            Ok(logits) => logits,
            Err(error) => {
                slots.drain(..).for_each(|slot| self.fail(&slot.job, error.to_string()));
                return;
            }
        };
        let mut logits = logits.into_iter();
        slots.retain_mut(|slot| {
            let seen = slot.next.len().min(CHUNK);
            slot.next.drain(..seen);
            let Some(logits) = logits.next() else { return false };
            // In the middle of a prompt there is nothing to say.
            !slot.next.is_empty() || self.say(slot, &logits)
        });
    }

    fn logits(&self, slots: &mut [Slot]) -> candle_core::Result<Tensor> {
        let mut tallies: Vec<Tally> = slots.iter().map(|_| self.metrics.tally()).collect();
        let mut steps: Vec<Step> = slots
            .iter_mut()
            .zip(&mut tallies)
            .map(|(slot, tally)| {
                let tokens = &slot.next[..slot.next.len().min(CHUNK)];
                Step { tokens, cache: &mut slot.cache, watch: Some(tally as &mut dyn Watch) }
            })
            .collect();
        self.model.forward(&mut steps)
    }

    /// Chooses the next token of a slot and sends its text. It says whether the slot goes on.
    fn say(&self, slot: &mut Slot, logits: &[f32]) -> bool {
        let Some(token) = choose(logits, slot.job.temperature, &mut slot.rng) else {
            self.fail(&slot.job, "the logits hold a NaN or an infinity".to_owned());
            return false;
        };
        if slot.made == 0 {
            self.metrics.prompt(slot.job.prompt.len());
        }
        let ends = self.text.is_end(token);
        if !ends {
            slot.made += 1;
            self.metrics.generated();
            match slot.stream.step(token) {
                Ok(None) => {}
                Ok(Some(text)) => {
                    if slot.job.reply.try_send(Reply::Text(text)).is_err() {
                        self.metrics.ended(Outcome::Dropped);
                        return false;
                    }
                }
                Err(error) => {
                    self.fail(&slot.job, format!("text of token {token}: {error}"));
                    return false;
                }
            }
        }
        if !ends && slot.made < slot.job.max_tokens {
            slot.next.push(token);
            return true;
        }
        let (reason, outcome) = if ends { ("stop", Outcome::Stop) } else { ("length", Outcome::Length) };
        self.metrics.ended(outcome);
        // The client may be gone.
        let _ = slot.job.reply.try_send(Reply::End { reason, tokens: slot.made });
        false
    }
}

/// The most probable token at temperature 0, or one drawn. `None` if some logit is no number.
fn choose(logits: &[f32], temperature: f32, rng: &mut StdRng) -> Option<u32> {
    let mut best = 0;
    for (token, logit) in logits.iter().enumerate() {
        if !logit.is_finite() {
            return None;
        }
        if *logit > logits[best] {
            best = token;
        }
    }
    if temperature == 0.0 {
        return Some(best as u32);
    }
    let weight = |logit: &f32| f64::from((logit - logits[best]) / temperature).exp();
    let mut left = rng.random_range(0.0..1.0) * logits.iter().map(weight).sum::<f64>();
    let drawn = logits.iter().position(|logit| {
        left -= weight(logit);
        left < 0.0
    });
    Some(drawn.unwrap_or(best) as u32)
}
