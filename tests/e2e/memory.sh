#!/bin/sh
# Memory: a budget that is too small is said before running, a tight one is met with the same bits.
. tests/e2e/lib.sh
flags="--set run.steps=3 --set run.tokens=1024 --overwrite"
peak() { "$dpoc" plan models/dpo-lora.dpo --model $cases/gqa --set pref.rank=4 --set run.tokens=1024 --json "$@" |
    grep -oE '"peak_bytes": ?[0-9]+' | grep -oE '[0-9]+$'; }
whole=$(peak --memory=1GiB) || die "plan failed"
train_case gqa "$work/free" $flags || die "training failed"
least=$(peak --memory=1MiB)
[ "$least" -lt "$whole" ] || die "recompute saves nothing: $least of $whole bytes"
# FLOPs of the step itself do not depend on what is computed again
useful() { "$dpoc" plan models/dpo-lora.dpo --model $cases/gqa --set pref.rank=4 --set run.tokens=1024 --json --memory=$1 |
    awk '/"flops_per_step"/ { all = $2 + 0 } /"flops_again"/ { again = $2 + 0 } END { print (again > 0), all - again }'; }
[ "$(useful 1GiB)" = "0 $(useful 1MiB | cut -d' ' -f2)" ] && [ "$(useful 1MiB | cut -d' ' -f1)" = 1 ] ||
    die "FLOPs but for recompute: $(useful 1GiB) with memory, $(useful 1MiB) without"
tight=$(((whole + least) / 2))
train_case gqa "$work/tight" $flags --memory=$tight || die "training in $tight bytes failed"
plain_metrics "$work/free/metrics.jsonl" | sed -E 's/"(memory_bytes|peak_bytes)":[0-9]+,?//g' > "$work/a"
plain_metrics "$work/tight/metrics.jsonl" | sed -E 's/"(memory_bytes|peak_bytes)":[0-9]+,?//g' > "$work/b"
cmp "$work/a" "$work/b" || die "recompute changes bits"
cmp "$work/free/adapter/adapter_model.safetensors" "$work/tight/adapter/adapter_model.safetensors" || die "recompute changes the adapter"
train_case gqa "$work/none" $flags --memory=1MiB 2> "$work/err"
rc=$?
[ $rc = 4 ] || die "exit status $rc, not 4, where nothing fits: $(cat "$work/err")"
grep -q '\.dpo' "$work/err" || die "the message names no .dpo line: $(cat "$work/err")"
[ ! -e "$work/none/metrics.jsonl" ] || die "it began to run"
