//! Products with weights: `y = x · Wᵀ`.

use crate::error::{Result, bail};
use crate::gpu::{BufferSlice, Dispatch, Forms, Gpu, Kernel, Variant, linear_grid, params};
use crate::kernels::byte_rows::ByteRows;
use crate::kernels::chain::number_rows_fit;
use crate::kernels::constants::{
    EIGHT_FROM, PRODUCT_THREADS, STAGE_GROUPS, STAGE_PRODUCT_THREADS, STAGE_ROWS, STAGED_BLOCKS, THREADS_LONG, TILE,
    TILE_FROM,
};
use crate::kernels::matmul_coop::HalfRows;
use crate::kernels::weight::{Weight, WeightPart};
use crate::kernels::{Matrix, weight_fragment};
use crate::quant::{Format, GPU_BLOCK, by_name};

pub(super) static MATMUL_VEC: Kernel = Kernel {
    name: "matmul_vec",
    source: include_str!("../../shaders/matmul_vec.wgsl"),
    flags: &["BIAS", "ACCUMULATE", "TAIL", "BYTES", "NORM", "SCALED", "QUAD", "STAGED"],
    constants: &["WG", "TEAM", "NT", "REDUCE", "K_BLOCKS", "SPREAD", "SPLIT"],
    slots: &["weight"],
    forms: Forms { paths: &[("NT", NT)], exists: vec_exists },
    params: ProductParams::FIELDS,
};

pub(super) static MATMUL_TILE: Kernel = Kernel {
    name: "matmul_tile",
    source: include_str!("../../shaders/matmul_tile.wgsl"),
    flags: &["BIAS", "ACCUMULATE", "TAIL"],
    constants: &["K_BLOCKS"],
    slots: &["weight"],
    forms: Forms { paths: &[], exists: tail_only_without_blocks },
    params: ProductParams::FIELDS,
};

/// Rows of a format with blocks are whole blocks, so they have no tail.
pub(super) fn tail_only_without_blocks(v: &Variant) -> bool {
    let blocks = |name| by_name(name).is_some_and(|f| f.block_len.is_multiple_of(GPU_BLOCK));
    !(v.has("TAIL") && v.fragment("weight").is_some_and(blocks))
}

/// As [`tail_only_without_blocks`], products with bytes are of whole blocks, and rows come scaled to single elements only, in whole blocks, and to be
/// normalised. Bytes of several rows may be staged, which is the only way for eight; four rows of weights are made of single elements.
pub(super) fn takes_rows(v: &Variant) -> bool {
    let format = v.fragment("weight").and_then(by_name);
    let bytes = format.is_some_and(|f| f.has_bytes());
    let scaled = v.has("NORM") && !bytes && !v.has("TAIL");
    let nt = v.constant("NT");
    let staged = if v.has("STAGED") { v.has("BYTES") && nt >= Some(4) } else { nt != Some(8) };
    tail_only_without_blocks(v)
        && (!v.has("BYTES") || bytes)
        && (!v.has("SCALED") || scaled)
        && (!v.has("QUAD") || !(bytes || v.has("TAIL")))
        && staged
}

/// What is added to the residual stream was normalised before it came to a block's first product.
fn vec_exists(v: &Variant) -> bool {
    takes_rows(v) && !(v.has("NORM") && v.has("ACCUMULATE"))
}

/// Rows of `x` that a workgroup of a product of few rows takes: eight where they may be staged, else four at most (the last, which is tried on
/// every kind of device).
pub(super) const NT: &[u32] = &[1, 2, 8, 4];

params!(ProductParams {
    groups: u32,
    row_groups: u32,
    n: u32,
    t_rows: u32,
    k4: u32,
    x_stride4: u32,
    x_offset4: u32,
    y_stride: u32,
    y_offset: u32,
    eps: f32,
});

impl ProductParams {
    /// For the `n` rows of `w` whose results stand from column `row_start` of `y` on, where a workgroup makes `tile_r` of them for `tile_t` rows
    /// of `x`.
    pub(super) fn of(
        x: Input<'_>,
        w: &Weight,
        y: Matrix<'_>,
        [tile_t, tile_r]: [u32; 2],
        n: u32,
        row_start: u32,
    ) -> Self {
        let (row_groups, f32_rows) = (n.div_ceil(tile_r), x.f32_rows(w));
        Self {
            groups: row_groups * x.x.rows.div_ceil(tile_t),
            row_groups,
            n,
            t_rows: x.x.rows,
            k4: x.x.cols / 4,
            x_stride4: f32_rows.map_or(0, |x| x.stride / 4),
            x_offset4: f32_rows.map_or(0, |x| x.offset / 4),
            y_stride: y.stride,
            y_offset: y.offset + row_start,
            eps: x.norm.map_or(0.0, |n| n.eps),
        }
    }
}

/// A normalisation by the root mean square that rows have still to undergo: products of few rows do it by the way.
#[derive(Debug, Clone, Copy)]
pub struct RowNorm<'a> {
    /// A factor for each column.
    pub w: BufferSlice<'a>,
    /// Added to the mean square.
    pub eps: f32,
    /// `[rows, cols / 32]`, beside rows that were multiplied by `w`: sums of squares of what they were before. Beside numbers `[2, rows, cols / 32]`, of
    /// both halves of each block.
    pub sums: Option<BufferSlice<'a>>,
    /// Whether the numbers were multiplied by `w`, as bytes always were.
    pub scaled: bool,
}

/// Rows that products take: numbers, beside them the same as bytes if products are to take those where the weight has quants, and what is
/// still to be done to them. Bytes of rows that are to be normalised have the norm's weights in them already; the numbers have not, unless that is said.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// As f32.
    pub x: Matrix<'a>,
    /// As bytes.
    pub bytes: Option<ByteRows<'a>>,
    /// What is still to be done.
    pub norm: Option<RowNorm<'a>>,
    /// As f16, with nothing left to be done; the numbers need not be there then.
    pub half: Option<HalfRows<'a>>,
}

impl<'a> From<Matrix<'a>> for Input<'a> {
    fn from(x: Matrix<'a>) -> Self {
        Self { x, bytes: None, norm: None, half: None }
    }
}

impl<'a> Input<'a> {
    /// The rows that a product with `w` reads as f32, if it does not read bytes.
    pub(super) fn f32_rows(&self, w: &Weight) -> Option<Matrix<'a>> {
        if self.bytes.is_some() && w.has_bytes() { None } else { Some(self.x) }
    }

    /// Rows and columns, if all that a product with `w` reads is there.
    pub(super) fn check(&self, what: &str, w: &Weight) -> Result<[u32; 2]> {
        let (rows, cols) = (self.x.rows, self.x.cols);
        let sums = u64::from(rows) * u64::from(cols / GPU_BLOCK as u32) * 4;
        let no_sums = |n: RowNorm<'_>| n.sums.is_none_or(|s| s.size < if n.scaled { 2 * sums } else { sums });
        let missing = match (self.f32_rows(w), self.bytes, self.norm) {
            (None, Some(bytes), norm) => {
                bytes.check(what, rows, cols)?;
                norm.is_some_and(no_sums)
            }
            (_, _, norm) => {
                self.x.check_vec4(what)?;
                let scaled = |n: RowNorm<'_>| !w.has_elements() || !cols.is_multiple_of(GPU_BLOCK as u32) || no_sums(n);
                norm.is_some_and(|n| if n.scaled { scaled(n) } else { n.w.size < u64::from(cols) * 4 })
            }
        };
        if missing {
            bail!(InvalidArgument, "{what}: {rows} x {cols} with a norm of too few numbers: {:?}", self.norm);
        }
        Ok([rows, cols])
    }

    /// Binds what a product with `w` reads, in the order of `lib/team.wgsl`.
    pub(super) fn bind(self, w: &Weight, d: Dispatch<'a>) -> Dispatch<'a> {
        let d = d.flag("NORM", self.norm.is_some());
        let (d, scaled) = match (self.f32_rows(w), self.bytes) {
            (None, Some(bytes)) => (d.flag("BYTES", true).bind("x", bytes.quants).bind("x_scales", bytes.scales), true),
            _ => {
                let scaled = self.norm.is_some_and(|n| n.scaled);
                let tail = !(self.x.cols as usize).is_multiple_of(GPU_BLOCK);
                (d.flag("SCALED", scaled).flag("TAIL", tail).bind("x", self.x.data), scaled)
            }
        };
        match self.norm {
            Some(RowNorm { sums: Some(sums), .. }) if scaled => d.bind("row_sums", sums),
            Some(n) if !scaled => d.bind("norm_w", n.w),
            _ => d,
        }
    }
}

/// Blocks of a row of `k`.
pub(super) fn k_blocks(k: u32) -> u32 {
    Format::gpu_blocks(k as usize) as u32
}

/// How the threads of a product of few rows are divided; see `lib/team.wgsl`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Team {
    /// Threads of a workgroup.
    threads: u32,
    /// Of them, those that make one row.
    team: u32,
    /// Rows of `x` that a workgroup takes.
    columns: u32,
    /// Threads of a team that are sure to be of one subgroup.
    together: u32,
    /// Rows that a team makes for each row of `x`: 1; where rows are staged or teams stacked 2 or 4.
    high: u32,
    /// Where rows of `x` are staged, not 0: teams beside each other in a subgroup, and parts of a team for each that a subgroup would make of it.
    staged: [u32; 2],
}

/// Rows that a workgroup of a stage makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StageRows {
    /// A block.
    Block,
    /// Whole blocks.
    Blocks,
    /// As many as suit it.
    Any,
}

impl Team {
    /// For `n` rows of `k`, `values` parts for each row of `x`. The team depends on the weight alone: so results do not depend on how many
    /// rows are made together.
    pub(super) fn of(gpu: &Gpu, n: u32, k: u32, rows: u32, values: u32) -> Self {
        let most = gpu.max_workgroup_threads().min(THREADS_LONG);
        let team = Self::threads_of_row(n, k, gpu.filling(PRODUCT_THREADS)).min(most);
        Self::new(gpu, most.max(team), team).with_columns(gpu, rows, values)
    }

    fn new(gpu: &Gpu, threads: u32, team: u32) -> Self {
        Self { threads, team, columns: 0, together: team.min(gpu.adapter().least_subgroup()), high: 1, staged: [0; 2] }
    }

    /// The same teams where they make two rows of weights (`pair`: one of gate and one of up) for more than [`STAGE_ROWS`] rows of `x` as bytes, which go
    /// through workgroup memory: so a block of `x` is read, and its place found, once for many rows. What a team makes for one row stays the same, and
    /// so do results. A subgroup has threads of several teams, which read the same of `x`.
    pub(super) fn staged(self, gpu: &Gpu, x: Input<'_>, w: &Weight, pair: bool, made: StageRows) -> Self {
        let high = if pair { 1 } else { 2 };
        let least = gpu.adapter().least_subgroup();
        // Several teams in a subgroup, and four parts at most for each that it makes of a team that is not spread.
        let few = self.together.min(8).min(least / 2).max(self.together / 4).max(1);
        let staged = |columns: u32, together: u32, made: u32| {
            let threads = self.team * made / high;
            let spread = (least / together).min(threads / self.team).max(1);
            Self { threads, columns, together, high, staged: [spread, self.together / together], ..self }
        };
        let fits = |t: &Self| {
            let threads = t.threads <= gpu.max_workgroup_threads() && t.threads.is_multiple_of(t.staged[0] * t.team);
            threads && t.bytes(gpu, 2, t.columns) <= gpu.workgroup_bytes()
        };
        let several = self.columns == 4 && x.x.rows > STAGE_ROWS && x.f32_rows(w).is_none();
        // A thread for each result of a block, and two blocks of `x` at most for each thread to bring.
        let teams = (16..=STAGED_BLOCKS).contains(&self.team);
        // Teams with fewer parts take less memory.
        let eight = [(8, few), (8, self.together)].into_iter().filter(|_| x.x.rows >= EIGHT_FROM);
        // A block; for eight rows of `x` half as many rows more, where there are more blocks than the device runs at once and no more of these.
        let (block, at_once) = (GPU_BLOCK as u32, gpu.filling(STAGE_GROUPS));
        let groups = |made: u32| w.rows().div_ceil(made);
        let more = block * 3 / 2;
        let more = (made == StageRows::Any && groups(block) > at_once && groups(more) <= at_once).then_some(more);
        let rows = |columns: u32| more.filter(|_| columns == 8).into_iter().chain([block]);
        let forms = |(columns, together)| rows(columns).map(move |made| staged(columns, together, made));
        let found = eight.chain([(4, few)]).flat_map(forms).find(fits);
        found.filter(|_| several && teams && gpu.features().subgroups).unwrap_or(self)
    }

    /// Teams four times as large that make four rows of weights each, in workgroups that make as many rows as before, for weights of single elements: a row
    /// of `x` takes as long to read as one of those, and stages have four times as many on their way when `x` comes. Where there would be so few workgroups of
    /// a stage that not all of a large device has work, and it `halves` blocks, teams are twice that. By the weight, and what reads its results, alone.
    pub(super) fn stacked(self, gpu: &Gpu, x: Input<'_>, w: &Weight, halves: bool) -> Self {
        let values = 4 + u32::from(x.norm.is_some());
        let stacked = |by: u32| {
            let team = self.team * by;
            let together = team.min(gpu.adapter().least_subgroup());
            let stacked = Self { team, together, high: 4, ..self }.with_columns(gpu, x.x.rows, values);
            // Each thread has a step of eight.
            let even = w.k().is_multiple_of(GPU_BLOCK as u32) && team <= w.k() / 8;
            let fits = team <= THREADS_LONG.min(self.threads) && stacked.bytes(gpu, values, 4) <= gpu.workgroup_bytes();
            (w.has_elements() && even && fits).then_some(stacked)
        };
        let few = halves && w.rows() < gpu.filling(STAGE_GROUPS) * GPU_BLOCK as u32;
        few.then(|| stacked(8)).flatten().or_else(|| stacked(4)).unwrap_or(self)
    }

    /// Threads of a workgroup of any stage.
    pub(super) fn stage_threads(gpu: &Gpu) -> u32 {
        let least = GPU_BLOCK as u32;
        least << (gpu.max_workgroup_threads() / least).clamp(1, 32).ilog2()
    }

    /// The same for a stage of a chain, which all have as many threads: so many that a team for each row of a block is as large as a subgroup.
    pub(super) fn of_stage(gpu: &Gpu, n: u32, k: u32, rows: u32, values: u32, made: StageRows) -> Self {
        let (block, threads) = (GPU_BLOCK as u32, Self::stage_threads(gpu));
        let few = 1 << (n / block).max(1).ilog2();
        let team = match made {
            StageRows::Block => threads / block,
            // Few rows are shared by some 32 workgroups.
            StageRows::Any if few < block => (threads / few).min(THREADS_LONG),
            StageRows::Any | StageRows::Blocks => {
                Self::threads_of_row(n, k, gpu.filling(STAGE_PRODUCT_THREADS)).min(threads / block)
            }
        };
        Self::new(gpu, threads, team).with_columns(gpu, rows, values)
    }

    /// The same where a workgroup makes a block of rows, as a `stage` or not.
    pub(super) fn of_block(gpu: &Gpu, n: u32, k: u32, rows: u32, values: u32, stage: bool) -> Self {
        if stage {
            return Self::of_stage(gpu, n, k, rows, values, StageRows::Block);
        }
        let block = GPU_BLOCK as u32;
        let most = (gpu.max_workgroup_threads() / block).max(1);
        let team = Self::threads_of_row(n, k, gpu.filling(PRODUCT_THREADS)).min(1 << most.ilog2());
        Self::new(gpu, team * block, team).with_columns(gpu, rows, values)
    }

    /// So many threads that the device is full with `all`, and each has at least a block.
    fn threads_of_row(n: u32, k: u32, all: u32) -> u32 {
        let full = (all / n.max(1)).clamp(16, THREADS_LONG);
        let blocks = k_blocks(k).max(4);
        1 << full.min(blocks).ilog2()
    }

    fn with_columns(self, gpu: &Gpu, rows: u32, values: u32) -> Self {
        let wanted = match rows {
            1 => 1,
            2 => 2,
            _ => 4,
        };
        let fits = |c: &u32| *c <= wanted && self.bytes(gpu, values, *c) <= gpu.workgroup_bytes();
        Self { columns: [4, 2].into_iter().find(fits).unwrap_or(1), ..self }
    }

    /// Workgroup memory for so many rows of `x`: the parts, and what results and the blocks made of them are collected in.
    fn bytes(&self, gpu: &Gpu, values: u32, columns: u32) -> u32 {
        let joined = if gpu.features().subgroups { self.together } else { 1 };
        let parts = self.threads / self.team * ((self.team / joined) | 1);
        // Blocks of `x` with their scales, and squares.
        let staged = if self.staged[0] > 0 { columns * STAGED_BLOCKS * 40 + parts * 4 } else { 0 };
        parts * values * columns * 4 + columns * 256 + 768 * (self.rows() / GPU_BLOCK as u32).max(1) + staged
    }

    /// Rows that a workgroup makes.
    fn rows(&self) -> u32 {
        self.threads / self.team * self.high
    }

    /// Rows of `x`, and of weights, that a workgroup takes.
    pub(super) fn tile(&self) -> [u32; 2] {
        [self.columns, self.rows()]
    }

    /// The constants of a product with rows of `k`.
    pub(super) fn constants<'a>(&self, d: Dispatch<'a>, k: u32) -> Dispatch<'a> {
        let d = self.threads(d, k).constant("NT", self.columns);
        match self.staged {
            [0, _] => d.flag("QUAD", self.high == 4),
            [spread, split] => d.flag("STAGED", true).constant("SPREAD", spread).constant("SPLIT", split),
        }
    }

    /// The same for a kernel that takes one row of `x`.
    pub(super) fn threads<'a>(&self, d: Dispatch<'a>, k: u32) -> Dispatch<'a> {
        d.constant("WG", self.threads)
            .constant("TEAM", self.team)
            .constant("REDUCE", self.together)
            .constant("K_BLOCKS", k_blocks(k))
    }
}

/// Whether a product takes the workgroups of stages ([`crate::kernels::chain`]): of bytes, or of such rows as a stage may send (`sent`) where they fit
/// the memory of a workgroup.
pub(super) fn may_be_stage(gpu: &Gpu, x: Input<'_>, w: &Weight, sent: bool) -> bool {
    let bytes = x.f32_rows(w).is_none();
    let numbers = || sent && w.has_elements() && number_rows_fit(gpu, w.k());
    gpu.features().chains && (bytes || numbers())
}

/// Which kernel makes a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MatmulPath {
    /// By the number of rows of `x`.
    Auto,
    /// Matrix-vector, up to eight rows of `x` at a time.
    Vec,
    /// Tiles of 32 × 64.
    Tile,
}

/// `y[t, r] = Σ_k x[t, k] · W[r, k] (+ bias[r])`, added to `y` if `accumulate`; one dispatch for each part of `w`, which
/// writes its columns of `y`. The width of `x` is a multiple of 4. Rows that are bytes or still to be normalised take the matrix-vector
/// product, whatever their number.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if shapes disagree.
pub fn matmul<'a>(
    gpu: &Gpu,
    x: impl Into<Input<'a>>,
    w: &'a Weight,
    y: Matrix<'a>,
    accumulate: bool,
) -> Result<Vec<Dispatch<'a>>> {
    matmul_with(gpu, MatmulPath::Auto, x, w, y, accumulate)
}

/// [`matmul`] by a given path (tests force each).
///
/// # Errors
/// As [`matmul`].
pub fn matmul_with<'a>(
    gpu: &Gpu,
    path: MatmulPath,
    x: impl Into<Input<'a>>,
    w: &'a Weight,
    y: Matrix<'a>,
    accumulate: bool,
) -> Result<Vec<Dispatch<'a>>> {
    let x = x.into();
    if x.half.is_some() {
        bail!(Internal, "matmul by {}: its rows are in f16", w.name());
    }
    let [rows, cols] = x.check("matmul: x", w)?;
    y.check("matmul: y")?;
    let (n, k) = (w.rows(), w.k());
    if cols != k || y.cols != n || rows != y.rows || (accumulate && x.norm.is_some()) {
        bail!(InvalidArgument, "matmul by {}: x {rows} x {cols}, W {n} x {k}, y {} x {}", w.name(), y.rows, y.cols);
    }
    let plain = x.f32_rows(w).is_some() && x.norm.is_none();
    let tiled = match path {
        MatmulPath::Auto => plain && rows >= TILE_FROM,
        MatmulPath::Vec => false,
        MatmulPath::Tile if plain => true,
        MatmulPath::Tile => bail!(InvalidArgument, "matmul by {}: tiles take plain rows", w.name()),
    };
    // The team does not depend on how a weight is split.
    let values = 1 + u32::from(x.norm.is_some());
    let team = match may_be_stage(gpu, x, w, x.norm.is_some_and(|n| n.scaled)) {
        true => Team::of_stage(gpu, n, k, rows, values, StageRows::Any),
        false => Team::of(gpu, n, k, rows, values),
    }
    .stacked(gpu, x, w, false)
    .staged(gpu, x, w, false, StageRows::Any);
    let (kernel, tile) = if tiled { (&MATMUL_TILE, TILE.into()) } else { (&MATMUL_VEC, team.tile()) };
    let dispatch = |part: &'a WeightPart| {
        let params = ProductParams::of(x, w, y, tile, part.rows, part.row_start);
        let d = Dispatch::new(kernel, &params, linear_grid(params.groups.into()));
        let mut d = if tiled { d.constant("K_BLOCKS", k_blocks(k)) } else { team.constants(d, k) }
            .flag("BIAS", part.bias.is_some())
            .flag("ACCUMULATE", accumulate)
            .slot("weight", weight_fragment(part.format)?)
            .bind("y", y.data);
        if let Some(bias) = &part.bias {
            d = d.bind("bias", bias);
        }
        Ok(part.bind(x.bind(w, d)))
    };
    w.parts().iter().map(dispatch).collect()
}

/// [`matmul`] with `x` as bytes.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if shapes disagree or `w` has rows without bytes ([`Weight::has_bytes`]).
pub fn matmul_bytes<'a>(
    gpu: &Gpu,
    x: ByteRows<'a>,
    w: &'a Weight,
    y: Matrix<'a>,
    accumulate: bool,
) -> Result<Vec<Dispatch<'a>>> {
    if !w.has_bytes() {
        bail!(InvalidArgument, "matmul by {}: not all of its rows are quants", w.name());
    }
    // Nothing reads the numbers.
    let numbers = Matrix { data: x.quants, rows: x.rows, cols: x.cols, stride: x.cols, offset: 0 };
    matmul(gpu, Input { x: numbers, bytes: Some(x), norm: None, half: None }, w, y, accumulate)
}
