#!/bin/sh
# Each pass can be switched off, and what it promised then goes: kernels, FLOPs, bytes of the plan.
set -e
: "${BUILD:=build}"
model=$BUILD/tests/switches-model
mkdir -p "$model"
cp tests/num/cases/gqa/config.json "$model"
file=models/dpo-lora.dpo
figure() { # KEY [flags]: one number of the plan
    key=$1
    shift
    "$BUILD/dpoc" plan "$file" --model "$model" --random-weights --json --set graph.compute=bf16 "$@" \
        2> "$model/err" | sed -n "s/^ *\"$key\": *\([0-9]*\).*/\1/p"
}
more() { # KEY PASS: larger with the pass switched off
    on=$(figure "$1") off=$(figure "$1" --set "graph.$2=off")
    echo "$2: $1 $on, without $off"
    [ -n "$on" ] && [ "$on" -lt "$off" ] || { cat "$model/err"; exit 1; }
}
more kernels fold
more kernels gemm
more kernels fuse
more peak_bytes gemm
more peak_bytes remat
more flops_per_step defer
file=tests/pass/quantized.dpo
more weight quant
more kernels share
