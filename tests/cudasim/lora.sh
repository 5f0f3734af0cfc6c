#!/bin/sh
# Adapters of every kind on the simulated device: DoRA, embeddings, adapted heads, plain and over a quantized base.
# One step against the evaluator in bf16, training near the CPU device in fp32.
. tests/cudasim/lib.sh
case=$cases/gqa
run() { # run NAME ADAPTER: a file with this adapter
    sed "s/^adapter .*/adapter pref = $2/" models/dpo-lora.dpo > "$work/$1.dpo"
}
run dora 'lora(rank = 4, alpha = 8, dora = true) on all_linear'
run rows 'lora(rank = 4, dora = true) on "model.embed_tokens", lora(rank = 4, dora = true) on "{v_proj,lm_head}"'
run plain_rows 'lora(rank = 4) on "model.embed_tokens", lora(rank = 4) on "v_proj"'
run pissa 'lora(rank = 4, init = "pissa") on all_linear, lora(rank = 4, init = "pissa") on "lm_head"'
sed 's/^base = .*/&\nquantize base nf4(block = 64, double = true) on "model.layers[*].**.*_proj"/' \
    "$work/dora.dpo" > "$work/quantized.dpo"
for name in dora rows plain_rows quantized pissa; do
    on_sim "$dpoc" verify "$work/$name.dpo" --device=cuda --model $case --quiet --set run.tokens=256 \
        --set graph.compute=bf16 > "$work/verify" || die "$name: $(cat "$work/verify")"
    tail -n 1 "$work/verify"
done
# What an adapter starts from adds exactly nothing: the first loss is ln 2 to the last bit.
for name in dora pissa; do
    for device in cpu cuda; do
        on_sim "$dpoc" train "$work/$name.dpo" --device=$device --quiet --overwrite -o "$work/first" --model $case \
            --data $case/pairs.jsonl --set run.steps=1 --set run.tokens=256 --set graph.compute=bf16 || die "no first step"
        grep -q '"loss":0.69314718' "$work/first/metrics.jsonl" || die "$name on $device: the first loss is not ln 2"
    done
done
for name in dora rows quantized pissa; do
    dropout=$([ $name = rows ] || [ $name = pissa ] || echo --set pref.dropout=0.1)
    for device in cpu cuda; do
        on_sim "$dpoc" train "$work/$name.dpo" --device=$device --quiet --overwrite -o "$work/$name-$device" \
            --model $case --data $case/pairs.jsonl --set run.batch=3 --set run.steps=3 --set run.tokens=256 \
            --set run.lr=1e-2 --set graph.compute=fp32 $dropout || die "$name: training on $device failed"
    done
    near_run "$work/$name-cpu" "$work/$name-cuda" 1000 || die "$name: not what the CPU computes"
done
