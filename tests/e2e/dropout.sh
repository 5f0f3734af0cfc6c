#!/bin/sh
# Dropout masks belong to pairs and positions: the same whatever the packing, the budget, the threads;
# another seed or step gives others; the loss at rate 0 is not the loss at rate 0.3.
. tests/e2e/lib.sh
# loss_of OUT [flags]: "loss grad_norm" of each step
loss_of() {
    out=$work/run-$1
    shift
    train_case gqa "$out" --overwrite --set run.steps=4 --set run.warmup=0 "$@" || die "training failed: $*"
    sed -nE 's/.*"grad_norm":([0-9.e-]+).*"loss":([0-9.e-]+).*/\2 \1/p' "$out/metrics.jsonl"
}
near() { # near A B: step by step within 1e-5
    paste "$1" "$2" | awk '{ for (i = 1; i <= 2; i++) { d = $i - $(i + 2); if (d < 0) d = -d
        if (d > 1e-5 * ($i > 1 ? $i : 1)) bad = 1 } n++ } END { exit bad || n != 4 }'
}
loss_of base --set pref.dropout=0.3 > "$work/base"
[ "$(wc -l < "$work/base")" = 4 ] || die "no four steps"
loss_of micro --set pref.dropout=0.3 --set run.tokens=80 > "$work/micro"
near "$work/base" "$work/micro" || die "other micro-batches, other masks"
loss_of apart --set pref.dropout=0.3 --set graph.prefix=off > "$work/apart"
near "$work/base" "$work/apart" || die "the shared prompt has other masks"
least=$("$dpoc" plan models/dpo-lora.dpo --model $cases/gqa --set pref.rank=4 --set pref.dropout=0.3 --memory=1MiB --json |
    grep -oE '"peak_bytes": ?[0-9]+' | grep -oE '[0-9]+$')
loss_of tight --set pref.dropout=0.3 --memory=$((least + 65536)) > "$work/tight"
cmp "$work/base" "$work/tight" || die "recompute draws other masks"
loss_of seed --set pref.dropout=0.3 --seed=7 > "$work/seed"
near "$work/base" "$work/seed" && die "another seed gives the same masks"
loss_of zero > "$work/zero"
near "$work/base" "$work/zero" && die "dropout does nothing"
exit 0
