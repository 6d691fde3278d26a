//! Snapshots: a session as bytes, to go on from later, in another session or another process.
//!
//! All numbers are little-endian. A header of fixed size ([`MAGIC`], version, length and checksum of the rest); the model it belongs to;
//! the tokens, how many of them were evaluated, and the conversation; then the cache's blocks, group by group, their bytes, and those of
//! recurrent states.
//! Whatever does not fit the model, the session or its own checksum is refused before anything is changed.

use serde_json::Value;

use crate::checksum::checksum;
use crate::error::{Result, bail};
use crate::gpu::Phase;
use crate::model::{KvExtent, Mixer, RopeScaling};
use crate::session::chat::Message;
use crate::session::lora::describe;
use crate::session::model::Model;
use crate::session::state::Session;

/// How a snapshot begins.
const MAGIC: [u8; 8] = *b"DOPPLERS";
/// Changes whenever the layout does; others are refused.
const VERSION: u32 = 2;
/// Magic, version, length of the rest, its checksum.
const HEADER: usize = 8 + 4 + 8 + 8;

/// The line of a session's adapters, and what it says where there are none.
const ADAPTERS: &str = "adapters";
pub(super) const NO_ADAPTERS: &str = "none";

/// What stands before the bytes of the cache.
#[derive(Debug)]
struct Contents {
    tokens: Vec<u32>,
    cached: u32,
    messages: Vec<Message>,
    extents: Vec<KvExtent>,
}

#[derive(Debug, Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn u32(&mut self, v: u32) {
        self.0.extend(v.to_le_bytes());
    }

    fn u64(&mut self, v: u64) {
        self.0.extend(v.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.u64(text.len() as u64);
        self.0.extend(text.as_bytes());
    }
}

/// What remains to be read.
#[derive(Debug)]
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, n: u64) -> Result<&'a [u8]> {
        match usize::try_from(n).ok().and_then(|n| self.0.split_at_checked(n)) {
            Some((bytes, rest)) => {
                self.0 = rest;
                Ok(bytes)
            }
            None => bail!(InvalidArgument, "snapshot: it ends within a field of {n} bytes"),
        }
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(bytemuck::pod_read_unaligned::<u32>(self.bytes(4)?).to_le())
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(bytemuck::pod_read_unaligned::<u64>(self.bytes(8)?).to_le())
    }

    fn text(&mut self) -> Result<String> {
        let n = self.u64()?;
        match std::str::from_utf8(self.bytes(n)?) {
            Ok(text) => Ok(text.to_string()),
            Err(_) => bail!(InvalidArgument, "snapshot: a text is not UTF-8"),
        }
    }
}

/// The model's side: what must be the same where a snapshot is taken back. Each line has a name for the message of a refusal.
fn identity(model: &Model) -> Vec<(&'static str, String)> {
    let (spec, info) = (model.spec(), model.info());
    let layers: Vec<String> = spec
        .layers
        .iter()
        .map(|l| match &l.mixer {
            Mixer::Attention(a) => format!("{}x{}w{}", a.n_kv, a.head_dim, a.window),
            Mixer::Recurrent(m) => m.state_name(),
        })
        .collect();
    let positions = spec.ropes.iter().map(|rope| {
        // Some models turn keys differently when they are loaded for long contexts.
        let stretched = match &rope.scaling {
            RopeScaling::LongRope { original_context } if info.n_ctx > *original_context => ", stretched",
            _ => "",
        };
        format!("base {}, {:?}{stretched}", rope.freq_base, rope.scaling)
    });
    vec![
        ("architecture", info.architecture),
        ("vocabulary", info.n_vocab.to_string()),
        ("layers", layers.join(" ")),
        ("kv type", info.kv_type.name().to_string()),
        ("weights", format!("{:016x}", model.0.fingerprint)),
        ("positions", positions.collect::<Vec<_>>().join("; ")),
    ]
}

impl Session {
    fn contents(&self) -> Result<Contents> {
        let Some(sequence) = &self.sequence else { bail!(Internal, "a session without sequence") };
        Ok(Contents {
            tokens: self.tokens.clone(),
            cached: self.cached,
            messages: self.messages.clone(),
            extents: self.model.0.engine.lock().kv_extents(sequence, self.cached),
        })
    }

    fn encode(&self, c: &Contents) -> Writer {
        let mut w = Writer::default();
        let mut identity = identity(&self.model);
        // Without adapters nothing is said of them.
        identity.extend(Some((ADAPTERS, describe(&self.loras))).filter(|(_, list)| list != NO_ADAPTERS));
        w.u32(identity.len() as u32);
        for (name, value) in &identity {
            w.text(name);
            w.text(value);
        }
        w.u64(c.tokens.len() as u64);
        c.tokens.iter().for_each(|&t| w.u32(t));
        w.u32(c.cached);
        w.u64(c.messages.len() as u64);
        for m in &c.messages {
            w.text(&Value::Object(m.fields().clone()).to_string());
        }
        w.u32(c.extents.len() as u32);
        for e in &c.extents {
            w.u32(e.window);
            w.u32(e.first);
            w.u32(e.blocks);
        }
        w
    }

    /// Bytes that [`Session::snapshot`] would give now. Asks the device nothing.
    ///
    /// # Errors
    /// [`crate::Error::InvalidState`] while generating.
    pub fn snapshot_bytes(&self) -> Result<u64> {
        self.idle()?;
        let contents = self.contents()?;
        let kv = self.model.0.engine.lock().kv_bytes(&contents.extents, contents.cached);
        Ok((HEADER + self.encode(&contents).0.len()) as u64 + kv)
    }

    /// The session as bytes: tokens, conversation, and what was evaluated, read back in one submit. Counters, options and a cancel
    /// request are no part of it; of adapters it says which they were.
    ///
    /// # Errors
    /// [`crate::Error::InvalidState`] while generating, [`crate::Error::OutOfMemory`] if there is no room for reading it back, or what the device reports.
    pub fn snapshot(&self) -> Result<Vec<u8>> {
        self.idle()?;
        let scope = self.scope(Phase::Other);
        let contents = self.contents()?;
        let Some(sequence) = &self.sequence else { bail!(Internal, "a session without sequence") };
        let kv = self.model.0.engine.lock().save(sequence, &contents.extents, contents.cached, &scope)?;
        let body = self.encode(&contents).0;
        let mut out = Writer(Vec::with_capacity(HEADER + body.len() + kv.len()));
        out.0.extend(MAGIC);
        out.u32(VERSION);
        out.u64((body.len() + kv.len()) as u64);
        out.u64(0);
        out.0.extend(body);
        out.0.extend(kv);
        let sum = checksum(&out.0[HEADER..]);
        out.0[HEADER - 8..HEADER].copy_from_slice(&sum.to_le_bytes());
        Ok(out.0)
    }

    /// Becomes what a session of the same model was when [`Session::snapshot`] gave `bytes`: it goes on exactly as that one. It must have the same
    /// adapters as that one had, set before.
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] for bytes that are no snapshot, are damaged or belong to another model or to other adapters, [`crate::Error::ContextFull`] if its
    /// tokens do not fit, [`crate::Error::InvalidState`] while generating: the session is then as it was. Should the device fail, the
    /// session keeps its tokens and evaluates them again.
    pub fn restore(&mut self, bytes: &[u8]) -> Result<()> {
        self.idle()?;
        let (contents, kv) = self.decode(bytes)?;
        let scope = self.scope(Phase::Other);
        let Some(sequence) = &mut self.sequence else { bail!(Internal, "a session without sequence") };
        let evaluated = &contents.tokens[..contents.cached as usize];
        let mut engine = self.model.0.engine.lock();
        engine.check_kv(sequence, evaluated.len() as u32, &contents.extents, kv.len() as u64)?;
        // Up to here nothing has changed. What was evaluated goes first: there is no room for both.
        self.cached = 0;
        engine.load(sequence, evaluated, &contents.extents, kv, &scope)?;
        drop(engine);
        self.cached = contents.cached;
        self.tokens = contents.tokens;
        self.messages = contents.messages;
        self.segment = None;
        Ok(())
    }

    /// Everything but the cache's bytes, checked, and those bytes.
    fn decode<'a>(&self, bytes: &'a [u8]) -> Result<(Contents, &'a [u8])> {
        let mut r = Reader(bytes);
        if bytes.len() < HEADER || r.bytes(8)? != MAGIC {
            bail!(InvalidArgument, "snapshot: {} bytes that do not begin as one", bytes.len());
        }
        let version = r.u32()?;
        if version != VERSION {
            bail!(InvalidArgument, "snapshot: version {version}, this library reads {VERSION}");
        }
        let (size, sum) = (r.u64()?, r.u64()?);
        if size != r.0.len() as u64 {
            bail!(InvalidArgument, "snapshot: {} bytes of {size} are there", r.0.len());
        }
        if checksum(r.0) != sum {
            bail!(InvalidArgument, "snapshot: it is damaged (its checksum does not match)");
        }
        let contents = self.decode_contents(&mut r)?;
        Ok((contents, r.0))
    }

    fn decode_contents(&self, r: &mut Reader<'_>) -> Result<Contents> {
        let own = identity(&self.model);
        let lines = r.u32()? as usize;
        if lines != own.len() && lines != own.len() + 1 {
            bail!(InvalidArgument, "snapshot: it describes its model in another way");
        }
        for (name, value) in &own {
            let (their_name, theirs) = (r.text()?, r.text()?);
            if their_name != *name || theirs != *value {
                bail!(
                    InvalidArgument,
                    "snapshot: it belongs to another model: {their_name} {theirs}, here {name} {value}"
                );
            }
        }
        let (name, theirs) = match lines - own.len() {
            0 => (ADAPTERS.to_string(), NO_ADAPTERS.to_string()),
            _ => (r.text()?, r.text()?),
        };
        let list = describe(&self.loras);
        if name != ADAPTERS || theirs != list {
            bail!(InvalidArgument, "snapshot: it was made with other adapters: {name} {theirs}, here {list}");
        }
        let n = r.u64()?;
        let words = r.bytes(n.saturating_mul(4))?;
        let tokens: Vec<u32> = words.chunks_exact(4).map(|w| bytemuck::pod_read_unaligned::<u32>(w).to_le()).collect();
        if let Some(t) = tokens.iter().find(|&&t| t >= self.model.spec().n_vocab) {
            bail!(InvalidArgument, "snapshot: token {t} in a vocabulary of {}", self.model.spec().n_vocab);
        }
        if n > u64::from(self.n_ctx) {
            bail!(ContextFull, "a snapshot of {n} tokens does not fit in a context of {}", self.n_ctx);
        }
        let cached = r.u32()?;
        if u64::from(cached) > n {
            bail!(InvalidArgument, "snapshot: {cached} of {n} tokens evaluated");
        }
        let n_messages = r.u64()?;
        let mut messages = Vec::new();
        for _ in 0..n_messages {
            match serde_json::from_str(&r.text()?) {
                Ok(json) => messages.extend(Message::from_json(Value::Array(vec![json]))?),
                Err(e) => bail!(InvalidArgument, "snapshot: a message is not JSON: {e}"),
            }
        }
        let groups = r.u32()?;
        let mut extents = Vec::new();
        for _ in 0..groups {
            extents.push(KvExtent { window: r.u32()?, first: r.u32()?, blocks: r.u32()? });
        }
        Ok(Contents { tokens, cached, messages, extents })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_see_every_bit() {
        let bytes: Vec<u8> = (0..100u8).collect();
        let whole = checksum(&bytes);
        for i in 0..bytes.len() * 8 {
            let mut bent = bytes.clone();
            bent[i / 8] ^= 1 << (i % 8);
            assert_ne!(checksum(&bent), whole, "bit {i}");
            // Two bits that could cancel: the same one in the next word.
            if i + 64 < bytes.len() * 8 {
                bent[i / 8 + 8] ^= 1 << (i % 8);
                assert_ne!(checksum(&bent), whole, "bits {i} and {}", i + 64);
            }
        }
        for n in 0..bytes.len() {
            assert_ne!(checksum(&bytes[..n]), whole);
        }
        assert_ne!(checksum(&[0; 8]), checksum(&[0; 16]));
    }
}
