//! Tests of what templates may do, and of what they may not.

use super::*;
use serde_json::json;

fn render(source: &str, messages: serde_json::Value) -> Result<String> {
    let t = ChatTemplate::new(source, Some("<s>"), None)?;
    t.render_at(&messages, None, true, &serde_json::Map::new(), Some(1_768_478_400))
}

fn shows(source: &str, wanted: &str) {
    assert_eq!(render(source, json!([])).unwrap(), wanted, "{source}");
}

#[test]
fn a_conversation_becomes_text() {
    let source = "{{ bos_token }}{% for m in messages %}\n<|{{ m['role'] }}|>{{ m.content | trim }}\n{% endfor %}\n{% if add_generation_prompt %}<|assistant|>{% endif %}";
    let messages = messages_from([("system", " Be brief. "), ("user", "Hi")]);
    assert_eq!(render(source, messages).unwrap(), "<s><|system|>Be brief.\n<|user|>Hi\n<|assistant|>");
}

#[test]
fn values_look_as_in_python() {
    shows(
        "{{ none }} {{ true }} {{ [1, 'a', none] }} {{ {'k': 'v'} }}{{ nothing }}",
        "None True [1, 'a', None] {'k': 'v'}",
    );
    shows("{{ {'a': [1, '<é>']} | tojson }}", r#"{"a": [1, "<é>"]}"#);
    shows("{{ [1] | tojson(indent=2) }}", "[\n  1\n]");
    shows("{{ {'b': 1, 'a': 2} | tojson(separators=(',', ':'), sort_keys=true) }}", r#"{"a":2,"b":1}"#);
    shows("{% if tools is defined and tools is none %}none{% endif %}", "none");
    shows("{{ strftime_now('%d %b %Y') }}", "15 Jan 2026");
    shows("{{ 2.0 }} {{ 1e16 }} {{ 1e-7 }} {{ 3 / 2 }}", "2.0 1e+16 1e-07 1.5");
    shows("a\r\n{% if true %}\r\nb{% endif %}", "a\nb");
}

#[test]
fn python_methods_work() {
    shows("{{ 'a-b-c'.rsplit('-', 1) }}{{ ' a  b c '.rsplit(none, 1) }}", "['a-b', 'c'][' a  b', 'c']");
    shows("{{ 'abc'.removeprefix('a').removesuffix('c') }}{{ 'k=v=w'.partition('=') | list }}", "b['k', '=', 'v=w']");
    shows("{{ {'a': 1}.get('b', 2) }}{{ ' x '.strip() }}{{ 'aXb'.split('X')[-1] }}{{ 'abc'.index('c') }}", "2xb2");
    shows("{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% break %}{% endfor %}", "a1");
}

#[test]
fn generation_tags_are_passed_over() {
    shows("a {%- generation -%} b {%- endgeneration %} c", "ab c");
    shows("{% generation %}\nx\n{% endgeneration %}\ny", "x\ny");
}

#[test]
fn a_raised_message_is_carried_exactly() {
    let source = "{% macro m() %}{{ raise_exception('Roles: \"user\" only!') }}{% endmacro %}{{ m() }}";
    assert_eq!(render(source, json!([])), Err(Error::Template("Roles: \"user\" only!".into())));
}

#[test]
fn bad_templates_are_errors() {
    assert!(matches!(ChatTemplate::new("{% if %}", None, None), Err(Error::Template(m)) if m.contains("line 1")));
    for source in
        ["{{ nothing.more }}", "{{ 1 / 0 }}", "{{ nothing() }}", "{{ nothing | tojson }}", "{{ 'x' | no_filter }}"]
    {
        assert!(matches!(render(source, json!([])), Err(Error::Template(_))), "{source}");
    }
}

#[test]
fn templates_are_confined() {
    for source in [
        "{% include '/etc/passwd' %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ 'x' * 9999999999 }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{% set ns = namespace(x=[]) %}{% for a in range(90000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x | tojson }}",
    ] {
        assert!(matches!(render(source, json!([])), Err(Error::Template(_))), "{source}");
    }
}

/// `tests/data/jinja.py` has written what Jinja2 makes of these.
#[test]
fn as_jinja2_renders() {
    let file: serde_json::Value = serde_json::from_str(include_str!("../../tests/data/jinja.json")).unwrap();
    let mut context = file["context"].as_object().unwrap().clone();
    let messages = context.remove("messages").unwrap();
    let mut bad = 0;
    for case in file["cases"].as_array().unwrap() {
        let source = case["source"].as_str().unwrap();
        let got = ChatTemplate::new(source, None, None)
            .and_then(|t| t.render_at(&messages, None, true, &context, Some(1_768_478_400)));
        let fine = match (&got, case["expected"].as_str()) {
            (Ok(text), Some(wanted)) => text == wanted,
            (Err(_), None) => true,
            _ => false,
        };
        if !fine {
            bad += 1;
            println!("{source}\n   got    {got:?}\n   wanted {}{}", case["expected"], case["error"]);
        }
    }
    assert_eq!(bad, 0);
}

#[test]
fn built_in_templates_open_and_close_turns() {
    let talk = |last: &str| messages_from([("system", "S"), ("user", "U1"), ("assistant", "A1"), ("user", last)]);
    let shown = |name: &str| {
        let t = ChatTemplate::new(crate::text::builtin_template(name).unwrap(), Some("<s>"), Some("</s>")).unwrap();
        t.render(&talk("U2"), None, true, &serde_json::Map::new()).unwrap()
    };
    let wanted = [
        (
            "chatml",
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU1<|im_end|>\n<|im_start|>assistant\nA1<|im_end|>\n<|im_start|>user\nU2<|im_end|>\n<|im_start|>assistant\n",
        ),
        ("llama2", "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nU1 [/INST] A1 </s><s>[INST] U2 [/INST]"),
        (
            "llama3",
            "<s><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nU1<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nA1<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nU2<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        (
            "gemma",
            "<s><start_of_turn>user\nS\n\nU1<end_of_turn>\n<start_of_turn>model\nA1<end_of_turn>\n<start_of_turn>user\nU2<end_of_turn>\n<start_of_turn>model\n",
        ),
        ("mistral", "<s>[INST] S\n\nU1 [/INST] A1</s>[INST] U2 [/INST]"),
        (
            "phi3",
            "<|system|>\nS<|end|>\n<|user|>\nU1<|end|>\n<|assistant|>\nA1<|end|>\n<|user|>\nU2<|end|>\n<|assistant|>\n",
        ),
        ("zephyr", "<|system|>\nS</s>\n<|user|>\nU1</s>\n<|assistant|>\nA1</s>\n<|user|>\nU2</s>\n<|assistant|>\n"),
        (
            "granite",
            "<|start_of_role|>system<|end_of_role|>S<|end_of_text|>\n<|start_of_role|>user<|end_of_role|>U1<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>A1<|end_of_text|>\n<|start_of_role|>user<|end_of_role|>U2<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>",
        ),
    ];
    for (name, text) in wanted {
        assert_eq!(shown(name), text, "{name}");
    }
    for name in crate::text::builtin_names() {
        let text = shown(name);
        assert!(["S", "U1", "A1", "U2"].iter().all(|part| text.contains(part)), "{name}: {text}");
    }
    assert!(crate::text::builtin_template("nope").is_none());
}
