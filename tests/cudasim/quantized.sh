#!/bin/sh
# Quantized weights on the simulated device: a checkpoint of bitsandbytes', and one quantized there while it is read,
# train as on the CPU; the same weights as plain numbers give the same bits.
. tests/cudasim/lib.sh
# train_quantized DEVICE NAME SPEC OUT [flags]
train_quantized() {
    device=$1 name=$2 spec=$3 out=$4
    shift 4
    on_sim "$dpoc" train "$spec" --device="$device" --model $cases/"$name" --data $cases/"$name"/pairs.jsonl \
        --adapter $cases/"$name"/adapter --set pref.rank=4 --set pref.alpha=8 --set run.batch=4 --set run.lr=1e-2 \
        --set run.steps=4 --set run.tokens=128 --set graph.compute=fp32 --quiet -o "$work/$out" "$@" 2> "$work/said" ||
        { cat "$work/said"; die "$name on $device failed"; }
}
for name in bnb_nf4 bnb_int8; do
    for device in cpu cuda; do
        train_quantized $device $name models/dpo-lora.dpo $name.$device
        train_quantized $device $name models/dpo-lora.dpo $name.$device.plain --set graph.quant=off
        cmp "$work/$name.$device/adapter/adapter_model.safetensors" \
            "$work/$name.$device.plain/adapter/adapter_model.safetensors" || die "$name on $device: plain weights give other bits"
    done
    near_run "$work/$name.cpu" "$work/$name.cuda" 400 || die "$name: other figures than on the CPU"
done
train_quantized cpu gqa tests/pass/quantized.dpo gqa.cpu
train_quantized cuda gqa tests/pass/quantized.dpo gqa.cuda
near_run "$work/gqa.cpu" "$work/gqa.cuda" 400 || die "quantized while it is read: other figures than on the CPU"
