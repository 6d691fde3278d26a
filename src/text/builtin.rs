//! Chat templates by name, for files that have none or a wrong one.
//!
//! Written for this project, in the forms that the models' makers publish. Tools are for the templates of the files themselves.

/// Names and templates.
pub(super) static TEMPLATES: &[(&str, &str)] = &[
    ("chatml", CHATML),
    ("llama2", LLAMA2),
    ("llama3", LLAMA3),
    ("gemma", GEMMA),
    ("mistral", MISTRAL),
    ("mistral-v7", MISTRAL_V7),
    ("phi3", PHI3),
    ("phi4", PHI4),
    ("zephyr", ZEPHYR),
    ("vicuna", VICUNA),
    ("alpaca", ALPACA),
    ("deepseek", DEEPSEEK),
    ("command-r", COMMAND_R),
    ("granite", GRANITE),
    ("glm4", GLM4),
];

/// The template of a name.
#[must_use]
pub fn builtin_template(name: &str) -> Option<&'static str> {
    TEMPLATES.iter().find(|(n, _)| *n == name).map(|(_, source)| *source)
}

/// The names of all built-in templates.
pub fn builtin_names() -> impl Iterator<Item = &'static str> {
    TEMPLATES.iter().map(|(name, _)| *name)
}

const CHATML: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

// The system message stands within the first turn of the user.
const LLAMA2: &str = "{% set ns = namespace(system='') %}{% for m in messages %}\
{% if m.role == 'system' %}{% set ns.system = '<<SYS>>\\n' + m.content + '\\n<</SYS>>\\n\\n' %}\
{% elif m.role == 'user' %}{{ bos_token }}{{ '[INST] ' + ns.system + m.content + ' [/INST]' }}{% set ns.system = '' %}\
{% elif m.role == 'assistant' %}{{ ' ' + m.content + ' ' + eos_token }}\
{% else %}{{ raise_exception('the template llama2 has no role ' + m.role) }}{% endif %}{% endfor %}";

const LLAMA3: &str = "{{ bos_token }}{% for m in messages %}\
{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}";

// There is no role for the system: its message begins the first turn of the user.
const GEMMA: &str = "{{ bos_token }}{% set ns = namespace(system='') %}{% for m in messages %}\
{% if m.role == 'system' %}{% set ns.system = m.content | trim + '\\n\\n' %}\
{% else %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + ns.system + m.content | trim + '<end_of_turn>\\n' }}\
{% set ns.system = '' %}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}";

const MISTRAL: &str = "{{ bos_token }}{% set ns = namespace(system='') %}{% for m in messages %}\
{% if m.role == 'system' %}{% set ns.system = m.content + '\\n\\n' %}\
{% elif m.role == 'user' %}{{ '[INST] ' + ns.system + m.content + ' [/INST]' }}{% set ns.system = '' %}\
{% elif m.role == 'assistant' %}{{ ' ' + m.content | trim + eos_token }}\
{% else %}{{ raise_exception('the template mistral has no role ' + m.role) }}{% endif %}{% endfor %}";

const MISTRAL_V7: &str = "{{ bos_token }}{% for m in messages %}\
{% if m.role == 'system' %}{{ '[SYSTEM_PROMPT]' + m.content + '[/SYSTEM_PROMPT]' }}\
{% elif m.role == 'user' %}{{ '[INST]' + m.content + '[/INST]' }}\
{% elif m.role == 'assistant' %}{{ m.content + eos_token }}\
{% else %}{{ raise_exception('the template mistral-v7 has no role ' + m.role) }}{% endif %}{% endfor %}";

const PHI3: &str = "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}";

const PHI4: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}";

const ZEPHYR: &str = "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + eos_token + '\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}";

const VICUNA: &str = "{% for m in messages %}{% if m.role == 'system' %}{{ m.content + '\\n\\n' }}\
{% elif m.role == 'user' %}{{ 'USER: ' + m.content + '\\n' }}\
{% elif m.role == 'assistant' %}{{ 'ASSISTANT: ' + m.content + eos_token + '\\n' }}\
{% else %}{{ raise_exception('the template vicuna has no role ' + m.role) }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}";

const ALPACA: &str = "{% for m in messages %}{% if m.role == 'system' %}{{ m.content + '\\n\\n' }}\
{% elif m.role == 'user' %}{{ '### Instruction:\\n' + m.content + '\\n\\n' }}\
{% elif m.role == 'assistant' %}{{ '### Response:\\n' + m.content + '\\n\\n' }}\
{% else %}{{ raise_exception('the template alpaca has no role ' + m.role) }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}";

const DEEPSEEK: &str = "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}\
{% elif m.role == 'user' %}{{ '<\u{ff5c}User\u{ff5c}>' + m.content }}\
{% elif m.role == 'assistant' %}{{ '<\u{ff5c}Assistant\u{ff5c}>' + m.content + '<\u{ff5c}end\u{2581}of\u{2581}sentence\u{ff5c}>' }}\
{% else %}{{ raise_exception('the template deepseek has no role ' + m.role) }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<\u{ff5c}Assistant\u{ff5c}>' }}{% endif %}";

const COMMAND_R: &str = "{{ bos_token }}{% set roles = {'system': 'SYSTEM', 'user': 'USER', 'assistant': 'CHATBOT'} %}{% for m in messages %}\
{{ '<|START_OF_TURN_TOKEN|><|' + roles[m.role] + '_TOKEN|>' + m.content | trim + '<|END_OF_TURN_TOKEN|>' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}";

const GRANITE: &str = "{% for m in messages %}\
{{ '<|start_of_role|>' + m.role + '<|end_of_role|>' + m.content + '<|end_of_text|>\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}";

const GLM4: &str = "[gMASK]<sop>{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}";
