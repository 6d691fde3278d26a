#!/bin/sh
# Speed of a list of files, one after another, as docs/performance.md has it: prompts of 512 and 4,096 tokens, 128 generated after each, greedy,
# 32 tokens a submit, medians of RUNS runs (5). Writes one JSON file a model and table.txt to the folder OUT; DOPPLER names the program.
#   benches/table.sh OUT MODEL.gguf...
set -eu
out=$1
shift
doppler=${DOPPLER:-target/release/doppler}
mkdir -p "$out"
: > "$out/table.txt"
for model in "$@"; do
    name=$(basename "$model" .gguf)
    echo "== $name" >> "$out/table.txt"
    # A model that does not load does not cost the others' results.
    "$doppler" bench inference "$model" --runs "${RUNS:-5}" --warmup 2 --ctx 8192 --prompt-tokens 512,4096 --gen 128 \
        --tokens-per-submit 32 --json "$out/$name.json" >> "$out/table.txt" 2>&1 || echo "failed" >> "$out/table.txt"
done
cat "$out/table.txt"
