//! The model on its own thread: a bounded number of slots, one token of each a step, and a bounded number of
//! requests that wait for them.

use crate::metrics::{Metrics, Outcome, Tally};
use crate::text::Text;
use candle_core::Tensor;
use critbeta_candle::Cache;
use critbeta_candle::llama::{Llama, Step, Watch, most_probable};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use tokio::sync::mpsc::{Sender, UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

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
    /// Free for another request before the client has its last word, so that it may ask at once.
    pub place: Option<Place>,
}

/// A slot, or a place before the slots.
pub type Place = OwnedSemaphorePermit;

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
    jobs: UnboundedSender<Job>,
    places: Arc<Semaphore>,
    metrics: Arc<Metrics>,
}

impl Engine {
    /// Starts the thread, with `slots` sequences at once and `waiting` before them.
    pub fn start(
        model: Llama,
        text: Arc<Text>,
        metrics: Arc<Metrics>,
        slots: usize,
        waiting: usize,
    ) -> std::io::Result<Engine> {
        let (jobs, queue) = unbounded_channel();
        let places = Arc::new(Semaphore::new(slots + waiting));
        let door = Engine { jobs, places, metrics: metrics.clone() };
        let run = move || Worker { model, text: &text, metrics: &metrics, limit: slots }.run(queue);
        std::thread::Builder::new().name("model".to_owned()).spawn(run)?;
        Ok(door)
    }

    /// A slot or a place before them, unless all are taken.
    pub fn place(&self) -> Option<Place> {
        self.places.clone().try_acquire_owned().ok()
    }

    /// Whether the thread of the model runs.
    pub fn runs(&self) -> bool {
        !self.jobs.is_closed()
    }

    /// Hands a job over. It says whether the model runs.
    pub fn submit(&self, job: Job) -> bool {
        self.metrics.waiting(1);
        let taken = self.jobs.send(job).is_ok();
        if !taken {
            self.metrics.waiting(-1);
        }
        taken
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
    fn run(&self, mut queue: UnboundedReceiver<Job>) {
        let mut waiting: VecDeque<Job> = VecDeque::new();
        let mut slots: Vec<Slot> = Vec::new();
        loop {
            if slots.is_empty() && waiting.is_empty() {
                match queue.blocking_recv() {
                    Some(job) => waiting.push_back(job),
                    None => return,
                }
            }
            waiting.extend(std::iter::from_fn(|| queue.try_recv().ok()));
            waiting.retain(|job| {
                let gone = job.reply.is_closed();
                if gone {
                    self.metrics.waiting(-1);
                    self.metrics.ended(Outcome::Dropped);
                }
                !gone
            });
            while slots.len() < self.limit
                && let Some(job) = waiting.pop_front()
            {
                self.metrics.waiting(-1);
                slots.extend(self.open(job));
            }
            self.metrics.slots(slots.len());
            if !slots.is_empty() {
                self.step(&mut slots);
                self.metrics.slots(slots.len());
            }
        }
    }

    /// A slot for a job, unless there is no memory for it.
    fn open(&self, mut job: Job) -> Option<Slot<'a>> {
        match self.model.cache(job.prompt.len() + job.max_tokens) {
            Ok(cache) => {
                let (next, rng) = (job.prompt.clone(), StdRng::seed_from_u64(job.seed));
                let stream = self.text.tokenizer().decode_stream(true);
                Some(Slot { job, cache, next, made: 0, stream, rng })
            }
            Err(error) => {
                self.fail(&mut job, error.to_string());
                None
            }
        }
    }

    fn fail(&self, job: &mut Job, error: String) {
        eprintln!("error: a request failed: {error}");
        self.metrics.ended(Outcome::Failed);
        job.place = None;
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
                slots.drain(..).for_each(|mut slot| self.fail(&mut slot.job, error.to_string()));
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
        let mut tallies: Vec<Tally> = slots.iter().map(|slot| self.metrics.tally(slot.made)).collect();
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
            self.fail(&mut slot.job, "the logits hold a NaN or an infinity".to_owned());
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
                    self.fail(&mut slot.job, format!("text of token {token}: {error}"));
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
        slot.job.place = None;
        // The client may be gone.
        let _ = slot.job.reply.try_send(Reply::End { reason, tokens: slot.made });
        false
    }
}

/// The most probable token at temperature 0, or one drawn. `None` if some logit is no number.
fn choose(logits: &[f32], temperature: f32, rng: &mut StdRng) -> Option<u32> {
    let best = most_probable(logits)?;
    if temperature == 0.0 {
        return Some(best);
    }
    let most = logits[best as usize];
    let weight = |logit: &f32| f64::from((logit - most) / temperature).exp();
    let mut left = rng.random_range(0.0..1.0) * logits.iter().map(weight).sum::<f64>();
    let drawn = logits.iter().position(|logit| {
        left -= weight(logit);
        left < 0.0
    });
    Some(drawn.map_or(best, |token| token as u32))
}
