//! The files of a recording.

use anyhow::{Result, anyhow};
use critbeta_diagnose::output::{Output, commit_all};
use critbeta_diagnose::recording::{KeptFile, KeptTensor, Recording};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Writes the files of a recording and returns them: `path`, or its stem with numbers if layers have several
/// scales or kinds of tensors. All of them appear, or none.
pub fn save(recording: &Recording, path: &Path, model: &str) -> Result<Vec<PathBuf>> {
    let count = recording.file_count();
    let width = (count - 1).to_string().len();
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let numbered = |number| path.with_file_name(format!("{stem}-{number:0width$}.safetensors"));
    let paths: Vec<PathBuf> = match count {
        1 => vec![path.to_owned()],
        _ => (0..count).map(numbered).collect(),
    };
    let outputs = paths.iter().enumerate().map(|(number, path)| {
        let mut out = Output::create(path)?;
        let file = recording.file(number);
        let header = header(&file, model).map_err(|e| anyhow!("{}: {e}", path.display()))?;
        let parts = file.tensors.iter().map(|(_, tensor)| &tensor.bytes);
        let written = std::iter::once(&header).chain(parts).try_for_each(|bytes| out.write_all(bytes));
        written.map_err(|e| critbeta::Error::Io { path: path.clone(), source: e })?;
        Ok(out)
    });
    commit_all(outputs.collect::<Result<_>>()?)?;
    Ok(paths)
}

fn header(file: &KeptFile, model: &str) -> Result<Vec<u8>> {
    let mut end = 0;
    let info = |tensor: &KeptTensor| {
        let start = end;
        end += tensor.bytes.len();
        // Scores, queries and keys are f32 here.
        let dtype = if tensor.dtype.is_some() { Dtype::F32 } else { Dtype::I64 };
        TensorInfo { dtype, shape: tensor.shape.clone(), data_offsets: (start, end) }
    };
    let tensors: Vec<TensorInfo> = file.tensors.iter().map(|(_, tensor)| tensor).map(info).collect();
    let names = file.tensors.iter().map(|(name, _)| name.clone());
    let mut metadata = HashMap::from([("model".to_owned(), model.to_owned())]);
    if let Some(scale) = file.scale {
        metadata.insert("scale".to_owned(), scale.to_string());
    }
    let header = Metadata::new(Some(metadata), names.zip(tensors).collect())?;
    let mut text = serde_json::to_vec(&header)?;
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text);
    Ok(bytes)
}
