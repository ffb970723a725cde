//! Attention of few query tokens over a KV cache as candle models hold it.

use candle_core::{CpuStorage, CustomOp3, DType, Error, Layout, Result, Shape, Tensor, bail};
use critbeta::Element;
use critbeta::attention::{
    self, BlockTable, DecodeCall, DecodeRow, PagedKv, Pages, Queries, Sequences, Strides,
};
use std::sync::{Mutex, PoisonError};

/// The attention of the last query tokens of each sequence over its whole cache, each row at the inverse
/// temperature that `call` gives it. It returns the output, in the shape `[batch, heads, query tokens,
/// v_head_dim]` and the dtype of the queries, and a report on each row in the order `[batch, query tokens,
/// heads]`.
///
/// Shapes: `q` is `[batch, heads, query tokens, head_dim]` with 1 to 8 query tokens, which are the last keys
/// of the cache. `k` is `[batch, kv_heads, keys, head_dim]` and `v` is `[batch, kv_heads, keys, v_head_dim]`,
/// both in f32, f16 or bf16. Query head `h` uses the kv head `h / (heads / kv_heads)`: nothing repeats keys.
///
/// The cache is read where it lies, with any strides: a narrowed view of a larger buffer and a transposed
/// `[batch, keys, kv_heads, head_dim]` are not copied. Sequences of the batch are the pages of
/// [`DecodeCall::v_radius`].
///
/// A NaN or infinite score makes its own row NaN, and no other.
///
/// Errors: tensors that are not on a CPU, other dtypes, and shapes that do not fit together; head_dim must be
/// a multiple of 8 in 64..=256. The message gives the shapes and what was expected.
pub fn decode(q: &Tensor, k: &Tensor, v: &Tensor, call: &DecodeCall) -> Result<(Tensor, Vec<DecodeRow>)> {
    let shapes = || format!("critbeta decode of q {:?}, k {:?}, v {:?}", q.shape(), k.shape(), v.shape());
    let (Ok((batch, _, tokens, _)), Ok(of_k), Ok(of_v)) = (q.dims4(), k.dims4(), v.dims4()) else {
        bail!("{}: expected [batch, heads, tokens, head_dim] each", shapes());
    };
    if of_k.0 != batch || (of_k.0, of_k.1, of_k.2) != (of_v.0, of_v.1, of_v.2) {
        bail!("{}: expected one batch, and as many heads and keys in v as in k", shapes());
    }
    if tokens > of_k.2 {
        bail!("{}: expected the keys of all {tokens} query tokens in the cache", shapes());
    }
    if ![q, k, v].iter().all(|x| x.device().is_cpu()) {
        bail!("{} on {:?}: expected tensors on a CPU", shapes(), k.device().location());
    }
    if k.dtype() != v.dtype() {
        bail!("{}: k is {:?} and v is {:?}, expected one dtype", shapes(), k.dtype(), v.dtype());
    }
    for (name, x) in [("q", q), ("k", k)] {
        if !matches!(x.dtype(), DType::F32 | DType::F16 | DType::BF16) {
            bail!("{} with {name} in {:?}: expected f32, f16 or bf16", shapes(), x.dtype());
        }
    }
    // The queries are a few vectors. In f32 they keep every value, and a row rounds once, at the end.
    let query = q.transpose(1, 2)?.to_dtype(DType::F32)?.contiguous()?;
    let op = Decode { call, rows: Mutex::default() };
    let out = query.apply_op3_no_bwd(k, v, &op);
    let out = out.map_err(|error| Error::msg(format!("{}: {error}", shapes())))?;
    let rows = op.rows.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok((out.transpose(1, 2)?.to_dtype(q.dtype())?, rows))
}

/// Queries [batch, tokens, heads, head_dim] in f32, keys and values to [batch, tokens, heads, v_head_dim]. An
/// op returns one tensor, so that the reports are left in `rows`.
struct Decode<'a, 'b> {
    call: &'a DecodeCall<'b>,
    rows: Mutex<Vec<DecodeRow>>,
}

impl CustomOp3 for Decode<'_, '_> {
    fn name(&self) -> &'static str {
        "critbeta-decode"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        of_q: &Layout,
        k: &CpuStorage,
        of_k: &Layout,
        v: &CpuStorage,
        of_v: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (batch, tokens, heads, dim) = of_q.shape().dims4()?;
        let (CpuStorage::F32(q), Some((from, to))) = (q, of_q.contiguous_offsets()) else {
            bail!("expected dense queries in f32");
        };
        let queries = Queries::dense(&q[from..to], [batch * tokens, heads, dim]).map_err(Error::wrap)?;
        let sizes = [tokens, heads];
        let found = match (k, v) {
            (CpuStorage::F32(k), CpuStorage::F32(v)) => run(&queries, sizes, (k, of_k), (v, of_v), self.call),
            (CpuStorage::F16(k), CpuStorage::F16(v)) => run(&queries, sizes, (k, of_k), (v, of_v), self.call),
            (CpuStorage::BF16(k), CpuStorage::BF16(v)) => {
                run(&queries, sizes, (k, of_k), (v, of_v), self.call)
            }
            _ => bail!("expected keys and values in f32, f16 or bf16"),
        };
        let (out, rows) = found.map_err(Error::wrap)?;
        *self.rows.lock().unwrap_or_else(PoisonError::into_inner) = rows;
        Ok((CpuStorage::F32(out), (batch, tokens, heads, of_v.dims()[3]).into()))
    }
}

fn run<T: Element>(
    queries: &Queries<f32>,
    [tokens, heads]: [usize; 2],
    k: (&[T], &Layout),
    v: (&[T], &Layout),
    call: &DecodeCall,
) -> critbeta::Result<(Vec<f32>, Vec<DecodeRow>)> {
    let (keys, values) = (pages(k)?, pages(v)?);
    // Each sequence is one page.
    let batch = keys.pages();
    let ids: Vec<i32> = (0..batch as i32).collect();
    let (lens, query_lens) = (vec![keys.page(); batch], vec![tokens; batch]);
    let sequences = Sequences::new(BlockTable::rows(&ids, [batch, 1], 1)?, &lens[..])?;
    let mut out = vec![0.0; heads * batch * tokens * values.dim()];
    let kv = PagedKv::new(keys, values)?;
    let rows = attention::decode(&queries.with_lens(&query_lens[..]), &kv, &sequences, call, &mut out)?;
    Ok((out, rows))
}

/// A tensor `[batch, heads, slots, elements]` as pages, which are its batch.
fn pages<'a, T: Element>((storage, layout): (&'a [T], &Layout)) -> critbeta::Result<Pages<'a, T>> {
    // Both have four axes.
    let (size, stride) = (layout.dims(), layout.stride());
    let strides = Strides { page: stride[0], slot: stride[2], head: stride[1], element: stride[3] };
    let data = storage.get(layout.start_offset()..).unwrap_or_default();
    Pages::strided(data, [size[0], size[2], size[1], size[3]], strides)
}
