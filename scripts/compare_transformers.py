#!/usr/bin/env python3
"""Compares logits with transformers' on random models of other sizes than the references have.

    pip install torch transformers safetensors
    scripts/compare_transformers.py --configs ../shared/golden --tokenizer ../shared/models/hearth/hearth-5m-hf --seeds 0:3

Each folder of --configs has a config.json of one family. Its sizes (width, heads, head size, layers' width, experts, windows, groups, partial
rotation) are drawn anew for each seed, transformers makes and saves a model with random weights, and `doppler logits` of the folder, whole and in
chunks of 16, must be within 1.5e-3 of it (4e-3 for gated delta rules) at every position. Combinations that transformers refuses are skipped.
"""
import argparse
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import torch
from safetensors.numpy import load_file
from transformers import AutoConfig, AutoModelForCausalLM

GATED_DELTA = ("qwen3next", "qwen35", "qwen35moe")
TIED = ("gemma", "gemma2", "gemma3", "cohere2", "gpt-oss", "gpt-oss-f16")
VOCABULARY = 2048


def drawn(family, config, seed):
    """The configuration with other sizes."""
    pick = random.Random(f"{family}-{seed}").choice
    c = dict(config, vocab_size=VOCABULARY)
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if c.get(key) is not None:
            c[key] = 1 if key == "eos_token_id" else 2
    if family == "gpt2":
        heads, size = pick([2, 3, 6]), pick([16, 24, 32, 40])
        return dict(c, n_head=heads, n_embd=heads * size, n_layer=pick([1, 2, 5]), n_positions=512, n_ctx=512)
    key_heads = pick([1, 2, 3])
    heads = key_heads * pick([1, 2, 3, 4])
    size = pick([32, 64, 96] if family.startswith("gpt-oss") else [16, 24, 32, 40, 48, 64, 80, 96, 128])
    unit = math.lcm(heads, 4)
    width = -(-pick([64, 96, 128, 160, 192, 224, 256, 320]) // unit) * unit
    own_size = c.get("head_dim") is not None and not family.startswith("phi3")
    if not own_size or family == "cohere2":
        size = size if own_size else pick([16, 32, 48, 64])
        width = heads * size
    c.update(hidden_size=width, num_attention_heads=heads, num_key_value_heads=key_heads)
    if c.get("head_dim") is not None:
        c["head_dim"] = size
    c["intermediate_size"] = pick([64, 96, 160, 224, 352, 512])
    for key in ("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"):
        if c.get(key):
            c[key] = pick([32, 64, 96, 128])
    for key in ("num_experts", "num_local_experts"):
        if c.get(key):
            c[key] = pick([3, 4, 6, 8, 16, 33])
            for used in ("num_experts_per_tok", "num_experts_per_token", "experts_per_token"):
                if c.get(used):
                    c[used] = min(c[key], pick([1, 2, 3, 4]))
    if c.get("linear_key_head_dim"):
        keys = pick([1, 2, 4])
        c.update(linear_key_head_dim=pick([16, 32, 64]), linear_value_head_dim=pick([16, 32, 64]))
        c.update(linear_num_key_heads=keys, linear_num_value_heads=keys * pick([1, 2, 4]))
        c["linear_conv_kernel_dim"] = pick([2, 3, 4])
    if c.get("mamba_n_heads"):
        n, inner = pick([2, 4, 8]), pick([16, 32])
        width = n * inner // 2
        heads = pick([h for h in (1, 2, 4, 8) if width % h == 0 and width // h % 8 == 0])
        c.update(mamba_n_heads=n, mamba_d_head=inner, mamba_expand=2, hidden_size=width, num_attention_heads=heads)
        c.update(mamba_n_groups=pick([g for g in (1, 2, 4) if n % g == 0]), mamba_d_state=pick([16, 32, 64]))
        c.update(mamba_d_conv=pick([2, 3, 4]), num_key_value_heads=pick([k for k in (1, 2, 4) if heads % k == 0]))
    if c.get("conv_L_cache"):
        c["conv_L_cache"] = pick([2, 3, 4])
    if c.get("sliding_window"):
        c["sliding_window"] = pick([5, 16, 33, 64, 100])
    rope = c.get("rope_parameters") or {}
    if "partial_rotary_factor" in rope and family in ("phi3", "glm4"):
        part = pick([f for f in (0.25, 0.5, 0.75, 1.0) if size * f % 2 == 0])
        rope["partial_rotary_factor"] = part
        if c.get("partial_rotary_factor") is not None:
            c["partial_rotary_factor"] = part
    if family in GATED_DELTA:
        if int(c["head_dim"] * rope["partial_rotary_factor"]) % 2:
            c["head_dim"] = 64
        half = int(c["head_dim"] * rope["partial_rotary_factor"]) // 2
        if "mrope_section" in rope:
            rope["mrope_section"] = [half - 2 * (half // 3), half // 3, half // 3]
    if family == "phi3-longrope":
        pairs = int(size * (rope.get("partial_rotary_factor") or c.get("partial_rotary_factor") or 1.0)) // 2
        rope["short_factor"] = [1.0 + 0.1 * i for i in range(pairs)]
        rope["long_factor"] = [1.0 + 0.3 * i for i in range(pairs)]
    if "tie_word_embeddings" in c and family not in TIED:
        c["tie_word_embeddings"] = pick([False, True])
    c["max_position_embeddings"] = max(512, c.get("max_position_embeddings") or 0)
    return c


def model_of(folder, seed):
    """A model of the folder's configuration; every matrix is of bfloat16's numbers, so that all engines have the same weights."""
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), attn_implementation="eager").float().eval()
    generator = torch.Generator().manual_seed(seed)
    normal = lambda shape: torch.randn(shape, generator=generator)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() >= 2:
                embeds = "embed" in name or "wte" in name
                p.copy_((normal(p.shape) * (0.5 if embeds else 0.9 / math.sqrt(p.shape[-1]))).bfloat16().float())
            elif "A_log" in name:
                p.copy_(torch.rand(p.shape, generator=generator) * 2)
            elif "bias" in name or "sinks" in name:
                p.copy_(normal(p.shape) * 0.2)
            else:
                p.add_(normal(p.shape) * 0.1)
    return model


def compare(family, config, seed, folder, args):
    """Whether the logits agree; None where transformers refuses the sizes."""
    with open(f"{folder}/config.json", "w") as out:
        json.dump(drawn(family, config, seed), out)
    try:
        model = model_of(folder, seed)
    except Exception as e:  # Whatever it is, there is nothing to compare with.
        print(f"{family} {seed}: skipped, {type(e).__name__}: {str(e)[:120]!r}")
        return None
    model.save_pretrained(folder)
    for name in os.listdir(args.tokenizer):
        if "token" in name:
            shutil.copy(f"{args.tokenizer}/{name}", folder)
    numbers = random.Random(seed)
    ids = [numbers.randrange(VOCABULARY) for _ in range(numbers.choice([1, 9, 37, 70, 130]))]
    with torch.no_grad():
        want = model(torch.tensor([ids])).logits[0].numpy()
    with open(f"{folder}/ids.json", "w") as out:
        json.dump(ids, out)
    bound = 4e-3 if family in GATED_DELTA else 1.5e-3
    for chunk in (512, 16):
        command = [args.program, "logits", folder, "--ids", f"{folder}/ids.json", "--out", f"{folder}/logits.out"]
        command += ["--kv", "f32", "--exact", "--ctx", "256", "--chunk", str(chunk)]
        ran = subprocess.run(command, capture_output=True, text=True)
        if ran.returncode:
            print(f"{family} {seed}: FAILED: {ran.stderr.strip()}")
            return False
        error = np.abs(load_file(f"{folder}/logits.out")["logits"] - want).max()
        print(f"{family} {seed}: {len(ids)} tokens in chunks of {chunk}: largest error {error:.1e}")
        if not error <= bound:
            print(f"{family} {seed}: FAILED, the bound is {bound}")
            return False
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", required=True, help="folder of folders with a config.json each, named by family")
    parser.add_argument("--tokenizer", required=True, help="folder with the tokenizer files that every model gets, of 2,048 tokens")
    parser.add_argument("--program", default="target/release/doppler")
    parser.add_argument("--families", default="", help="some of them, with commas between")
    parser.add_argument("--seeds", default="0:2", help="from:to")
    args = parser.parse_args()
    # MXFP4 is made by a quantiser, not by random numbers.
    known = sorted(f for f in os.listdir(args.configs) if os.path.isfile(f"{args.configs}/{f}/config.json") and f != "gpt-oss")
    first, last = map(int, args.seeds.split(":"))
    outcomes = []
    for family in args.families.split(",") if args.families else known:
        with open(f"{args.configs}/{family}/config.json") as f:
            config = json.load(f)
        for seed in range(first, last):
            with tempfile.TemporaryDirectory() as folder:
                outcomes.append(compare(family, json.loads(json.dumps(config)), seed, folder, args))
    print(f"{outcomes.count(True)} agree, {outcomes.count(False)} failed, {outcomes.count(None)} skipped")
    sys.exit(1 if False in outcomes or True not in outcomes else 0)


if __name__ == "__main__":
    main()
