//! Where the rows of a file's tensors stand in the products' weights: what adapters of single tensors need to know.

use std::collections::{HashMap, HashSet};

use super::*;

/// Neighbouring rows of a tensor in the weight of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    /// First row in the tensor.
    pub(crate) first: u32,
    /// How many.
    pub(crate) rows: u32,
    /// First row in the weight.
    pub(crate) at: u32,
}

/// A tensor's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// The product, in [`Places::products`].
    pub(crate) product: usize,
    /// Rows of the whole tensor.
    pub(crate) rows: u32,
    pub(crate) runs: Vec<Run>,
}

/// A product with a weight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Product {
    /// The weight's name.
    pub(crate) name: String,
    pub(crate) k: u32,
    pub(crate) rows: u32,
}

/// Every tensor of a model that is a factor of a product, by its name in GGUF files, `.weight` included.
#[derive(Debug, Default)]
pub(crate) struct Places {
    pub(crate) products: Vec<Product>,
    pub(crate) tensors: HashMap<String, Place>,
    /// Tensors of routers and experts: there are no such products of all rows.
    pub(crate) experts: HashSet<String>,
}

impl Places {
    fn product(&mut self, s: &Stack<'_>) -> usize {
        let rows = s.members.iter().map(|m| m.rows).sum();
        self.products.push(Product { name: s.name.clone(), k: s.k, rows });
        self.products.len() - 1
    }

    /// A run of rows of the tensor `<name>.weight`, which has `all` of them.
    fn run(&mut self, name: &str, product: usize, all: u32, run: Run) {
        let place = || Place { product, rows: all, runs: Vec::new() };
        self.tensors.entry(format!("{name}.weight")).or_insert_with(place).runs.push(run);
    }

    /// Tensors one behind the other.
    fn members(&mut self, product: usize, members: &[(String, u32)]) {
        let mut at = 0;
        for (name, rows) in members {
            self.run(name, product, *rows, Run { first: 0, rows: *rows, at });
            at += rows;
        }
    }

    fn stack(&mut self, s: &Stack<'_>) {
        if s.n_expert.is_some() {
            self.experts.extend(s.members.iter().map(|m| format!("{}.weight", m.name)));
            return;
        }
        let product = self.product(s);
        let mut at = 0;
        for m in &s.members {
            let all = m.info.dims.get(1).map_or(m.rows, |&n| n as u32);
            self.run(&m.name, product, all, Run { first: m.first, rows: m.rows, at });
            at += m.rows;
        }
    }
}

impl LoadPlan<'_> {
    /// Where the tensors are. Adapters are made for tensors one by one: where the file has several in one, they are found by their own names too.
    pub(crate) fn places(&self, spec: &ModelSpec) -> Places {
        let mut places = Places::default();
        for (i, (l, spec)) in self.layers.iter().zip(&spec.layers).enumerate() {
            let ff = &l.feed_forward;
            let shared = ff.shared.iter().flat_map(|s| s.gate.iter().chain([&s.gate_up, &s.down]));
            [&l.qkv, &l.attn_out, &ff.gate_up, &ff.down].into_iter().chain(shared).for_each(|s| places.stack(s));
            for router in ff.router.iter().flat_map(|s| &s.members) {
                places.experts.insert(format!("{}.weight", router.name));
            }
            let name = |part: &str| format!("blk.{i}.{part}");
            let product = |places: &Places, part: &str| places.tensors.get(&name(part)).map(|p| p.product);
            if let (Some(a), Some(p)) = (spec.attention(), product(&places, "attn_qkv.weight")) {
                let (q, kv) = (a.q_width(), a.kv_width());
                places.members(p, &[(name("attn_q"), q), (name("attn_k"), kv), (name("attn_v"), kv)]);
            }
            if let Some(p) = product(&places, "ffn_gate_up.weight") {
                let f = spec.feed_forward.n_ff;
                places.members(p, &[(name("ffn_gate"), f), (name("ffn_up"), f)]);
            }
        }
        match &self.output {
            Some(output) => places.stack(output),
            // A tied head's weight is that of the embedding; an adapter changes either of the two.
            None => {
                let product = places.product(&self.embedding);
                places.members(product, &[("output".to_string(), spec.n_vocab)]);
            }
        }
        places
    }
}
