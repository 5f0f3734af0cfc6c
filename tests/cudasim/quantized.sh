#!/bin/sh
# Quantized weights on the simulated device: a checkpoint of bitsandbytes', and one quantized there while it is read,
# train as on the CPU; the same weights as plain numbers give the same bits.
. tests/cudasim/lib.sh
# make hard: LeakSanitizer 12 crashes in its own scan of thread storage here ("Tracer caught signal 11")
export LSAN_OPTIONS=${LSAN_OPTIONS:+$LSAN_OPTIONS:}use_tls=0
# train_quantized DEVICE NAME SPEC OUT [flags]
train_quantized() {
    device=$1 name=$2 spec=$3 out=$4
    shift 4
    on_sim "$dpoc" train "$spec" --device="$device" --model $cases/"$name" --data $cases/"$name"/pairs.jsonl \
        --adapter $cases/"$name"/adapter --set pref.rank=4 --set pref.alpha=8 --set run.batch=4 --set run.lr=1e-2 \
        --set run.steps=2 --set run.tokens=128 --set graph.compute=fp32 --quiet -o "$work/$out" "$@" 2> "$work/said" ||
        { cat "$work/said"; die "$name on $device failed"; }
}
# as_on_the_cpu NAME SPEC
as_on_the_cpu() {
    train_quantized cpu "$1" "$2" "$1.cpu"
    train_quantized cuda "$1" "$2" "$1.cuda"
    near_run "$work/$1.cpu" "$work/$1.cuda" 400 || die "$1: other figures than on the CPU"
}
as_on_the_cpu bnb_nf4 models/dpo-lora.dpo
as_on_the_cpu bnb_int8 models/dpo-lora.dpo
as_on_the_cpu gqa tests/pass/quantized.dpo # quantized while it is read
for device in cpu cuda; do
    train_quantized $device bnb_nf4 models/dpo-lora.dpo $device.plain --set graph.quant=off
    cmp "$work/bnb_nf4.$device/adapter/adapter_model.safetensors" \
        "$work/$device.plain/adapter/adapter_model.safetensors" || die "plain weights give other bits on $device"
done
