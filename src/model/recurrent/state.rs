//! The recurrent states of sequences.
//!
//! A *place* holds the states of all recurrent layers after some position of a sequence. An evaluation reads the place of the position where it
//! begins and writes another one, which counts only after the device has finished: a failure leaves the sequence where it was. Places
//! are never changed once they count, so a fork shares them, and the place that an evaluation began at stays as a *checkpoint* to which the
//! sequence can be taken back: a state cannot be cut like keys and values. A sequence has [`PLACES`] at most: the latest state, the one before
//! the latest piece of prompt, and one that is being written or was the latest before.

use crate::error::{Result, bail};
use crate::gpu::{Buffer, BufferSlice, Gpu, MemoryClass, Scope};
use crate::kernels::{NO_PLACE, Places};
use crate::model::spec::LayerSpec;

/// Places of a sequence.
const PLACES: u32 = 3;

/// One recurrent layer's states, `[place]` of each kind.
#[derive(Debug)]
struct Layer {
    /// In the model.
    number: usize,
    /// Of a place, by kind: convolution, scan.
    bytes: [u64; 2],
    /// Absent while there are no places.
    buffers: Option<[Buffer; 2]>,
}

/// All places, shared by the sequences of a model.
#[derive(Debug)]
pub(crate) struct RecurrentPool {
    layers: Vec<Layer>,
    /// How many sequences hold each place.
    references: Vec<u32>,
    free: Vec<u32>,
    /// Open sequences, each of which may come to hold [`PLACES`].
    promised: u32,
    high_water: u32,
    /// Changes when buffers are replaced.
    version: u64,
}

/// A state of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Checkpoint {
    place: u32,
    /// Positions that went into it.
    position: u32,
    /// The latest piece of prompt began here.
    before_prompt: bool,
}

/// The states of one sequence, by rising position.
#[derive(Debug, Default)]
pub(crate) struct Trail {
    kept: Vec<Checkpoint>,
    /// Taken for an evaluation under way.
    target: Option<u32>,
}

/// What the recurrent states of a model's sequences take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RecurrentStats {
    /// Recurrent layers.
    pub layers: u32,
    /// Places there are; each holds the states of all layers after one position of a sequence.
    pub places: u32,
    /// Places in use.
    pub used: u32,
    /// Most places ever in use.
    pub high_water: u32,
    /// Bytes of one place.
    pub place_bytes: u64,
    /// Bytes of all places.
    pub bytes: u64,
}

impl RecurrentPool {
    /// An empty pool; it grows with its promises.
    pub(crate) fn new(layers: &[LayerSpec]) -> Self {
        // A layer without one of the kinds has a word of it: nothing of no size can be bound.
        let layer = |(number, l): (usize, &LayerSpec)| {
            Some(Layer { number, bytes: l.recurrent()?.state_sizes().map(|n| n.max(1) * 4), buffers: None })
        };
        Self {
            layers: layers.iter().enumerate().filter_map(layer).collect(),
            references: Vec::new(),
            free: Vec::new(),
            promised: 0,
            high_water: 0,
            version: 0,
        }
    }

    /// No layer is recurrent: every position is kept, and nothing is ever taken.
    pub(crate) fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    /// Counts the replacements of buffers: plans that were made at another version are void.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// Bytes of one place.
    pub(crate) fn place_bytes(&self) -> u64 {
        self.layers.iter().flat_map(|l| l.bytes).sum()
    }

    fn used(&self) -> u32 {
        (self.references.len() - self.free.len()) as u32
    }

    pub(crate) fn stats(&self) -> RecurrentStats {
        let places = self.references.len() as u32;
        RecurrentStats {
            layers: self.layers.len() as u32,
            places,
            used: self.used(),
            high_water: self.high_water,
            place_bytes: self.place_bytes(),
            bytes: self.place_bytes() * u64::from(places),
        }
    }

    /// Makes room for one more sequence. Nothing is promised on an error.
    pub(crate) fn promise(&mut self, gpu: &Gpu, scope: &Scope) -> Result<()> {
        if !self.is_empty() {
            self.grow(gpu, (self.promised + 1) * PLACES, scope)?;
        }
        self.promised += 1;
        Ok(())
    }

    /// Takes a promise back, and what it was for.
    pub(crate) fn withdraw(&mut self, trail: &mut Trail) {
        self.cut(trail, 0);
        self.promised -= 1;
    }

    /// Brings the pool to at least so many places, keeping their contents.
    fn grow(&mut self, gpu: &Gpu, places: u32, scope: &Scope) -> Result<()> {
        let have = self.references.len() as u32;
        if places <= have {
            return Ok(());
        }
        let mut grown = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            let make = |name: &str, bytes: u64| {
                let size = bytes * u64::from(places);
                if size > gpu.max_binding_bytes() {
                    let (number, most) = (layer.number, gpu.max_binding_bytes());
                    bail!(
                        OutOfMemory,
                        "the states of layer {number} would take {size} bytes; this adapter binds {most} at most"
                    );
                }
                gpu.storage(&format!("state.{}.{name}", layer.number), size, MemoryClass::Kv, scope)
            };
            grown.push([make("conv", layer.bytes[0])?, make("scan", layer.bytes[1])?]);
        }
        if have > 0 {
            let mut recorder = gpu.recorder("state.grow", scope);
            for (layer, new) in self.layers.iter().zip(&grown) {
                for (old, new) in layer.buffers.iter().flatten().zip(new) {
                    recorder.copy(old.whole(), new.slice(0, old.size()))?;
                }
            }
            recorder.submit()?;
        }
        self.layers.iter_mut().zip(grown).for_each(|(layer, new)| layer.buffers = Some(new));
        self.references.resize(places as usize, 0);
        // Lowest numbers are handed out first.
        self.free.splice(0..0, (have..places).rev());
        self.version += 1;
        Ok(())
    }

    /// A layer's states, by kind.
    pub(crate) fn layer(&self, number: usize) -> Result<[BufferSlice<'_>; 2]> {
        match self.layers.iter().find(|l| l.number == number).and_then(|l| l.buffers.as_ref()) {
            Some(buffers) => Ok(buffers.each_ref().map(Buffer::whole)),
            None => bail!(Internal, "layer {number} has no states"),
        }
    }

    fn take(&mut self) -> Result<u32> {
        let Some(place) = self.free.pop() else { bail!(Internal, "all {} states are in use", self.references.len()) };
        self.references[place as usize] = 1;
        self.high_water = self.high_water.max(self.used());
        Ok(place)
    }

    fn release(&mut self, place: u32) {
        let count = &mut self.references[place as usize];
        *count -= 1;
        if *count == 0 {
            self.free.push(place);
        }
    }

    /// Whether a sequence can go on after its first `tokens` tokens as it is.
    pub(crate) fn holds(&self, trail: &Trail, tokens: u32) -> bool {
        self.latest(trail, tokens) == tokens
    }

    /// The last position up to `tokens` after which a sequence can go on.
    pub(crate) fn latest(&self, trail: &Trail, tokens: u32) -> u32 {
        if self.is_empty() {
            return tokens;
        }
        trail.kept.iter().rev().map(|c| c.position).find(|&p| p <= tokens).unwrap_or(0)
    }

    /// Forgets the states after more than `tokens` positions, and what an evaluation left unfinished.
    pub(crate) fn cut(&mut self, trail: &mut Trail, tokens: u32) {
        trail.target.take().into_iter().for_each(|p| self.release(p));
        while let Some(c) = trail.kept.pop_if(|c| c.position > tokens || tokens == 0) {
            self.release(c.place);
        }
    }

    /// The states of the first `tokens` positions of a sequence, shared.
    pub(crate) fn share(&mut self, trail: &Trail, tokens: u32) -> Trail {
        let kept: Vec<Checkpoint> = trail.kept.iter().copied().filter(|c| c.position <= tokens).collect();
        kept.iter().for_each(|c| self.references[c.place as usize] += 1);
        Trail { kept, target: None }
    }

    /// Prepares the evaluation of positions from `position` on, a piece of a prompt or not: what was after them is forgotten. Returns
    /// what the device is to be told.
    pub(crate) fn begin(&mut self, trail: &mut Trail, position: u32, is_prompt: bool) -> Result<Places> {
        if !self.holds(trail, position) {
            bail!(Internal, "position {position} goes on from a state that is not there");
        }
        self.cut(trail, position);
        if is_prompt {
            let count = trail.kept.len();
            trail.kept.iter_mut().enumerate().for_each(|(i, c)| c.before_prompt = i + 1 == count);
        }
        while trail.kept.len() as u32 >= PLACES {
            let last = trail.kept.len() - 1;
            // The source is the last one; of the others one at most is the prompt's.
            let oldest = trail.kept[..last].iter().position(|c| !c.before_prompt).unwrap_or(0);
            let c = trail.kept.remove(oldest);
            self.release(c.place);
        }
        let after = self.take()?;
        trail.target = Some(after);
        Ok(Places { before: trail.kept.last().map_or(NO_PLACE, |c| c.place), after })
    }

    /// The evaluation that was begun has finished: its state is the one after `position` positions. If it is the one that it began with (all
    /// its rows had stopped), nothing was written.
    pub(crate) fn finish(&mut self, trail: &mut Trail, position: u32) {
        let Some(place) = trail.target.take() else { return };
        if trail.kept.last().map_or(0, |c| c.position) >= position {
            return self.release(place);
        }
        trail.kept.push(Checkpoint { place, position, before_prompt: false });
    }

    /// The states of a sequence after exactly `tokens` positions, by layer and kind; nothing where there are none.
    pub(crate) fn pieces<'a>(&'a self, trail: &Trail, tokens: u32) -> impl Iterator<Item = BufferSlice<'a>> + 'a {
        let found = trail.kept.iter().find(|c| c.position == tokens).map(|c| u64::from(c.place));
        let layers = self.layers.iter().filter_map(|l| l.buffers.as_ref().map(|b| (l, b)));
        found.into_iter().flat_map(move |place| {
            layers.clone().flat_map(move |(l, b)| b.iter().zip(l.bytes).map(move |(b, n)| b.slice(place * n, n)))
        })
    }

    /// Makes the state after `tokens` positions the only one of a sequence; what is in it is to be uploaded to [`RecurrentPool::pieces`].
    pub(crate) fn place(&mut self, trail: &mut Trail, tokens: u32) -> Result<()> {
        self.cut(trail, 0);
        if !self.is_empty() && tokens > 0 {
            let place = self.take()?;
            trail.kept.push(Checkpoint { place, position: tokens, before_prompt: false });
        }
        Ok(())
    }
}
