#!/bin/sh
# Adapters of every kind, trained from a fresh start with dropout: resumed they end as unbroken; the same masks in other
# micro-batches and where values are computed again.
. tests/e2e/lib.sh
# kind NAME ADAPTER: $work/NAME.dpo, with this adapter
kind() {
    sed "s/^adapter .*/adapter pref = $2/" models/dpo-lora.dpo > "$work/$1.dpo"
}
train() { # train NAME OUT [flags]
    name=$1 out=$2
    shift 2
    "$dpoc" train "$work/$name.dpo" --device=cpu --model $cases/gqa --data $cases/gqa/pairs.jsonl --quiet -o "$work/$out" \
        --set run.batch=4 --set run.lr=1e-2 --set run.steps=4 --set run.warmup=0 --set run.save_every=2 "$@" ||
        die "$name: training failed"
}
losses() {
    sed -nE 's/.*"grad_norm":([0-9.e-]+).*"loss":([0-9.e-]+).*/\2 \1/p' "$work/$1/metrics.jsonl"
}
near() { # near A B: step by step within 1e-5
    paste "$1" "$2" | awk '{ for (i = 1; i <= 2; i++) { d = $i - $(i + 2); if (d < 0) d = -d
        if (d > 1e-5 * ($i > 1 ? $i : 1)) bad = 1 } n++ } END { exit bad || n != 4 }'
}
kind dora 'lora(rank = 4, dora = true, dropout = 0.3) on all_linear'
kind rows 'lora(rank = 4) on "model.embed_tokens", lora(rank = 4, dropout = 0.3) on "v_proj", lora(rank = 2) on "lm_head"'
kind pissa 'lora(rank = 4, init = "pissa", dropout = 0.3) on all_linear'
for name in dora rows pissa; do
    train $name $name
    [ $name != pissa ] || [ -s "$work/pissa/start/pref/adapter_model.safetensors" ] || die "the start is not kept"
    cp -r "$work/$name" "$work/$name-again"
    rm -rf "$work/$name-again/checkpoint-4" "$work/$name-again/adapter"
    train $name $name-again --resume
    cmp "$work/$name/adapter/adapter_model.safetensors" "$work/$name-again/adapter/adapter_model.safetensors" ||
        die "$name: another adapter after resuming"
    train $name $name-micro --set run.tokens=80
    losses $name > "$work/want"
    losses $name-micro > "$work/got"
    near "$work/want" "$work/got" || die "$name: other micro-batches, other masks"
done
least=$("$dpoc" plan "$work/dora.dpo" --model $cases/gqa --memory=1MiB --json | grep -oE '"peak_bytes": ?[0-9]+' | grep -oE '[0-9]+$')
train dora dora-tight --memory=$((least + 65536))
cmp "$work/dora/adapter/adapter_model.safetensors" "$work/dora-tight/adapter/adapter_model.safetensors" ||
    die "recompute draws other masks"
exit 0
