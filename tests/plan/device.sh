#!/bin/sh
# plan for a GPU where there is none: sm_80 and bf16, and it says so; the budget is --memory less graph.reserve, exactly.
. tests/e2e/lib.sh
export CUDA_VISIBLE_DEVICES=-1 # also where there is one
model=$work/model
mkdir -p "$model"
cp $cases/gqa/config.json "$model"
plan() { "$dpoc" plan models/dpo-lora.dpo --model "$model" "$@" 2> "$work/err"; }
key() { sed -n "s/^ *\"$1\": *\"\{0,1\}\([^\",]*\).*/\1/p"; } # KEY, of plan --json
plan --json --device=cuda > "$work/cuda" || die "plan --device=cuda failed: $(cat "$work/err")"
grep -q "^note: planned for sm_80" "$work/err" || die "nothing says what it was planned for: $(cat "$work/err")"
plan --json --arch=sm_80 > "$work/arch" || die "plan --arch failed"
cmp "$work/cuda" "$work/arch" || die "--device=cuda and --arch=sm_80 differ"
plan --json --device=cpu > "$work/cpu" || die "plan --device=cpu failed"
[ "$(key device < "$work/cpu")" = cpu ] && [ "$(key device < "$work/cuda")" = sm_80 ] || die "devices"
plan --json --arch=sm_80 --set graph.compute=bf16 > "$work/bf16"
[ "$(key peak_bytes < "$work/bf16")" = "$(key peak_bytes < "$work/cuda")" ] || die "a GPU computes in bf16"

peak=$(key peak_bytes < "$work/cuda")
[ "$(key budget_bytes < "$work/cuda")" = 0 ] || die "no device, no budget given: no limit"
reserve=$((768 << 20))
for give in 0 -1; do # exactly enough; one byte less must recompute something
    plan --json --arch=sm_80 --set graph.memory=$((peak + reserve + give)) > "$work/tight" || die "$give: $(cat "$work/err")"
    [ "$(key budget_bytes < "$work/tight")" = $((peak + give)) ] || die "budget $(key budget_bytes < "$work/tight")"
    [ "$(key peak_bytes < "$work/tight")" -le $((peak + give)) ] || die "over the budget"
done
plan --arch=sm_80 --memory=700MiB && die "a budget below the reserve"
[ $? -eq 2 ] && grep -q "graph.reserve, 768.0 MiB" "$work/err" || die "reserve: $(cat "$work/err")"
plan --arch=sm_80 --memory=769MiB > /dev/null
[ $? -eq 4 ] && grep -q "beside graph.reserve" "$work/err" || die "does not fit: $(cat "$work/err")"

"$dpoc" eval models/dpo-lora.dpo --model "$model" --random-weights --data $cases/gqa/pairs.jsonl --device=cuda 2> "$work/err"
[ $? -eq 3 ] || die "a GPU that is not there: $(cat "$work/err")"
"$dpoc" ops --debug=sync > /dev/null || die "--debug=sync"
DPOC_DEBUG=sink "$dpoc" ops > "$work/out" 2> "$work/err"
[ $? -eq 2 ] && grep -q "no word 'sink'" "$work/err" || die "an unknown word: $(cat "$work/err")"
