//! The model that an example runs, from its command line.

use crate::text::Text;
use anyhow::{Context, Result};
use candle_core::quantized::gguf_file::Content;
use clap::{Args, ValueEnum};
use critbeta::calibration::{HeadRescalings, RescalingSpec};
use critbeta_candle::Rules;
use critbeta_candle::llama::{Attention, Config, Llama};
use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kernel {
    /// critbeta's decode attention.
    Critbeta,
    /// Products of candle, as candle-transformers' quantized_llama has them.
    Candle,
    /// Products of candle, with the heads that share keys in one.
    Grouped,
    /// candle's fused attention for CPUs.
    Flash,
}

/// A model file and how it runs.
#[derive(Args)]
pub struct Model {
    /// A GGUF file of a Llama.
    pub model: PathBuf,
    /// A rescaling as `critbeta laws` lists them, or calibrated:FILE with a rule for each layer and head.
    #[arg(long, default_value = "identity", value_name = "SPEC")]
    pub rescaling: RescalingSpec,
    /// What attends over the cache.
    #[arg(long, value_enum, default_value_t = Kernel::Critbeta)]
    decode: Kernel,
    /// The values of weights that sum to at most this may stay unread (--decode critbeta).
    #[arg(long, default_value_t = 0.0)]
    eps: f64,
}

impl Model {
    /// Reads the file. A rule that cannot apply is refused here, before the weights are read.
    pub fn load(&self) -> Result<(Llama, Text, Content)> {
        let place = || format!("{}", self.model.display());
        let mut file = BufReader::new(File::open(&self.model).with_context(place)?);
        let content = Content::read(&mut file).with_context(place)?;
        let config = Config::read(&content).with_context(place)?;
        let given = HeadRescalings::load(self.rescaling.clone())?;
        if let (bad @ 1.., all) = given.inconclusive() {
            eprintln!("warning: {bad} of {all} calibrated laws are inconclusive");
        }
        let rules = Rules::new(&given, &config.layer_names(), config.heads)?;
        let attention = match self.decode {
            Kernel::Critbeta => Attention::Critbeta { eps: self.eps },
            Kernel::Candle => Attention::Candle,
            Kernel::Grouped => Attention::Grouped,
            Kernel::Flash => Attention::Flash,
        };
        let text = Text::read(&content).with_context(place)?;
        let model = Llama::load(&content, &mut file, rules, attention).with_context(place)?;
        Ok((model, text, content))
    }
}
