//! llama.cpp behind safe calls. No other file here has unsafe code.
#![allow(unsafe_code)]

use anyhow::{Result, anyhow, bail};
use llama_cpp_sys_2 as sys;
use std::borrow::Cow;
use std::ffi::{CStr, CString, c_char, c_void};
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::ptr::{self, NonNull};
use std::sync::{Mutex, Once, PoisonError};

/// A model whose weights llama.cpp has mapped.
pub struct Model(NonNull<sys::llama_model>);

/// How a model is run.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    /// The most tokens that one evaluation takes.
    pub batch: usize,
    /// Threads of llama.cpp.
    pub threads: usize,
}

/// What sees the nodes of an evaluation. An error ends the run; no node is seen after it.
pub trait Observer {
    /// These tokens of the text are evaluated next.
    fn begin(&mut self, tokens: Range<usize>);
    /// Says whether to show this node when it is computed. Its sources may not be computed yet.
    fn wants(&mut self, node: Node) -> Result<bool>;
    /// The node is computed, and so are its sources.
    fn ready(&mut self, node: Node) -> Result<()>;
}

/// What a node computes, as far as attention needs it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Op {
    /// It is given, not computed.
    Given,
    /// The products of the vectors of its two sources.
    Products,
    /// Softmax; source 1 is its mask, source 2 its sinks; parameters: scale, largest ALiBi bias.
    Softmax,
    /// Parameters: factor, summand.
    Scale,
    /// Without parameters.
    Tanh,
    /// Attention in one operation, whose scores nobody sees.
    Flash,
    /// Anything else.
    Other,
}

/// A node of the graph that llama.cpp evaluates.
#[derive(Clone, Copy)]
pub struct Node<'a>(&'a sys::ggml_tensor);

/// The first message of level "error", for the error that follows it.
static COMPLAINT: Mutex<String> = Mutex::new(String::new());
/// The file that was loaded last, for the error of a model that llama.cpp gives up.
static FILE: Mutex<String> = Mutex::new(String::new());

fn taken(text: &Mutex<String>) -> String {
    std::mem::take(&mut *text.lock().unwrap_or_else(PoisonError::into_inner)).trim().to_owned()
}

unsafe extern "C" fn log(level: sys::ggml_log_level, text: *const c_char, _: *mut c_void) {
    if level != sys::GGML_LOG_LEVEL_ERROR || text.is_null() {
        return;
    }
    // SAFETY: llama.cpp passes a string that ends in 0 and lives for this call.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    let mut first = COMPLAINT.lock().unwrap_or_else(PoisonError::into_inner);
    if first.is_empty() {
        *first = text.into_owned();
    }
}

/// llama.cpp gives up: it would abort the process, with a backtrace.
unsafe extern "C" fn give_up(message: *const c_char) {
    // SAFETY: as in `log`.
    let message = unsafe { message.as_ref().map(|text| CStr::from_ptr(text).to_string_lossy()) };
    critbeta_diagnose::output::remove_unfinished();
    eprintln!("error: {}: llama.cpp gives up: {}", taken(&FILE), message.unwrap_or_default().trim());
    std::process::exit(1);
}

fn start() {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        // SAFETY: the callbacks are functions, and no data goes with them.
        unsafe {
            sys::llama_log_set(Some(log), ptr::null_mut());
            sys::ggml_set_abort_callback(Some(give_up));
            sys::llama_backend_init();
        }
    });
}

impl Model {
    /// Maps a GGUF file.
    ///
    /// Errors: what llama.cpp says of the file.
    pub fn load(path: &Path) -> Result<Self> {
        start();
        let name = CString::new(path.as_os_str().as_encoded_bytes())?;
        taken(&COMPLAINT);
        *FILE.lock().unwrap_or_else(PoisonError::into_inner) = path.display().to_string();
        // SAFETY: the parameters are llama.cpp's own, and `name` outlives the call.
        let model = unsafe {
            let mut params = sys::llama_model_default_params();
            params.n_gpu_layers = 0;
            sys::llama_model_load_from_file(name.as_ptr(), params)
        };
        NonNull::new(model)
            .map(Model)
            .ok_or_else(|| anyhow!("llama.cpp cannot load it: {}", taken(&COMPLAINT)))
    }

    /// The tokens of `text`, with those that the model expects around a text.
    ///
    /// Errors: a vocabulary that has no tokens for a text.
    pub fn tokens(&self, text: &str, special: bool) -> Result<Vec<i32>> {
        let length = i32::try_from(text.len()).map_err(|_| anyhow!("is longer than 2 GiB"))?;
        // SAFETY: the vocabulary belongs to the model.
        let vocabulary = unsafe { sys::llama_model_get_vocab(self.0.as_ptr()) };
        // SAFETY: as before.
        if unsafe { sys::llama_vocab_type(vocabulary) } == sys::LLAMA_VOCAB_TYPE_NONE {
            bail!("the model has no vocabulary, expected one to read a text with");
        }
        let mut tokens = vec![0; text.len() + 16];
        // SAFETY: text and tokens are given with their lengths.
        let count = unsafe {
            let (to, room) = (tokens.as_mut_ptr(), tokens.len() as i32);
            sys::llama_tokenize(vocabulary, text.as_ptr().cast(), length, to, room, true, special)
        };
        let count = usize::try_from(count).map_err(|_| anyhow!("llama.cpp cannot read it as tokens"))?;
        tokens.truncate(count);
        Ok(tokens)
    }

    /// The number of its layers, of heads in the first one, and the context that it was trained with.
    pub fn sizes(&self) -> [usize; 3] {
        let model = self.0.as_ptr();
        // SAFETY: the model is loaded.
        let sizes = unsafe {
            let heads = sys::llama_model_n_head(model);
            [sys::llama_model_n_layer(model), heads, sys::llama_model_n_ctx_train(model)]
        };
        sizes.map(|size| usize::try_from(size).unwrap_or(0))
    }

    /// An entry of its metadata.
    pub fn entry(&self, key: &str) -> Option<String> {
        let (key, mut text) = (CString::new(key).ok()?, vec![0u8; 256]);
        let (to, room) = (text.as_mut_ptr().cast(), text.len());
        // SAFETY: the key ends in 0, and the room is given with its length.
        let length = unsafe { sys::llama_model_meta_val_str(self.0.as_ptr(), key.as_ptr(), to, room) };
        text.truncate(usize::try_from(length).ok()?.min(room - 1));
        String::from_utf8(text).ok()
    }

    /// Whether it has an encoder.
    pub fn has_encoder(&self) -> bool {
        // SAFETY: the model is loaded.
        unsafe { sys::llama_model_has_encoder(self.0.as_ptr()) }
    }

    /// Evaluates a text and returns the logits behind its last token. `done` is told how many tokens are
    /// through. Keys and values are kept in f32, and attention is computed step by step.
    ///
    /// Errors: those of the observer; what llama.cpp says, for example of too little memory.
    pub fn run(
        &self,
        tokens: &[i32],
        run: Run,
        observer: Option<&mut dyn Observer>,
        mut done: impl FnMut(usize),
    ) -> Result<Vec<f32>> {
        let mut hook = observer.map(|observer| Hook { observer, failure: None });
        let hook: *mut Hook = hook.as_mut().map_or(ptr::null_mut(), |hook| hook);
        let context = Context::new(self, tokens.len(), run, hook)?;
        let failed = |what: &str| anyhow!("llama.cpp {what}: {}", taken(&COMPLAINT));
        let mut tokens = tokens.to_vec();
        for start in (0..tokens.len()).step_by(run.batch) {
            let end = (start + run.batch).min(tokens.len());
            // SAFETY: the hook lives until the end of this function. Its users take turns.
            if let Some(hook) = unsafe { hook.as_mut() } {
                hook.observer.begin(start..end);
            }
            taken(&COMPLAINT);
            let part = &mut tokens[start..end];
            // SAFETY: the batch points to the tokens, which outlive the call.
            let status = unsafe {
                let batch = sys::llama_batch_get_one(part.as_mut_ptr(), part.len() as i32);
                sys::llama_decode(context.raw.as_ptr(), batch)
            };
            // SAFETY: as above.
            if let Some(failure) = unsafe { hook.as_mut() }.and_then(|hook| hook.failure.take()) {
                return Err(failure);
            }
            if status != 0 {
                return Err(failed(&format!("cannot evaluate tokens {start} to {end} (status {status})")));
            }
            done(end);
        }
        // SAFETY: the vocabulary belongs to the model; the logits are as many as it has tokens.
        let logits = unsafe {
            let vocabulary = sys::llama_model_get_vocab(self.0.as_ptr());
            let logits = sys::llama_get_logits_ith(context.raw.as_ptr(), -1);
            let count = usize::try_from(sys::llama_vocab_n_tokens(vocabulary)).unwrap_or(0);
            (!logits.is_null()).then(|| std::slice::from_raw_parts(logits, count).to_vec())
        };
        logits.ok_or_else(|| failed("has no logits"))
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: contexts borrow the model, so none is left.
        unsafe { sys::llama_model_free(self.0.as_ptr()) }
    }
}

/// The memory of a run.
struct Context<'a> {
    raw: NonNull<sys::llama_context>,
    model: PhantomData<&'a Model>,
}

impl<'a> Context<'a> {
    fn new(model: &'a Model, tokens: usize, run: Run, hook: *mut Hook) -> Result<Self> {
        taken(&COMPLAINT);
        // SAFETY: the model is loaded. The hook outlives the context: `run` drops it last.
        let raw = unsafe {
            let mut params = sys::llama_context_default_params();
            params.n_ctx = u32::try_from(tokens.next_multiple_of(256))?;
            (params.n_batch, params.n_ubatch) = (run.batch as u32, run.batch as u32);
            (params.n_threads, params.n_threads_batch) = (run.threads as i32, run.threads as i32);
            // With flash attention there are no scores, and f32 keys are those that the queries meet.
            params.flash_attn_type = sys::LLAMA_FLASH_ATTN_TYPE_DISABLED;
            (params.type_k, params.type_v) = (sys::GGML_TYPE_F32, sys::GGML_TYPE_F32);
            // Cells of a window are not used again, so a key stands at its position.
            params.swa_full = true;
            if !hook.is_null() {
                params.cb_eval = Some(evaluated);
                params.cb_eval_user_data = hook.cast();
            }
            sys::llama_init_from_model(model.0.as_ptr(), params)
        };
        let raw = NonNull::new(raw)
            .ok_or_else(|| anyhow!("llama.cpp cannot run {tokens} tokens: {}", taken(&COMPLAINT)))?;
        let context = Context { raw, model: PhantomData };
        // SAFETY: the context was made just now.
        if !unsafe { sys::llama_get_causal_attn(raw.as_ptr()) } {
            bail!("its tokens see later ones (an encoder), expected attention to earlier keys only");
        }
        Ok(context)
    }
}

impl Drop for Context<'_> {
    fn drop(&mut self) {
        // SAFETY: it was made by `new`, and nothing else frees it.
        unsafe { sys::llama_free(self.raw.as_ptr()) }
    }
}

/// What llama.cpp's callback gets.
struct Hook<'a> {
    observer: &'a mut dyn Observer,
    failure: Option<anyhow::Error>,
}

/// llama.cpp asks whether a node is wanted, and calls again when a wanted one is computed. False in the
/// second call skips the nodes that are left; the caller of the run then finds the failure.
unsafe extern "C" fn evaluated(tensor: *mut sys::ggml_tensor, ask: bool, hook: *mut c_void) -> bool {
    // SAFETY: the hook is the one that `Context::new` was given, and the node lives for this call.
    let (Some(hook), Some(tensor)) = (unsafe { (hook.cast::<Hook>().as_mut(), tensor.as_ref()) }) else {
        return false;
    };
    if hook.failure.is_some() {
        // A wanted node ends the evaluation by its second call.
        return ask;
    }
    let node = Node(tensor);
    let seen = catch_unwind(AssertUnwindSafe(|| match ask {
        true => hook.observer.wants(node),
        false => hook.observer.ready(node).map(|()| true),
    }));
    match seen {
        Ok(Ok(answer)) => answer,
        Ok(Err(failure)) => {
            hook.failure = Some(failure);
            ask
        }
        Err(_) => {
            hook.failure = Some(anyhow!("the recorder failed at node {}: this is a bug", node.name()));
            ask
        }
    }
}

impl<'a> Node<'a> {
    /// Its name, which ends in `-` and the number of its layer.
    pub fn name(self) -> Cow<'a, str> {
        // SAFETY: ggml keeps names of at most 63 bytes, with a 0 behind them.
        unsafe { CStr::from_ptr(self.0.name.as_ptr()) }.to_string_lossy()
    }

    /// What it computes.
    pub fn op(self) -> Op {
        match self.0.op {
            sys::GGML_OP_NONE => Op::Given,
            sys::GGML_OP_MUL_MAT => Op::Products,
            sys::GGML_OP_SOFT_MAX => Op::Softmax,
            sys::GGML_OP_SCALE => Op::Scale,
            sys::GGML_OP_UNARY if self.0.op_params[0] == sys::GGML_UNARY_OP_TANH as i32 => Op::Tanh,
            sys::GGML_OP_FLASH_ATTN_EXT => Op::Flash,
            _ => Op::Other,
        }
    }

    /// ggml's word for it.
    pub fn op_name(self) -> Cow<'a, str> {
        // SAFETY: the node is one of ggml's; the word is static.
        unsafe { CStr::from_ptr(sys::ggml_op_desc(self.0)) }.to_string_lossy()
    }

    /// Its sizes, the fastest first.
    pub fn shape(self) -> [usize; 4] {
        self.0.ne.map(|size| usize::try_from(size).unwrap_or(0))
    }

    /// A parameter of its operation.
    pub fn parameter(self, index: usize) -> f32 {
        f32::from_bits(self.0.op_params[index] as u32)
    }

    /// A source.
    pub fn source(self, index: usize) -> Option<Node<'a>> {
        // SAFETY: the sources of a node live as long as its graph.
        unsafe { self.0.src[index].as_ref() }.map(Node)
    }

    /// Reads the numbers at [.., i, j, 0] from the first on.
    ///
    /// Errors: a node that is not f32 or does not have them.
    pub fn read(self, [i, j]: [usize; 2], to: &mut [f32]) -> Result<()> {
        let (shape, strides) = (self.shape(), self.0.nb);
        let start = i * strides[1] + j * strides[2];
        let fits = to.len() <= shape[0] && i < shape[1] && j < shape[2] && shape[3] == 1;
        // SAFETY: the node is one of ggml's.
        let all = unsafe { sys::ggml_nbytes(self.0) };
        let held = if self.0.view_src.is_null() {
            self.0.buffer
        } else {
            // SAFETY: what a view looks at lives as long as the view.
            unsafe { (*self.0.view_src).buffer }
        };
        let (f32s, bytes) = (self.0.type_ == sys::GGML_TYPE_F32 && strides[0] == 4, size_of_val(to));
        if !(fits && f32s && start + bytes <= all && !held.is_null()) {
            let (name, found) = (self.name(), self.0.type_);
            bail!("node {name} of type {found} and shape {shape:?} has no {} f32 at [{i}, {j}]", to.len());
        }
        // SAFETY: the bytes lie within the node, which has a buffer, and `to` has room for them.
        unsafe { sys::ggml_backend_tensor_get(self.0, to.as_mut_ptr().cast(), start, bytes) }
        Ok(())
    }
}
