//! The arguments of the command line.

use clap::{Args, Parser, Subcommand};
use critbeta::DType;
use critbeta::calibration::RescalingSpec;
use critbeta_diagnose::{DeviceSpec, RowFormat};
use std::path::PathBuf;

/// The exact critical inverse temperature of attention rows, and what it says about a model.
#[derive(Parser)]
#[command(name = "critbeta", version, propagate_version = true)]
pub struct Cli {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
    /// Print only errors on stderr
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// Seed of all random numbers
    #[arg(long, global = true, default_value_t = 1, value_name = "N")]
    pub seed: u64,
    /// Compute with this many threads [default: one per core]
    #[arg(long, global = true, value_name = "N", value_parser = threads)]
    pub threads: Option<usize>,
    /// Compute rows on this device: auto (the CPU), cpu, cuda:N, or simt (CUDA kernels, simulated)
    #[arg(long, global = true, value_name = "DEVICE", default_value_t = DeviceSpec::Auto)]
    pub device: DeviceSpec,
}

#[derive(Subcommand)]
pub enum Command {
    /// Measure every attention row of the files and say which length law each head follows
    ///
    /// FILE is .npy scores [..., rows, n], or .safetensors or .npz with score tensors or with pairs NAME.q
    /// [heads, rows, head_dim] and NAME.k [kv_heads, keys, head_dim], or a folder of .safetensors shards or
    /// its index. Scores are the logits that the softmax sees; -inf is masked. Heads of the same layer name
    /// are pooled over files.
    Diagnose(Diagnose),
    /// Write the page of a diagnosis from its row records
    ///
    /// Some parts of a page need the scores (gap counts of rows, other rules on the same rows). Records do
    /// not have them: `critbeta diagnose FILE --html` shows these parts.
    #[cfg(feature = "html")]
    Report(Report),
    /// Write the rescaled probabilities of every row of a score file in the same format and shape
    Softmax(Softmax),
    /// Generate score families of known answer and compare what is measured with what is known
    Families(Families),
    /// Show the published length laws with their conventions, sources and values
    Laws(Laws),
    /// Time the softmax, or decode attention, against a copy of the same bytes; check every result first
    Bench(Bench),
    /// Say which CUDA kernel would run, and why; needs no GPU. With --device cpu, say who computes which rows
    Plan(Plan),
    /// Say what this machine offers
    Doctor,
}

#[derive(Args)]
pub struct Diagnose {
    /// Attention to diagnose
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Write one record per row to this .jsonl, .csv or .parquet
    #[arg(long, value_name = "FILE", value_parser = row_file)]
    pub rows: Option<(RowFormat, PathBuf)>,
    /// Write the summary as JSON; - is stdout, in place of the tables
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write c and xi per layer and head, which the rescaling calibrated:FILE reads
    #[arg(long, value_name = "FILE", value_parser = file, conflicts_with = "top_k")]
    pub calibration: Option<PathBuf>,
    /// Write the report as one page for any browser; reads all scores a second time
    #[cfg(feature = "html")]
    #[arg(long, value_name = "FILE", value_parser = file)]
    pub html: Option<PathBuf>,
    /// Read only this tensor, or this pair by its name without .q
    #[arg(long, value_name = "NAME")]
    pub tensor: Option<String>,
    /// Scale of q k^T [default: the file's metadata "scale", else 1 / sqrt(head_dim)]
    #[arg(long, value_name = "S", value_parser = positive, allow_negative_numbers = true)]
    pub scale: Option<f64>,
    /// Inverse temperature of the rows, on top of the scale
    #[arg(long, value_name = "B", default_value_t = 1.0, value_parser = not_negative)]
    #[arg(allow_negative_numbers = true)]
    pub beta: f64,
    /// Resolve r of the resolved critical beta: competitors that make up e^r keys stay together
    #[arg(long, value_name = "NATS", default_value_t = 0.0, value_parser = not_negative)]
    #[arg(allow_negative_numbers = true)]
    pub resolve: f64,
    /// Count only the K largest scores of a row, and say where that is proven exact
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u16).range(1..=2048))]
    pub top_k: Option<u16>,
    /// Training length for the published laws that have one (qwen-logn, grok2, mistral3)
    #[arg(long, value_name = "N", default_value_t = 8192, value_parser = clap::value_parser!(u64).range(2..))]
    pub train_length: u64,
    /// Leave the first K keys (an attention sink) out of every row
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub exclude_sink: usize,
}

#[cfg(feature = "html")]
#[derive(Args)]
pub struct Report {
    /// Row records: .parquet, .jsonl or .csv, as `critbeta diagnose --rows` writes them
    #[arg(value_name = "ROWS")]
    pub rows: PathBuf,
    /// Write the page to this file
    #[arg(long, value_name = "FILE", value_parser = file)]
    pub html: PathBuf,
    /// Write the summary as JSON
    #[arg(long, value_name = "FILE", value_parser = file)]
    pub json: Option<PathBuf>,
    /// The --resolve that the records were made with; needed if it was above 0
    #[arg(long, value_name = "NATS", value_parser = not_negative, allow_negative_numbers = true)]
    pub resolve: Option<f64>,
    /// The --top-k that the records were made with, if there was one
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u16).range(1..=2048))]
    pub top_k: Option<u16>,
    /// The --exclude-sink that the records were made with
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub exclude_sink: usize,
    /// Training length for the published laws that have one
    #[arg(long, value_name = "N", default_value_t = 8192, value_parser = clap::value_parser!(u64).range(2..))]
    pub train_length: u64,
}

#[derive(Args)]
pub struct Softmax {
    /// Scores: .npy, .npz or .safetensors
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Write the probabilities to this file, in the same format (.safetensors for .npz)
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// identity, fixed:1.3, a law (see `critbeta laws`), critical:ratio=1,resolve=0.69,floor=0.5,cap=8,
    /// calibrated:FILE, ...
    #[arg(long, value_name = "SPEC")]
    pub rescaling: RescalingSpec,
    /// f64, f32, f16 or bf16 [default: as in FILE]
    #[arg(long, value_name = "DTYPE")]
    pub dtype: Option<DType>,
    /// Read only this tensor
    #[arg(long, value_name = "NAME")]
    pub tensor: Option<String>,
}

#[derive(Args)]
pub struct Families {
    /// Write the comparison as JSON; - is stdout, in place of the table
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

#[derive(Args)]
pub struct Laws {
    /// Show values at these numbers of visible keys
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_values_t = [1024, 8192, 65536, 1048576],
          value_parser = clap::value_parser!(u64).range(1..))]
    pub n: Vec<u64>,
}

#[derive(Args)]
pub struct Plan {
    /// Scores of a row; with --decode keys of a sequence
    #[arg(long, value_name = "N", required_unless_present_any = ["table", "slots"])]
    pub len: Option<u64>,
    /// Rows
    #[arg(long, value_name = "R", required_unless_present_any = ["table", "slots", "decode"])]
    pub rows: Option<u64>,
    /// f32, f16 or bf16 [default: f32; with --decode bf16]
    #[arg(long, value_name = "DTYPE")]
    pub dtype: Option<DType>,
    /// sm_80, sm_86, sm_89, sm_90, sm_100, sm_103 or sm_120 [default: the GPU of --device, else sm_90]
    #[arg(long, value_name = "ARCH")]
    pub arch: Option<String>,
    /// Plan probabilities under a rescaling (this is the default)
    #[arg(long, conflicts_with = "profile")]
    pub softmax: bool,
    /// Plan statistics only
    #[arg(long)]
    pub profile: bool,
    /// Print what an H200 should take for the shapes of the goals, as in docs/gpu.md
    #[arg(long, conflicts_with_all = ["len", "rows", "dtype", "arch", "softmax", "profile"])]
    pub table: bool,
    /// Take the issue slots of this record (scripts/cuda-compile.sh --record) for the table
    #[arg(long, value_name = "FILE")]
    pub slots: Option<PathBuf>,
    #[command(flatten)]
    pub decode: PlanDecode,
}

/// Decode attention on a GPU in place of the softmax.
#[derive(Args)]
pub struct PlanDecode {
    /// Plan decode attention over paged keys and values on a GPU
    #[arg(long, conflicts_with_all = ["rows", "softmax", "profile", "table", "slots"])]
    pub decode: bool,
    /// Sequences
    #[arg(long, value_name = "B", default_value = "1", value_parser = size)]
    pub seqs: usize,
    /// Query tokens of a sequence
    #[arg(long, value_name = "T", default_value = "1", value_parser = size)]
    pub query_len: usize,
    /// Query heads
    #[arg(long, value_name = "H", default_value = "32", value_parser = size)]
    pub heads: usize,
    /// Key heads
    #[arg(long, value_name = "K", default_value = "8", value_parser = size)]
    pub kv_heads: usize,
    /// Elements of a head
    #[arg(long, value_name = "D", default_value = "128", value_parser = size)]
    pub head_dim: usize,
    /// Slots of a page
    #[arg(long, value_name = "P", default_value = "16", value_parser = size)]
    pub page: usize,
    /// The share of weights whose values may stay unread
    #[arg(long, value_name = "E", default_value_t = 0.0)]
    pub eps: f64,
    /// The share of values that is then read, a guess
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    pub keep: f64,
}

pub fn file(text: &str) -> Result<PathBuf, String> {
    if text == "-" { Err("expected a file, not stdout".into()) } else { Ok(text.into()) }
}

fn number(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() => Ok(value),
        _ => Err("expected a finite number".into()),
    }
}

fn not_negative(text: &str) -> Result<f64, String> {
    number(text).and_then(|value| if value >= 0.0 { Ok(value) } else { Err("expected a number >= 0".into()) })
}

fn positive(text: &str) -> Result<f64, String> {
    number(text).and_then(|value| if value > 0.0 { Ok(value) } else { Err("expected a number > 0".into()) })
}

fn threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(threads @ 1..=1024) => Ok(threads),
        _ => Err("expected 1 to 1024".into()),
    }
}

fn row_file(text: &str) -> Result<(RowFormat, PathBuf), String> {
    let path = PathBuf::from(text);
    RowFormat::of(&path).map(|format| (format, path)).map_err(|e| e.to_string())
}

/// What `--rows` holds: a number of rows, or a file with rows to decode.
#[derive(Debug, Clone)]
pub enum BenchRows {
    Count(u64),
    File(PathBuf),
}

fn bench_rows(text: &str) -> Result<BenchRows, String> {
    match text.parse() {
        Ok(0) => Err("expected at least 1, or a file".into()),
        Ok(count) => Ok(BenchRows::Count(count)),
        Err(_) if text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-') => {
            Err("expected a number of rows, or a file".into())
        }
        Err(_) => Ok(BenchRows::File(text.into())),
    }
}

#[derive(Args)]
#[command(group(clap::ArgGroup::new("case").args(["len", "decode"]).multiple(true)))]
pub struct Bench {
    /// Rows of the one case to measure [default: as many as make 64 MiB of scores, or 256 MiB on a GPU]; with
    /// --decode a file of queries and keys, whose layers are the cases
    #[arg(long, value_name = "R|FILE", requires = "case", value_parser = bench_rows)]
    pub rows: Option<BenchRows>,
    /// Columns of the one case to measure [default: a ladder of shapes and families]; with --decode the keys
    /// of a sequence
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1 << 24))]
    pub len: Option<u64>,
    /// f32, f16 or bf16 [default: f32; with --decode bf16, or that of the file]
    #[arg(long, value_name = "DTYPE", requires = "case")]
    pub dtype: Option<DType>,
    /// gaussian, sink, needles, student-t, log-grid, equal, masked, bf16 or ascending [default: gaussian]
    #[arg(long, value_name = "FAMILY", requires = "len")]
    pub family: Option<String>,
    /// Put the scores of each row in a random order, not in the family's own
    #[arg(long, requires = "len", conflicts_with = "decode")]
    pub shuffled: bool,
    /// Measure a few tiny cases instead of the ladder, for a memory checker; their times mean nothing
    #[arg(long, conflicts_with_all = ["len", "rows", "dtype", "family", "shuffled", "turns"])]
    pub small: bool,
    /// Run each method of a case K times, the slowest fewer; the median counts
    #[arg(long, value_name = "K", default_value_t = 15, value_parser = clap::value_parser!(u16).range(1..))]
    pub rounds: u16,
    /// Write the seconds as JSON; - is stdout, in place of the table
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Take turns with another program, on the CPU only: check every method, write the scores to FILE (little
    /// endian, one row after another), then read names of methods from stdin and print the seconds of one run
    /// for each line. With --decode the file is .safetensors: q [seqs, heads, dim], k and v [seqs, kv_heads,
    /// len, dim], and the metadata `lens`
    #[arg(long, value_name = "FILE", requires = "case", conflicts_with = "json", value_parser = file)]
    pub turns: Option<PathBuf>,
    #[command(flatten)]
    pub decode: BenchDecode,
}

impl Bench {
    /// The family that rows are drawn from.
    pub fn family_or_default(&self) -> &str {
        self.family.as_deref().unwrap_or("gaussian")
    }
}

/// Decode attention in place of the softmax.
#[derive(Args)]
pub struct BenchDecode {
    /// Time decode attention over paged keys and values, beside a read or a copy of the same bytes
    #[arg(long)]
    pub decode: bool,
    /// Only this layer of the file of --rows
    #[arg(long, value_name = "NAME", requires = "rows", requires = "decode")]
    pub tensor: Option<String>,
    /// Sequences, one token each [default: 1]
    #[arg(long, value_name = "N", requires = "decode", value_parser = size)]
    pub seqs: Option<usize>,
    /// Query heads [default: 8]; a file has its own
    #[arg(long, value_name = "H", requires = "len", requires = "decode", value_parser = size)]
    pub heads: Option<usize>,
    /// Key heads [default: as many as query heads]; a file has its own
    #[arg(long, value_name = "K", requires = "len", requires = "decode", value_parser = size)]
    pub kv_heads: Option<usize>,
    /// Elements of a head [default: 128]; a file has its own
    #[arg(long, value_name = "D", requires = "len", requires = "decode", value_parser = size)]
    pub head_dim: Option<usize>,
    /// Slots of a page [default: 16]
    #[arg(long, value_name = "P", requires = "decode", value_parser = size)]
    pub page: Option<usize>,
    /// The share of weights whose values may stay unread [default: 0.001]
    #[arg(long, value_name = "E", requires = "decode")]
    pub eps: Option<f64>,
}

fn size(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(size @ 1..=0x8000_0000) => Ok(size),
        _ => Err("expected a whole number from 1 to 2147483648".into()),
    }
}
