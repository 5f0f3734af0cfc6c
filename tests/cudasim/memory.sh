#!/bin/sh
# Memory and machines on the simulated device: what an A100 of 40 GB holds; what does not fit is said before anything
# is lost; drivers, libraries and devices that cannot be used; no allocation inside a step.
. tests/cudasim/lib.sh
case=$cases/gqa
run() { # run OUT [flags]
    out=$1
    shift
    on_sim "$dpoc" train models/dpo-lora.dpo --device=cuda --model $case --data $case/pairs.jsonl --quiet -o "$out" \
        --set pref.rank=4 --set run.batch=3 --set run.tokens=256 --set run.steps=2 "$@"
}
expect() { # expect CODE PATTERN COMMAND..
    wanted=$1 pattern=$2
    shift 2
    exits "$wanted" "$@"
    [ -z "$pattern" ] || grep -qE -- "$pattern" "$work/out" "$work/err" || die "no '$pattern' in: $(cat "$work/out" "$work/err")"
}
export CUDASIM_MEMORY=40GiB
expect 0 "" run "$work/run"
# A plan above what is free ends before the run that is there is touched; so does a budget it cannot meet.
cp -r "$work/run" "$work/kept"
for memory in "CUDASIM_MEMORY=800MiB" "DPOC_NOTHING=1 --memory=770MiB"; do
    # shellcheck disable=SC2086 # a variable, and perhaps a flag
    set -- $memory
    export "$1"
    flags=${2:-}
    expect 4 "[MG]iB" run "$work/run" --overwrite $flags
    grep -q '\.dpo' "$work/err" || die "the message names no line of the .dpo file: $(cat "$work/err")"
    same_run "$work/run" "$work/kept" || die "what was there before is gone"
    export CUDASIM_MEMORY=40GiB
done
expect 4 "the plan needs" on_sim "$dpoc" plan models/dpo-lora.dpo --device=cuda --model $case --set pref.rank=4 --memory=769MiB

# Nothing is allocated, registered or compiled in the second half of the launches (the first steps still choose).
export CUDASIM_TRACE=$work/trace
rm -f "$work/trace"
expect 0 "" run "$work/traced" --set run.steps=6
unset CUDASIM_TRACE
awk '/^cuLaunchKernel/ { last = NR; if (!first) first = NR } { line[NR] = $1 }
    END { middle = int(first + (last - first) / 2); if (!first) { print "no launch"; exit 1 }
        for (i = middle; i <= last; i++) if (line[i] ~ /MemAlloc|MemFree|MemHost|MemCreate|ModuleLoad|nvrtcCompile|LtMatmulAlgoGetHeuristic|DescCreate|LayoutCreate/) { print line[i] " in line " i; exit 1 } }' \
    "$work/trace" || die "an allocation inside a step"
[ "$(grep -c '^cuMemAlloc_v2\|^cuMemAlloc ' "$work/trace")" = 1 ] || die "not one arena: $(grep -c '^cuMemAlloc' "$work/trace") allocations"

# Machines.
CUDASIM_DRIVER=11080 expect 3 "11\.8" run "$work/none"
CUDASIM_SM=75 expect 3 "7\.5" run "$work/none"
mkdir -p "$work/only13"
for lib in libcuda.so.1 libnvrtc.so.13 libcublasLt.so.13; do ln -sf "$sim/$lib" "$work/only13/"; done
saved=$sim sim=$work/only13
CUDASIM_DRIVER=12040 CUDA_HOME=/nowhere expect 3 "nvrtc|NVRTC" run "$work/none"
grep -qiE "12" "$work/err" || die "the message does not name what is needed: $(cat "$work/err")"
sim=$saved
DPOC_CACHE_DIR=$DPOC_CACHE_DIR expect 3 "driver|libcuda" "$dpoc" eval models/dpo-lora.dpo --device=cuda --model $case --data $case/pairs.jsonl
[ ! -e "$work/none" ] || [ -z "$(ls "$work/none")" ] || die "a run that could not start left files"
