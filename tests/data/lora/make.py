"""Makes the adapters of this folder and their reference logits, with transformers and peft in f32 on the CPU.

    python make.py REPOSITORY GOLDEN

GOLDEN is the folder of golden models; the model in assets/ needs none. Needs torch, transformers, peft, gguf. For each model a folder as PEFT
writes it, with random A and B, and in `reference.safetensors` the ids, and the logits of the last positions without and with the adapter.
"""
import json, pathlib, shutil, sys

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

ROWS = 2
repository, golden = map(pathlib.Path, sys.argv[1:3])
here = repository / "tests/data/lora"

# What is adapted, and how strongly: patterns and the root are there to be tested.
MODELS = {
    "hearth": (repository / "assets/hearth-5m-Q8_0.gguf", 2, dict(
        lora_alpha=8, target_modules=["q_proj", "v_proj", "o_proj", "down_proj"])),
    "llama3": (golden / "llama3/model-f16.gguf", 2, dict(
        lora_alpha=8, use_rslora=True, rank_pattern={"v_proj": 5}, alpha_pattern={r"^model\.layers\.0\..*k_proj": 3.0, "down_proj": 5.0},
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])),
    "qwen3": (golden / "qwen3/model-f16.gguf", 3, dict(
        lora_alpha=3, target_modules=["q_proj", "k_proj", "gate_proj", "embed_tokens"])),
    "gemma3": (golden / "gemma3/model-f16.gguf", 2, dict(
        lora_alpha=4, target_modules=["k_proj", "v_proj", "up_proj", "down_proj"])),
}

for name, (path, rank, options) in MODELS.items():
    torch.manual_seed(7)
    # What GGUF files do not say of a configuration stands in the golden folder.
    known = {"config": AutoConfig.from_pretrained(path.parent)} if (path.parent / "config.json").exists() else {}
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, **known, dtype=torch.float32, attn_implementation="eager").eval()
    n_vocab = model.config.get_text_config().vocab_size
    ids = torch.randint(3, n_vocab, (1, 21))
    with torch.no_grad():
        base = model(ids).logits[0, -ROWS:].clone()
    peft = get_peft_model(model, LoraConfig(r=rank, lora_dropout=0.0, bias="none", **options)).eval()
    for key, p in peft.named_parameters():
        if "lora_" in key:
            # Of the size of a weight's own noise, and exact in f16.
            p.data = (torch.randn_like(p) * (0.2 if "embedding" in key else 0.1)).half().float()
    with torch.no_grad():
        adapted = peft(ids).logits[0, -ROWS:].clone()
    folder = here / name
    shutil.rmtree(folder, ignore_errors=True)
    peft.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    weights = load_file(folder / "adapter_model.safetensors")
    save_file({k: v.half() for k, v in weights.items()}, folder / "adapter_model.safetensors", {"format": "pt"})
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = name
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    save_file({"ids": ids[0].int(), "base": base, "adapted": adapted}, folder / "reference.safetensors")
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(name, n_vocab, sorted(weights)[:3], "change", (adapted - base).abs().max().item(), "of", base.std().item(), size, "bytes")
