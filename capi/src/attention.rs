//! Calls on queries, and on keys and values in pages.

use crate::args::Versioned;
use crate::engine::Device;
use crate::reports::{Reports, measure};
use crate::rules::{Rule, Rules};
use crate::status::{Result, invalid};
use crate::tensor::{DLTensor, Held, Numbers, Tensor, Tensors};
use critbeta::Element;
use critbeta::attention::{
    self, BlockTable, DecodeCall, DecodeRow, PagedKv, Pages, Queries, Sequences, Strides,
};
use half::{bf16, f16};

/// Keys and values are [pages, page, kv_heads, head_dim].
pub const CRITBETA_NHD: u32 = 0;
/// Keys and values are [pages, kv_heads, page, head_dim].
pub const CRITBETA_HND: u32 = 1;

/// What critbeta_measure_paged and critbeta_decode_paged read and write. Zeros in a field leave it out.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct PagedArgs {
    /// sizeof(critbeta_paged_args).
    pub size: usize,
    /// [tokens, heads, head_dim] float32, float16 or bfloat16, any strides. The tokens of a sequence follow
    /// each other. head_dim is a multiple of 8 in 64..256.
    pub queries: *const DLTensor,
    /// Four axes as `layout` says, any strides: the keys of one layer, of one of the three types.
    pub keys: *const DLTensor,
    /// As keys, and of their type. A measurement has none.
    pub values: *const DLTensor,
    /// int32 page numbers: [sequences, blocks], rows at any distance; or with indptr [entries].
    pub table: *const DLTensor,
    /// [sequences + 1] int32: sequence s has the entries indptr[s] .. indptr[s + 1] of the table.
    pub indptr: *const DLTensor,
    /// [sequences] int32: how many keys each sequence has, those of its query tokens included.
    pub lens: *const DLTensor,
    /// [sequences] int32: 0 to 8 query tokens of each sequence; NULL is one.
    pub query_lens: *const DLTensor,
    /// One rule, or one for each query head; NULL is beta = 1.
    pub rule: *const Rule,
    /// [tokens, heads, head_dim of values], dense, any of the three types: the output of a decode.
    pub out: *const DLTensor,
    /// [tokens * heads, columns] or [tokens, heads, columns] float64: the doubles of a critbeta_row_report. A
    /// decode may leave it out.
    pub reports: *const DLTensor,
    /// [pages, kv_heads] float32: at least the largest norm of value - centre in each page, for the bound.
    pub v_radius: *const DLTensor,
    /// [kv_heads, head_dim of values] float32: what stands for values that stay unread.
    pub centre: *const DLTensor,
    /// The factor of q.k; 0 stands for 1 / sqrt(head_dim).
    pub scale: f64,
    /// Scores become softcap * tanh(score / softcap).
    pub softcap: f64,
    /// The share of a row's weights whose values may stay unread, 0 <= eps < 1.
    pub eps: f64,
    /// r of Lambda(r), nats, at least 0.
    pub resolve: f64,
    /// Counts gaps among this many largest scores only.
    pub top_k: u64,
    /// How many keys a query token sees, its own included.
    pub window: u64,
    /// CRITBETA_NHD or CRITBETA_HND.
    pub layout: u32,
    /// 1: the reports of a decode have the critical beta too, whatever the rule needs.
    pub measured: u32,
}

// SAFETY: repr(C), the first field is a usize, and every field is a number or a raw pointer.
#[allow(unsafe_code)]
unsafe impl Versioned for PagedArgs {
    const NAME: &'static str = "critbeta_paged_args";
}

/// The tensors and settings of a call, checked as far as one is by itself.
struct Given<'a> {
    queries: Vec<f32>,
    shape: [usize; 3],
    query_lens: Option<&'a [i32]>,
    keys: Tensor<'a>,
    layout: Layout,
    sequences: Sequences<'a>,
}

#[derive(Clone, Copy)]
enum Layout {
    Nhd,
    Hnd,
}

impl<'a> Given<'a> {
    fn new(tensors: &mut Tensors<'a>, args: &PagedArgs) -> Result<Given<'a>> {
        let layout = match args.layout {
            CRITBETA_NHD => Layout::Nhd,
            CRITBETA_HND => Layout::Hnd,
            other => return invalid(format!("layout {other}: expected CRITBETA_NHD or CRITBETA_HND")),
        };
        let queries = tensors.read("queries", args.queries)?;
        let keys = tensors.read("keys", args.keys)?;
        let table = tensors.read("table", args.table)?;
        let indptr = tensors.optional("indptr", args.indptr)?;
        let lens = tensors.read("lens", args.lens)?;
        let query_lens = tensors.optional("query_lens", args.query_lens)?;
        let shape = queries.sizes("[tokens, heads, head_dim]")?;
        let integers = |tensor: &Tensor<'a>| -> Result<&'a [i32]> {
            let [_] = tensor.sizes("one axis")?;
            if !tensor.is_dense() {
                return tensor.refused("expected no space between elements");
            }
            tensor.slice::<i32>()
        };
        let blocks = match &indptr {
            Some(indptr) => BlockTable::ragged(integers(indptr)?, integers(&table)?)?,
            None => {
                let sizes @ [_, blocks] = table.sizes("[sequences, blocks], or [entries] beside indptr")?;
                if blocks > 1 && table.strides[1] != 1 {
                    return table.refused("expected the blocks of a sequence side by side");
                }
                BlockTable::rows(table.slice::<i32>()?, sizes, table.strides[0])?
            }
        };
        let sequences = Sequences::new(blocks, integers(&lens)?)?;
        let query_lens = query_lens.as_ref().map(integers).transpose()?;
        let queries = widened(&queries)?;
        Ok(Given { queries, shape, query_lens, keys, layout, sequences })
    }

    fn queries(&self) -> Result<Queries<'_, f32>> {
        let queries = Queries::dense(&self.queries, self.shape)?;
        Ok(match self.query_lens {
            Some(lens) => queries.with_lens(lens),
            None => queries,
        })
    }

    fn pool<T: Element + Held>(&self, tensor: &Tensor<'a>) -> Result<Pages<'a, T>> {
        let order = match self.layout {
            Layout::Nhd => [0, 1, 2, 3],
            Layout::Hnd => [0, 2, 1, 3],
        };
        let axes: [usize; 4] = tensor.sizes("four axes, as the layout says")?;
        let [page, slot, head, element] = order.map(|axis| tensor.strides[axis]);
        let data = tensor.slice::<T>()?;
        Ok(Pages::strided(data, order.map(|axis| axes[axis]), Strides { page, slot, head, element })?)
    }

    /// The axes of reports.
    fn rows(&self) -> [usize; 2] {
        [self.shape[0], self.shape[1]]
    }

    fn decode<T: Element + Held>(
        &self,
        values: &Tensor<'a>,
        out: Tensor,
        call: &DecodeCall,
    ) -> Result<Vec<DecodeRow>> {
        let kv = PagedKv::new(self.pool::<T>(&self.keys)?, self.pool::<T>(values)?)?;
        match out.numbers {
            Numbers::F16 => self.decode_to::<T, f16>(&kv, out, call),
            Numbers::Bf16 => self.decode_to::<T, bf16>(&kv, out, call),
            _ => self.decode_to::<T, f32>(&kv, out, call),
        }
    }

    fn decode_to<T: Element + Held, O: Element + Held>(
        &self,
        kv: &PagedKv<T>,
        out: Tensor,
        call: &DecodeCall,
    ) -> Result<Vec<DecodeRow>> {
        let out = out.into_slice_mut::<O>()?;
        Ok(attention::decode(&self.queries()?, kv, &self.sequences, call, out)?)
    }
}

/// The queries in f32, dense. Every element has that value exactly.
fn widened(queries: &Tensor) -> Result<Vec<f32>> {
    fn of<T: Element + Held>(queries: &Tensor) -> Result<Vec<f32>> {
        let (data, [tokens, heads, dim]) =
            (queries.slice::<T>()?, queries.sizes("[tokens, heads, head_dim]")?);
        // Strides that repeat elements would make any number of them out of a few.
        let count = tokens * heads * dim;
        if count > data.len() {
            return queries.refused("its elements overlap each other");
        }
        if count == 0 {
            return Ok(Vec::new());
        }
        let [token_step, head_step, step] = [0, 1, 2].map(|axis| queries.strides[axis]);
        let mut wide = Vec::with_capacity(count);
        for token in 0..tokens {
            for head in 0..heads {
                let start = token * token_step + head * head_step;
                wide.extend((0..dim).map(|e| data[start + e * step].to_f32()));
            }
        }
        Ok(wide)
    }
    match queries.numbers {
        Numbers::F32 => of::<f32>(queries),
        Numbers::F16 => of::<f16>(queries),
        Numbers::Bf16 => of::<bf16>(queries),
        _ => queries.refused("expected float32, float16 or bfloat16"),
    }
}

fn call_of<'r>(args: &PagedArgs, rules: Option<&'r Rules>) -> Result<DecodeCall<'r>> {
    let mut call = DecodeCall::new(rules.map_or(Rules::IDENTITY, Rules::list));
    call.scale = (args.scale != 0.0).then_some(args.scale);
    call.softcap = (args.softcap != 0.0).then_some(args.softcap);
    call.window = (args.window > 0).then(|| usize::try_from(args.window).unwrap_or(usize::MAX));
    Ok(call)
}

/// A report on the row of every query token and head.
pub fn measure_paged(
    device: &Device,
    mut tensors: Tensors,
    args: &PagedArgs,
    rules: Option<&Rules>,
) -> Result<()> {
    device.only_cpu("critbeta_measure_paged")?;
    let mut call = call_of(args, rules)?;
    call.measure = Some(measure(args.resolve, args.top_k)?);
    let given = Given::new(&mut tensors, args)?;
    let reports = Reports::new(tensors.written("reports", args.reports)?, &given.rows())?;
    let (queries, sequences) = (given.queries()?, &given.sequences);
    let found = match given.keys.numbers {
        Numbers::F16 => attention::measure(&queries, &given.pool::<f16>(&given.keys)?, sequences, &call),
        Numbers::Bf16 => attention::measure(&queries, &given.pool::<bf16>(&given.keys)?, sequences, &call),
        _ => attention::measure(&queries, &given.pool::<f32>(&given.keys)?, sequences, &call),
    }?;
    reports.write(&found);
    Ok(())
}

/// The output of attention of every query token and head.
pub fn decode_paged(
    device: &Device,
    mut tensors: Tensors,
    args: &PagedArgs,
    rules: Option<&Rules>,
) -> Result<()> {
    device.only_cpu("critbeta_decode_paged")?;
    let mut call = call_of(args, rules)?;
    call.eps = args.eps;
    let measure = measure(args.resolve, args.top_k)?;
    call.measure = (args.measured != 0).then_some(measure);
    let given = Given::new(&mut tensors, args)?;
    let values = tensors.read("values", args.values)?;
    if values.numbers != given.keys.numbers {
        return values.refused(format!("expected the type of the keys, {}", given.keys.numbers));
    }
    let radii = tensors.optional("v_radius", args.v_radius)?;
    let centre = tensors.optional("centre", args.centre)?;
    let reals = |tensor: &Tensor<'_>, meaning: &str| -> Result<()> {
        let [a, b] = tensor.sizes(meaning)?;
        tensor.expect(&[a, b], meaning)
    };
    if let Some(radii) = &radii {
        reals(radii, "[pages, kv_heads]")?;
        call.v_radius = Some(radii.slice()?);
    }
    if let Some(centre) = &centre {
        reals(centre, "[kv_heads, head_dim of values]")?;
        call.centre = Some(centre.slice()?);
    }
    let out = tensors.written("out", args.out)?;
    out.numbers.scores("out")?;
    let ([tokens, heads], [_, _, _, dim]) = (given.rows(), values.sizes("four axes, as the layout says")?);
    out.expect(&[tokens, heads, dim], "[tokens, heads, head_dim of values]")?;
    let reports = match args.reports.is_null() {
        true => None,
        false => Some(Reports::new(tensors.written("reports", args.reports)?, &given.rows())?),
    };
    let found = match given.keys.numbers {
        Numbers::F16 => given.decode::<f16>(&values, out, &call),
        Numbers::Bf16 => given.decode::<bf16>(&values, out, &call),
        _ => given.decode::<f32>(&values, out, &call),
    }?;
    if let Some(reports) = reports {
        reports.write(&found);
    }
    Ok(())
}
