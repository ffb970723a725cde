//! What the nodes of llama.cpp say of an attention layer: its queries, keys and mask, and how scores are made
//! of their products.

use crate::llama::{Node, Op};
use anyhow::{Result, bail};

/// Chains of operations between products and softmax are shorter (three for a softcap).
const LONGEST_CHAIN: usize = 8;

/// The number of the layer whose raw scores this node computes.
pub fn layer_of_products(node: Node) -> Option<usize> {
    let name = (node.op() == Op::Products).then(|| node.name())?;
    name.strip_prefix("kq-")?.parse().ok()
}

/// A step from products to scores.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Step {
    Scale { factor: f64, summand: f64 },
    Tanh,
}

/// The softmax of a layer.
pub struct Softmax<'a> {
    /// The number of the layer.
    pub layer: usize,
    node: Node<'a>,
    steps: Vec<Step>,
    unknown: Option<String>,
}

/// How the scores of a layer are made of products of queries and keys.
#[derive(Debug, Clone, PartialEq)]
pub struct Form {
    /// The last factor, and the only one of a plain layer.
    pub scale: f64,
    steps: Vec<Step>,
    max_bias: f64,
}

impl<'a> Softmax<'a> {
    /// `None` for a node that is not the softmax of attention.
    pub fn of(node: Node<'a>) -> Option<Self> {
        if node.op() != Op::Softmax {
            return None;
        }
        let (mut steps, mut unknown, mut at) = (Vec::new(), None, node.source(0)?);
        for _ in 0..LONGEST_CHAIN {
            if let Some(layer) = layer_of_products(at) {
                steps.reverse();
                return Some(Softmax { layer, node, steps, unknown });
            }
            match at.op() {
                Op::Scale => {
                    let [factor, summand] = [0, 1].map(|i| f64::from(at.parameter(i)));
                    steps.push(Step::Scale { factor, summand });
                }
                Op::Tanh => steps.push(Step::Tanh),
                _ => unknown = Some(format!("{} ({})", at.op_name(), at.name())),
            }
            at = at.source(0)?;
        }
        None
    }

    /// How scores are made.
    ///
    /// Errors: learned sinks, a mask that is computed, and operations that are not known here, by name.
    pub fn form(&self) -> Result<Form> {
        if self.node.source(2).is_some() {
            bail!(
                "has learned sinks, logits that belong to no key: a rule on the logits of keys cannot be \
                 applied beside them"
            );
        }
        if let Some(mask) = self.node.source(1).filter(|mask| mask.op() != Op::Given) {
            bail!("chooses keys while it runs (mask {}), which is not known here", mask.name());
        }
        if let Some(unknown) = &self.unknown {
            bail!("has {unknown} between products and softmax, expected a factor or a softcap");
        }
        let [scale, max_bias] = [0, 1].map(|i| f64::from(self.node.parameter(i)));
        Ok(Form { scale, steps: self.steps.clone(), max_bias })
    }

    /// The mask of a row over all cells of the cache: 0 or an ALiBi distance, -inf where hidden.
    ///
    /// Errors: a mask of another shape.
    pub fn mask(&self, row: usize, cells: usize) -> Result<Vec<f32>> {
        let mut mask = vec![0.0; cells];
        if let Some(node) = self.node.source(1) {
            node.read([row, 0], &mut mask)?;
        }
        Ok(mask)
    }

    /// The probabilities that llama.cpp has computed of the first `keys` keys of a row.
    ///
    /// Errors: as of [`Node::read`].
    pub fn probabilities(&self, row: usize, head: usize, keys: usize) -> Result<Vec<f32>> {
        let mut found = vec![0.0; keys];
        self.node.read([row, head], &mut found)?;
        Ok(found)
    }
}

impl Form {
    /// Whether scores are products times the scale, if no mask says otherwise.
    pub fn is_plain(&self) -> bool {
        self.steps.is_empty() && self.max_bias == 0.0
    }

    /// The factor of the mask in each head. Source: ALiBi (Press et al. 2021), with ggml's rule for
    /// numbers of heads that are no power of 2.
    pub fn slope(&self, head: usize, heads: usize) -> f64 {
        if self.max_bias <= 0.0 {
            return 1.0;
        }
        let power = f64::from(1u32 << heads.ilog2());
        let exponent = match (head as f64) < power {
            true => self.max_bias / power * (head as f64 + 1.0),
            false => self.max_bias / 2.0 / power * (2.0 * (head as f64 - power) + 1.0),
        };
        (-exponent).exp2()
    }

    /// The score of a product, and of the mask's number times the slope.
    pub fn score(&self, product: f64, bias: f64) -> f64 {
        let step = |x: f64, step: &Step| match step {
            Step::Scale { factor, summand } => x * factor + summand,
            Step::Tanh => x.tanh(),
        };
        self.steps.iter().fold(product, step) * self.scale + bias
    }
}

/// Queries and keys of a layer.
pub struct Vectors {
    /// Heads, key heads, head_dim.
    pub sizes: [usize; 3],
    /// The number of keys.
    pub keys: usize,
    /// Cells of the cache, of which the keys are the first.
    pub cells: usize,
    /// [rows, heads, head_dim].
    pub q: Vec<f32>,
    /// [key heads, keys, head_dim].
    pub k: Vec<f32>,
}

impl Vectors {
    /// Reads the queries of some of the `tokens` of an evaluation, and the first `keys` keys, of the node of
    /// raw scores.
    ///
    /// Errors: nodes that are not f32 or have other shapes.
    pub fn read(products: Node, rows: &[usize], tokens: usize, keys: usize) -> Result<Self> {
        let (Some(k), Some(q)) = (products.source(0), products.source(1)) else {
            bail!("has scores without queries and keys");
        };
        let ([dim, queries, heads, texts], [k_dim, cells, kv_heads, k_texts]) = (q.shape(), k.shape());
        let fits = dim == k_dim && queries == tokens && cells >= keys && texts == 1 && k_texts == 1;
        if !fits || kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            bail!(
                "has queries {:?} and keys {:?}, expected [head_dim, {tokens} tokens, heads, 1] and \
                 [head_dim, at least {keys} cells, key heads, 1]",
                q.shape(),
                k.shape()
            );
        }
        let mut found = Vectors {
            sizes: [heads, kv_heads, dim],
            keys,
            cells,
            q: vec![0.0; rows.len() * heads * dim],
            k: vec![0.0; kv_heads * keys * dim],
        };
        for (i, to) in found.q.chunks_exact_mut(dim).enumerate() {
            q.read([rows[i / heads], i % heads], to)?;
        }
        for (i, to) in found.k.chunks_exact_mut(dim).enumerate() {
            k.read([i % keys, i / keys], to)?;
        }
        Ok(found)
    }

    /// The scores of a row in a head, f32 as the softmax takes them. `mask` has a number per key.
    pub fn scores(&self, form: &Form, row: usize, head: usize, mask: &[f32]) -> Vec<f32> {
        let [heads, kv_heads, dim] = self.sizes;
        let query = &self.q[(row * heads + head) * dim..][..dim];
        let of_head = &self.k[head / (heads / kv_heads) * self.keys * dim..][..self.keys * dim];
        let slope = form.slope(head, heads);
        let score = |(key, &mask): (&[f32], &f32)| match mask == f32::NEG_INFINITY {
            true => f32::NEG_INFINITY,
            false => form.score(dot(query, key), slope * f64::from(mask)) as f32,
        };
        of_head.chunks_exact(dim).zip(mask).map(score).collect()
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum()
}

#[cfg(test)]
mod tests {
    use super::{Form, Step};

    #[test]
    fn slopes_are_those_of_the_paper() {
        let form = |max_bias| Form { scale: 1.0, steps: Vec::new(), max_bias };
        let of = |heads| (0..heads).map(|head| form(8.0).slope(head, heads)).collect::<Vec<f64>>();
        assert_eq!(of(8), [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625]);
        // Of 3 heads the last one has the first slope of 4.
        assert_eq!(of(3), [0.0625, 0.00390625, 0.25]);
        assert_eq!(form(0.0).slope(5, 8), 1.0);
    }

    #[test]
    fn a_softcap_bends_and_bounds() {
        let steps = vec![
            Step::Scale { factor: 1.0 / 50.0, summand: 0.0 },
            Step::Tanh,
            Step::Scale { factor: 50.0, summand: 0.0 },
        ];
        let form = Form { scale: 1.0, steps, max_bias: 0.0 };
        assert!(!form.is_plain());
        assert!((form.score(1.0, 0.0) - 50.0 * (1.0f64 / 50.0).tanh()).abs() < 1e-12);
        assert!((form.score(1e6, -3.0) - 47.0).abs() < 1e-9);
    }
}
