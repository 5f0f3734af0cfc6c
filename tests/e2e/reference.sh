#!/bin/sh
# graph.ref = cached: losses are the online ones to rounding; what one run computed another takes from the file, to the
# bit, whatever its order and split; a file of another reference is refused with what differs; a damaged one is named.
. tests/e2e/lib.sh
export DPOC_CACHE_DIR="$BUILD/tests/cache"
file=$work/logps.safetensors
cached="--set graph.ref=cached --set graph.ref_file=$file"
steps() { sed -nE 's/.*"event":"(step|eval)".*"grad_norm":([0-9.e-]+).*"loss":([0-9.e-]+).*/\2 \3/p' "$1/metrics.jsonl"; }
loud() { # OUT [flags]: as train_case, but it speaks
    out=$1
    shift
    "$dpoc" train models/dpo-lora.dpo --device=cpu --model $cases/gqa --data $cases/gqa/pairs.jsonl --adapter $cases/gqa/adapter \
        --set pref.rank=4 --set pref.alpha=8 --set run.batch=4 --set run.lr=1e-2 --set run.steps=4 -o "$out" "$@" 2> "$work/err"
}
train_case gqa "$work/online" --set run.steps=4 || die "online"
loud "$work/first" $cached || die "cached: $(cat "$work/err")"
grep -q "^reference: 0 pairs known, 6 computed in .*: $file" "$work/err" || die "what was computed: $(cat "$work/err")"
steps "$work/online" > "$work/a"
steps "$work/first" > "$work/b"
# fp32 sums in other micro-batches: 1e-5 of numbers of order 1, as between packings (dropout.sh)
paste "$work/a" "$work/b" | awk '{ for (i = 1; i <= 2; i++) { d = $i - $(i + 2); if (d < 0) d = -d
    if (d > 1e-5 * ($i > 1 ? $i : 1)) bad = 1 } n++ } END { exit bad || n != 4 }' || die "other losses: $(paste "$work/a" "$work/b")"

loud "$work/second" $cached --threads=1 || die "again: $(cat "$work/err")"
grep -q "^reference: 6 pairs known, 0 computed" "$work/err" || die "not taken from the file: $(cat "$work/err")"
cmp "$work/first/adapter/adapter_model.safetensors" "$work/second/adapter/adapter_model.safetensors" || die "other bits"
loud "$work/part" $cached --set data.limit=3 --set data.eval=1 || die "part: $(cat "$work/err")"
grep -q "^reference: 3 pairs known, 0 computed" "$work/err" || die "some of the pairs: $(cat "$work/err")"

"$dpoc" eval models/dpo-lora.dpo --device=cpu --model $cases/gqa --data $cases/gqa/pairs.jsonl --adapter $cases/gqa/adapter --json \
    --set pref.rank=4 --set pref.alpha=8 $cached > "$work/eval" 2> "$work/err" || die "eval: $(cat "$work/err")"
"$dpoc" eval models/dpo-lora.dpo --device=cpu --model $cases/gqa --data $cases/gqa/pairs.jsonl --adapter $cases/gqa/adapter --json \
    --set pref.rank=4 --set pref.alpha=8 > "$work/online.json" 2> "$work/err" || die "eval: $(cat "$work/err")"
refs() { grep -oE '"ref_logp_[a-z]+":-?[0-9.]+' "$1" | sed 's/.*://'; }
refs "$work/eval" > "$work/a"
refs "$work/online.json" > "$work/b"
paste "$work/a" "$work/b" | awk '{ d = $1 - $2; if (d < 0) d = -d; if (d > -1e-5 * $2) bad = 1; n++ } END { exit bad || n != 12 }' ||
    die "log-probs: $(paste "$work/a" "$work/b")"

loud "$work/other" $cached --set graph.compute=bf16 && die "another reference's log-probs were taken"
[ $? -eq 1 ] && grep -q "compute was fp32, is bf16" "$work/err" || die "what differs: $(cat "$work/err")"
head -c 100 "$file" > "$work/cut.safetensors"
loud "$work/cut" --set graph.ref=cached --set "graph.ref_file=$work/cut.safetensors" && die "a damaged file was taken"
[ $? -eq 5 ] && grep -q "cut.safetensors" "$work/err" || die "damaged: $(cat "$work/err")"
head -c -4 "$file" > "$work/cut.safetensors"
printf '\377\377\377\377' >> "$work/cut.safetensors"
loud "$work/cut" --set graph.ref=cached --set "graph.ref_file=$work/cut.safetensors" && die "a log-prob that is NaN was taken"
[ $? -eq 5 ] && grep -q "cut.safetensors: a log-probability is not a number" "$work/err" || die "NaN: $(cat "$work/err")"

printf 'use "dpo-lora.dpo"\nobjective words() {\n    loss = mean(token_logp(policy, chosen) - token_logp(reference, chosen))\n}\n' > "$work/words.dpo"
"$dpoc" check "$work/words.dpo" --model $cases/gqa --set graph.ref=cached > "$work/out" 2>&1 && die "token log-probs of a cached reference"
grep -q "known per answer only" "$work/out" || die "$(cat "$work/out")"
exit 0
