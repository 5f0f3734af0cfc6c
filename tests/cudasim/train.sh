#!/bin/sh
# Training and evaluation on the simulated device, near the CPU device step by step in fp32: plain, without shared
# prompts and with dropout, all weights trained, a quantized base, an objective that sorts, over
# three micro-batches; small trained models.
. tests/cudasim/lib.sh
# both NAME SPEC [flags]: the same run on both devices
both() {
    name=$1
    shift
    for device in cpu cuda; do
        on_sim "$dpoc" train "$@" --device=$device --quiet --overwrite -o "$work/$name-$device" \
            --set graph.compute=fp32 || die "$name: training on $device failed"
    done
    near_run "$work/$name-cpu" "$work/$name-cuda" 1000 || die "$name: not what the CPU computes"
}
case=$cases/gqa
data="--model $case --data $case/pairs.jsonl --set run.batch=3 --set run.steps=3 --set run.tokens=256 --set run.lr=1e-2"
lora="$data --set pref.rank=4 --set pref.alpha=8"
both plain models/dpo-lora.dpo $lora --adapter $case/adapter
both apart models/dpo-lora.dpo $lora --set graph.prefix=off --set pref.dropout=0.1
both full tests/num/full.dpo $data
sed 's/^base = .*/&\nquantize base nf4(block = 64, double = true) on "model.layers[*].**.*_proj"/' \
    models/dpo-lora.dpo > "$work/quantized.dpo"
both quantized "$work/quantized.dpo" $lora
sed '/^objective/,/^}/d; 1i use "objectives/aot.dpo"' models/dpo-lora.dpo > "$work/aot.dpo"
both aot "$work/aot.dpo" $lora --set run.batch=6 --set run.tokens=64 --set pref.dropout=0.1

# The demo's model, and stories260K where it is.
small="--set run.steps=1 --set run.warmup=0 --set run.batch=1 --set run.tokens=256"
head -n 2 examples/demo/heldout.jsonl > "$work/heldout.jsonl"
both demo examples/demo/concise.dpo $small --eval-data "$work/heldout.jsonl"
stories=../shared/data/stories260k
if [ -d $stories ]; then both stories models/dpo-lora.dpo --model $stories --set data.limit=16 --set data.max_length=64 \
    --data ../shared/data/ultrafeedback_1k/train_clean.jsonl $small
fi

# Per-pair log-probabilities: |d logp| <= 1e-4 max(1, |logp|).
for device in cpu cuda; do
    on_sim "$dpoc" eval models/dpo-lora.dpo --device=$device --model $case --data $case/pairs.jsonl --adapter $case/adapter \
        --set pref.rank=4 --set pref.alpha=8 --set graph.compute=fp32 --json --quiet > "$work/eval-$device" ||
        die "eval on $device failed"
    grep -oE '"(ref_)?logp_[a-z]+": ?[-0-9.e]+' "$work/eval-$device" | sed 's/.*://' > "$work/logp-$device"
done
near "$work/logp-cpu" "$work/logp-cuda" 1e-4 1e-4 logp || die "eval: not what the CPU computes"
[ -d $stories ] || { echo "no $stories: without stories260K"; exit 77; }
exit 0
