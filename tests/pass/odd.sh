#!/bin/sh
# An odd model (odd.dpo) on the CPU against the double-precision evaluator, with passes on and off: what a
# person's own .dpo file may ask of the passes, without C.
set -e
: "${BUILD:=build}"
command -v cc > /dev/null || { echo "no cc to compile kernels with"; exit 77; }
model=$BUILD/tests/odd-model
mkdir -p "$model"
cp tests/num/cases/gqa/config.json "$model"
verify() {
    echo "verify $*"
    "$BUILD/dpoc" verify tests/pass/odd.dpo --model "$model" --random-weights --device=cpu --quiet "$@" \
        > "$model/out" 2>&1 || { cat "$model/out"; exit 1; }
    grep " 0 failed" "$model/out"
}
verify
verify --set graph.fuse=off --set graph.gemm=off
verify --set graph.fold=off --set graph.cse=off --set graph.slice=off
verify --set graph.remat=off --set graph.order=off --set graph.compute=bf16
verify --variant=full
