#!/bin/sh
# The table of docs/performance.md in one go, on one machine: greedy, 32 tokens a submit, medians of RUNS runs (5).
#   benches/table.sh OUT MODEL.gguf...
# Each file: prompts of 512 and 4,096 tokens with 128 generated after each, and the way to the first token. The files named in LONG (llama-8b-Q4_0)
# also after 16,384 tokens, and 8 and 32 sequences of 128 + 64 tokens together, 16 tokens a submit. Results go to the folder OUT as JSON, with
# table.md, table.svg and log.txt. DOPPLER names the program; LIMIT is what the device reads, in GB/s (0: the copy speed); NOTE is a line above the table.
# With INTO=docs/performance.md the table and its picture (docs/table.svg) are written there; elsewhere:
#   doppler bench table OUT/*.json --baseline benches/baseline.json --into docs/performance.md --svg docs/table.svg
set -eu
out=$1
shift
here=$(dirname "$0")
doppler=${DOPPLER:-target/release/doppler}
runs=${RUNS:-5}
mkdir -p "$out"
: > "$out/log.txt"

# A model that does not load, or runs out of memory, does not cost the others' results.
measure() {
    file=$1
    shift
    echo "== $file: $*" >> "$out/log.txt"
    "$doppler" bench "$@" --json "$out/$file.json" >> "$out/log.txt" 2>&1 || { echo "failed: $file" | tee -a "$out/log.txt"; rm -f "$out/$file.json"; }
}

for model in "$@"; do
    name=$(basename "$model" .gguf)
    measure "$name" inference "$model" --runs "$runs" --warmup 2 --ctx 8192 --prompt-tokens 512,4096 --gen 128 --tokens-per-submit 32
    case " ${LONG:-llama-8b-Q4_0} " in *" $name "*)
        measure "$name-deep" inference "$model" --runs "$runs" --warmup 1 --ctx 20480 --prompt-tokens 16384 --gen 128 --tokens-per-submit 32
        measure "$name-many" inference "$model" --runs "$runs" --warmup 1 --ctx 256 --prompt-tokens 128 --gen 64 --sequences 8,32 --tokens-per-submit 16
    esac
    measure "$name-load" load "$model" --runs 3
done
set -- "$out"/*.json
"$doppler" bench table "$@" --baseline "$here/baseline.json" --limit "${LIMIT:-0}" --note "${NOTE:-}" --svg "$out/table.svg" > "$out/table.md"
cat "$out/table.md"
if [ -n "${INTO:-}" ]; then
    "$doppler" bench table "$@" --baseline "$here/baseline.json" --limit "${LIMIT:-0}" --note "${NOTE:-}" --into "$INTO" \
        --svg "$(dirname "$INTO")/table.svg"
fi
