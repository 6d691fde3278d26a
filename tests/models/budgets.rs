//! The production budgets hold in every kind of device, whatever happens between two generations.

use std::ops::ControlFlow;

use doppler::gpu::{Guard, Phase};
use doppler::model::KvType;
use doppler::session::{ModelOptions, Session, SessionOptions};

use crate::common::*;

fn told(s: &mut Session) -> Vec<u32> {
    s.append_text("Once upon a time there was a little mouse who lived in a clock", false).unwrap();
    generate(s, &greedy(9))
}

#[test]
fn strict_guards_pass_whatever_happens_in_between() {
    for (name, features) in feature_sets() {
        let Some(context) = context(features, Guard::PRODUCTION) else { return };
        for prewarm in [true, false] {
            let options = ModelOptions {
                n_ctx: 128,
                prefill_chunk: 8,
                kv_type: KvType::F16,
                prewarm,
                exact: false,
                quantize: None,
            };
            let model = context.load_model(&shallow(), &options, &mut |_, _| Ok(())).unwrap();
            let open = |tokens_per_submit| {
                model.open_session(&SessionOptions { tokens_per_submit, ..Default::default() }).unwrap()
            };
            let mut s = open(1);
            let want = told(&mut s);
            assert!(s.stats().counters.phase(Phase::Prefill).submits > 1, "{name}: several chunks");
            // Everything compiled and every idle buffer is forgotten.
            context.purge_caches();
            s.reset();
            assert_eq!(told(&mut s), want, "{name}: after a purge");
            let mut several = open(4);
            assert_eq!(told(&mut several), want, "{name}: several tokens a submit");
            // Slots and cache grow, and everything is purged, between two tokens of a text and two chunks of a prompt.
            s.reset();
            s.append_text("Once upon a time there was a little mouse who lived in a clock", false).unwrap();
            let mut others = Vec::new();
            let out = s.generate(&greedy(9), &mut |_| {
                others.push(open(1));
                // Compiling everything anew takes long.
                if others.len() % 3 == 1 {
                    context.purge_caches();
                }
                ControlFlow::Continue(())
            });
            assert_eq!(out.unwrap().tokens, want, "{name}: others came meanwhile");
            assert_eq!(told(&mut others[3]), want, "{name}");
        }
    }
}
