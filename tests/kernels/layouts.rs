//! What shaders and their hosts share: structures and constants.

use std::mem::offset_of;

use doppler::gpu::assemble;
use doppler::kernels::KERNELS;
use doppler::kernels::constants::*;
use doppler::kernels::sample::{BIAS_ENTRIES, MAX_STOP_IDS, NO_TOKEN, Row, SeqState};
use doppler::sample::{FLAG_PENALTIES, MAX_LOGIT_BIAS, SampleParams};

/// Name, offset and kind of each field of a Rust structure of words.
macro_rules! fields {
    ($of:ident { $($field:ident : $ty:ident),* $(,)? }) => {
        (stringify!($of), size_of::<$of>(), vec![$({
            let _typed: fn(&$of) -> &$ty = |s| &s.$field;
            (stringify!($field), offset_of!($of, $field), stringify!($ty))
        }),*])
    };
}

fn module_of(source: &str) -> naga::Module {
    let text = assemble("shared", source, &[], &[], false).unwrap().source;
    naga::front::wgsl::parse_str(&text).unwrap_or_else(|e| panic!("{}", e.emit_to_string(&text)))
}

#[test]
fn structures_are_the_same_in_wgsl_and_rust() {
    let module = module_of("#import state\n");
    let ours = [
        fields!(SampleParams {
            temperature: f32,
            top_k: u32,
            top_p: f32,
            min_p: f32,
            repeat_penalty: f32,
            frequency_penalty: f32,
            presence_penalty: f32,
            penalty_last_n: u32,
            seed_lo: u32,
            seed_hi: u32,
            n_bias: u32,
            flags: u32,
        }),
        fields!(SeqState { token: u32, pos: u32, limit: u32, stop: u32, n_stop: u32 }),
        fields!(Row { slot: u32, pos: u32 }),
    ];
    for ((name, size, fields), bytes) in ours.into_iter().zip([48, 32, 8]) {
        let found = module.types.iter().find(|(_, t)| t.name.as_deref() == Some(name));
        let naga::TypeInner::Struct { members, span } = &found.expect(name).1.inner else { panic!("{name}") };
        assert_eq!((size, *span as usize), (bytes, bytes), "size of {name}");
        let theirs: Vec<(&str, usize, &str)> = members
            .iter()
            .filter(|m| !m.name.as_deref().unwrap_or_default().starts_with("pad"))
            .map(|m| {
                let kind = match module.types[m.ty].inner {
                    naga::TypeInner::Scalar(naga::Scalar::F32) => "f32",
                    naga::TypeInner::Scalar(naga::Scalar::U32) => "u32",
                    ref other => panic!("{name}: {other:?}"),
                };
                (m.name.as_deref().unwrap_or_default(), m.offset as usize, kind)
            })
            .collect();
        assert_eq!(theirs, fields, "fields of {name}");
    }
}

/// `const NAME: u32 = …u;` of a kernel's shader, or of a library. Read as text: shaders with slots are no modules by themselves.
fn wgsl_constant(of: &str, name: &str) -> u32 {
    let text = match KERNELS.iter().find(|k| k.name == of) {
        Some(kernel) => kernel.source.to_string(),
        None => assemble("shared", &format!("#import {of}\n"), &[], &[], false).unwrap().source,
    };
    let start = format!("const {name}: u32 = ");
    let at = text.find(&start).unwrap_or_else(|| panic!("{of} has no constant {name}"));
    let value = text[at + start.len()..].split(['u', ';']).next().unwrap();
    match value.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).unwrap(),
        None => value.parse().unwrap_or_else(|e| panic!("{of}: {name} = {value}: {e}")),
    }
}

/// Sizes that shaders fix by themselves: workgroup memory is laid out by them.
#[test]
fn sizes_in_shaders_are_those_of_the_hosts() {
    for (of, name, value) in [
        ("matmul_tile", "WG", THREADS),
        ("matmul_tile", "TILE_T", TILE.0),
        ("matmul_tile", "TILE_R", TILE.1),
        ("moe_tile", "WG", THREADS),
        ("moe_tile", "TILE_R", TILE.1),
        ("attention_prefill", "WG", THREADS),
        ("attention_prefill", "QT", ATTENTION_ROWS),
        ("sample_pick", "WG", THREADS_LONG),
        ("route", "MAX_EXPERTS", MAX_EXPERTS),
        ("route", "MAX_EXPERTS_USED", MAX_EXPERTS_USED),
        ("chain", "CHAIN_WORDS", CHAIN_BYTE_WORDS),
        ("chain", "CHAIN_NUMBER_WORDS", CHAIN_NUMBER_WORDS),
        ("chain_parts", "PART_WORDS", CHAIN_PART_WORDS),
        ("moe_tiles", "MAX_EXPERTS", MAX_EXPERTS),
        ("staged_rows", "STAGED_BLOCKS", STAGED_BLOCKS),
    ] {
        assert_eq!(wgsl_constant(of, name), value, "{of}: {name}");
    }
}

#[test]
fn constants_are_the_same_in_wgsl_and_rust() {
    let constant = |name: &str| wgsl_constant("step_end", name);
    assert_eq!(constant("STOP_IDS"), MAX_STOP_IDS);
    assert_eq!(constant("BIAS_ENTRIES"), BIAS_ENTRIES);
    assert_eq!(BIAS_ENTRIES as usize, MAX_LOGIT_BIAS);
    assert_eq!(constant("FLAG_PENALTIES"), FLAG_PENALTIES);
    assert_eq!(constant("NO_TOKEN"), NO_TOKEN);
    assert_eq!([constant("STOP_NONE"), constant("STOP_TOKEN"), constant("STOP_LIMIT")], [0, 1, 2]);
}
