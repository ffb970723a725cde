//! Queries and keys of a run, in a file that `critbeta diagnose` reads.

use crate::start::Model;
use anyhow::Result;
use candle_core::Tensor;
use critbeta::calibration::RescalingSpec;
use critbeta_candle::Cache;
use critbeta_candle::llama::{Config, Watch};
use critbeta_diagnose::output::{Output, distinct};
use safetensors::{Dtype, tensor::TensorView};
use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Keeps every `every`-th query of each layer and head. A failure ends the record with one warning, and never
/// ends the run.
pub struct Record {
    path: PathBuf,
    every: usize,
    scale: f64,
    positions: Vec<i64>,
    /// `[heads][rows * head_dim]` of each layer.
    queries: Vec<Vec<Vec<f32>>>,
    /// The file, which appears once it is whole. It is `None` once the record has failed.
    file: Option<Output>,
}

/// Refuses a record that would replace a file of the run.
pub fn keep_apart(path: &Path, model: &Model) -> critbeta::Result<()> {
    let mut files = vec![model.model.as_path()];
    if let RescalingSpec::PerHead { file, .. } = &model.rescaling {
        files.push(file);
    }
    files.push(path);
    match distinct(&files) {
        // A folder that is not there makes a record fail, and not the run.
        Err(critbeta::Error::Io { .. }) => Ok(()),
        other => other,
    }
}

impl Record {
    /// A record of at most about `rows` of `tokens` positions.
    pub fn new(path: &Path, config: &Config, tokens: usize, rows: usize) -> Record {
        let mut record = Record {
            path: path.to_owned(),
            every: tokens.div_ceil(rows.max(1)).max(1),
            scale: 1.0 / (config.head_dim as f64).sqrt(),
            positions: Vec::new(),
            queries: vec![vec![Vec::new(); config.heads]; config.layers],
            file: None,
        };
        match Output::create(path) {
            Ok(file) => record.file = Some(file),
            Err(error) => record.warn(&error.into()),
        }
        record
    }

    fn warn(&self, error: &anyhow::Error) {
        eprintln!("warning: {} is not recorded: {error:#}", self.path.display());
    }

    fn keep(&mut self, layer: usize, position: usize, queries: &Tensor) -> Result<()> {
        let (_, heads, tokens, _) = queries.dims4()?;
        for token in (0..tokens).filter(|token| (position + token).is_multiple_of(self.every)) {
            if layer == 0 {
                self.positions.push((position + token) as i64);
            }
            let of = queries.narrow(2, token, 1)?.reshape((heads, ()))?.to_vec2::<f32>()?;
            self.queries[layer].iter_mut().zip(of).for_each(|(kept, head)| kept.extend(head));
        }
        Ok(())
    }

    /// Writes the file. The keys are those of the whole run.
    pub fn finish(mut self, cache: &Cache) {
        if let Some(file) = self.file.take() {
            match self.write(file, cache) {
                Ok(()) => eprintln!(
                    "{}: queries at {} positions, and keys of {} tokens",
                    self.path.display(),
                    self.positions.len(),
                    cache.len()
                ),
                Err(error) => self.warn(&error),
            }
        }
    }

    fn write(&self, mut file: Output, cache: &Cache) -> Result<()> {
        let mut blocks = Vec::new();
        for (layer, queries) in self.queries.iter().enumerate() {
            let (name, heads, rows) = (Config::layer_name(layer), queries.len(), self.positions.len());
            let q = queries.concat();
            let dim = q.len() / (heads * rows).max(1);
            blocks.push((format!("{name}.q"), vec![heads, rows, dim], q));
            let [k, _] = cache.layer(layer)?;
            let k = k.squeeze(0)?;
            blocks.push((format!("{name}.k"), k.dims().to_vec(), k.flatten_all()?.to_vec1::<f32>()?));
        }
        let mut views = Vec::new();
        for (name, shape, numbers) in &blocks {
            let view = TensorView::new(Dtype::F32, shape.clone(), bytemuck::cast_slice(numbers))?;
            views.push((name.clone(), view));
        }
        let positions = bytemuck::cast_slice(&self.positions);
        let view = TensorView::new(Dtype::I64, vec![self.positions.len()], positions)?;
        views.push(("positions".to_owned(), view));
        let metadata = HashMap::from([("scale".to_owned(), self.scale.to_string())]);
        file.write_all(&safetensors::serialize(views, Some(metadata))?)?;
        Ok(file.commit()?)
    }
}

impl Watch for Record {
    fn queries(&mut self, layer: usize, position: usize, queries: &Tensor) {
        if self.file.is_some()
            && let Err(error) = self.keep(layer, position, queries)
        {
            self.file = None;
            self.queries.clear();
            self.warn(&error);
        }
    }
}
