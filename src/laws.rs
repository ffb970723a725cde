//! The registry of published length laws is a table of data: one new row adds a law everywhere.
//!
//! Every law multiplies the logits, so its factor is an inverse temperature. In the formulas `n` is the
//! number of visible keys, `i` the 0-based position of the query, and `L` the training length. Logarithms are
//! natural unless a formula says otherwise. Published implementations differ: they use position or position +
//! 1, sequence length or visible keys, and some clamp below L. Each entry states its convention.

/// The facts of a row that its factor may depend on.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct RowFacts {
    /// Visible keys, n.
    pub n: u64,
    /// 0-based position of the query.
    pub position: u64,
    /// Lambda(r) of the row, at the r of [`Rescaling::resolve`](crate::Rescaling::resolve). It is read only
    /// if that is `Some`.
    pub critical: f64,
    /// Entropy of the row at beta = 1, in nats. It is read only if
    /// [`Rescaling::needs_entropy`](crate::Rescaling::needs_entropy).
    pub entropy: f64,
}

impl RowFacts {
    /// The facts of a row of `n` visible keys at `position`. Measured facts are NaN until they are set.
    pub fn new(n: u64, position: u64) -> RowFacts {
        RowFacts { n, position, critical: f64::NAN, entropy: f64::NAN }
    }

    pub(crate) fn ln_n(&self) -> f64 {
        (self.n.max(1) as f64).ln()
    }
}

/// A parameter of a law.
#[derive(Debug)]
#[non_exhaustive]
pub struct Parameter {
    /// The key in the text form.
    pub name: &'static str,
    /// The value if the text does not give one; `None` if the text must give one.
    pub default: Option<f64>,
    /// The value that the printed table of the registry uses.
    pub example: f64,
    /// Whether it is a length, which must exceed 1 so that its logarithm is positive.
    pub is_length: bool,
}

/// One published law.
#[derive(Debug)]
#[non_exhaustive]
pub struct LawEntry {
    /// The name in the text form.
    pub name: &'static str,
    /// The parameters. The first is always printed.
    pub parameters: &'static [Parameter],
    /// The factor as a formula.
    pub formula: &'static str,
    /// What the factor varies over: the model, the row, the position or the head.
    pub granularity: &'static str,
    /// The convention used here, because implementations differ.
    pub convention: &'static str,
    /// The publication.
    pub source: &'static str,
    /// Whether the law needs [`RowFacts::entropy`].
    pub needs_entropy: bool,
    /// Computes the factor from the parameters, in the order above.
    pub(crate) factor: fn(&[f64], &RowFacts) -> f64,
}

const fn required(name: &'static str, example: f64) -> Parameter {
    Parameter { name, default: None, example, is_length: false }
}

const fn optional(name: &'static str, default: f64) -> Parameter {
    Parameter { name, default: Some(default), example: default, is_length: false }
}

const fn length(name: &'static str, default: Option<f64>) -> Parameter {
    let example = match default {
        Some(length) => length,
        None => 8192.0,
    };
    Parameter { name, default, example, is_length: true }
}

const TRAIN: Parameter = length("train", None);

/// All laws.
pub static LAWS: [LawEntry; 11] = [
    LawEntry {
        name: "chen",
        parameters: &[required("gamma", 1.0)],
        formula: "gamma ln n",
        granularity: "model",
        convention: "n visible keys; critical at gamma = 1 / (1 - cosine of the tokens)",
        source: "Chen et al., arXiv:2510.05554",
        needs_entropy: false,
        factor: |p, row| p[0] * row.ln_n(),
    },
    LawEntry {
        name: "rem",
        parameters: &[required("c", 1.0)],
        formula: "c sqrt(ln n)",
        granularity: "model",
        convention: "n visible keys; Gaussian scores (random energy model)",
        source: "Giorlandino & Goldt, arXiv:2505.24333",
        needs_entropy: false,
        factor: |p, row| p[0] * row.ln_n().sqrt(),
    },
    LawEntry {
        name: "ssmax",
        parameters: &[required("s", 0.43), optional("b", 0.0)],
        formula: "s ln n + b",
        granularity: "head (learned s, b)",
        convention: "n visible keys; below 0 it is 0",
        source: "Scalable-Softmax, arXiv:2501.19399 (s = 0.43 is its example)",
        needs_entropy: false,
        factor: |p, row| p[0] * row.ln_n() + p[1],
    },
    LawEntry {
        name: "su",
        parameters: &[length("base", Some(512.0))],
        formula: "ln n / ln base",
        granularity: "row",
        convention: "n visible keys, not clamped below base",
        source: "Su, entropy invariance of softmax (base 512)",
        needs_entropy: false,
        factor: |p, row| row.ln_n() / p[0].ln(),
    },
    LawEntry {
        name: "qwen-logn",
        parameters: &[TRAIN],
        formula: "max(1, ln(i + 1) / ln L)",
        granularity: "position",
        convention: "position + 1, only beyond L",
        source: "Qwen, use_logn_attn",
        needs_entropy: false,
        factor: |p, row| ((row.position as f64 + 1.0).ln() / p[0].ln()).max(1.0),
    },
    LawEntry {
        name: "grok2",
        parameters: &[TRAIN],
        formula: "log2(i) / log2(L) if i > L, else 1",
        granularity: "position",
        convention: "position, not + 1, only beyond L",
        source: "Grok-2, released weights and code",
        needs_entropy: false,
        factor: |p, row| {
            let i = row.position as f64;
            if i > p[0] { i.log2() / p[0].log2() } else { 1.0 }
        },
    },
    LawEntry {
        name: "yarn",
        parameters: &[required("scale", 4.0)],
        formula: "(0.1 ln scale + 1)^2",
        granularity: "model",
        convention: "scale = L' / L; squared because q and k are both scaled; 1 for scale <= 1",
        source: "YaRN, arXiv:2309.00071",
        needs_entropy: false,
        factor: |p, _| if p[0] > 1.0 { (0.1 * p[0].ln() + 1.0).powi(2) } else { 1.0 },
    },
    LawEntry {
        name: "llama4",
        parameters: &[optional("scale", 0.1), length("floor", Some(8192.0))],
        formula: "1 + scale ln(1 + floor((i + 1) / floor))",
        granularity: "position",
        convention: "position + 1; only in layers without positional embedding",
        source: "Llama 4, attention temperature tuning",
        needs_entropy: false,
        factor: |p, row| 1.0 + p[0] * ((row.position as f64 + 1.0) / p[1]).floor().ln_1p(),
    },
    LawEntry {
        name: "mistral3",
        parameters: &[TRAIN, optional("b", 0.1)],
        formula: "1 + b ln(1 + floor(i / L))",
        granularity: "position",
        convention: "position, not + 1",
        source: "Mistral 3, released configuration",
        needs_entropy: false,
        factor: |p, row| 1.0 + p[1] * (row.position as f64 / p[0]).floor().ln_1p(),
    },
    LawEntry {
        name: "velickovic",
        parameters: &[],
        formula: "max(1, -0.037 H^4 + 0.481 H^3 - 2.3 H^2 + 4.917 H - 1.791) if H > 0.5, else 1",
        granularity: "row, from its entropy",
        convention: "H = entropy in nats of the row at beta = 1",
        source: "Velickovic et al., arXiv:2410.01104",
        needs_entropy: true,
        factor: |_, row| {
            let h = row.entropy;
            let poly = (((-0.037 * h + 0.481) * h - 2.3) * h + 4.917) * h - 1.791;
            if h > 0.5 { poly.max(1.0) } else { 1.0 }
        },
    },
    LawEntry {
        name: "asentmax",
        parameters: &[required("delta", 1.0), required("b", 0.1), required("g", 1.0)],
        formula: "delta + b (ln n)^g",
        granularity: "head (learned delta, b, g)",
        convention: "n visible keys; made for entmax, here its form on softmax; below 0 it is 0",
        source: "ASEntmax, arXiv:2506.16640",
        needs_entropy: false,
        factor: |p, row| p[0] + p[1] * row.ln_n().powf(p[2]),
    },
];

impl LawEntry {
    /// The law of this name, if there is one.
    pub fn named(name: &str) -> Option<&'static LawEntry> {
        LAWS.iter().find(|law| law.name == name)
    }
}
