#!/bin/sh
# bench: its document holds what CLI.md says; the FLOPs of the kernels, counted while they run, are the step's, counted
# from the plan; an earlier run can be compared with.
. tests/e2e/lib.sh
printf 'use "dpo-lora.dpo"\nvariant plain { graph { fuse = off } }\n' > "$work/two.dpo"
bench() { "$dpoc" bench "$work/two.dpo" --model $cases/gqa --data $cases/gqa/pairs.jsonl --set run.batch=4 \
    --set run.tokens=64 --runs 2 "$@"; }
bench --json > "$work/first.json" 2> "$work/err" || die "bench failed: $(cat "$work/err")"
tr '{' '\n' < "$work/first.json" > "$work/rows"
for key in device gemm_rate bandwidth; do
    sed -n 2p "$work/rows" | grep -q "\"$key\":" || die "no $key"
done
[ "$(grep -c '"median_ms":' "$work/rows")" -eq 2 ] || die "not two variants"
for key in name differs min_ms max_ms runs tokens_per_second peak_bytes flops roofline loss kernels; do
    [ "$(grep '"median_ms":' "$work/rows" | grep -c "\"$key\":")" -eq 2 ] || die "no $key"
done
grep -q '"label":"matmul model.layers.\*.mlp.up_proj"' "$work/rows" || die "layers are not one row"
# Products and attention of all kernels, for each variant; figures have six digits.
sed -E 's/"(kind|median_ms|flops|roofline)":/\n\1 /g' "$work/rows" | awk '
    function close_one() { if (n++ && (sum < step * 0.9999 || sum > step * 1.0001)) { print sum " of " step; bad = 1 } sum = 0 }
    /^median_ms/ { close_one(); whole = 1 }
    /^kind/ { counts = /gemm|attend/; whole = 0 }
    /^flops/ { split($2, f, ","); if (whole) step = f[1]; else if (counts) sum += f[1] }
    END { close_one(); exit bad || n != 3 || !(step > 0) }' || die "the kernels' FLOPs are not the step's"
bench --compare "$work/first.json" > "$work/table" || die "--compare failed"
[ "$(grep -c 'of its earlier time' "$work/table")" -eq 2 ] || die "nothing was compared"
bench --compare "$work/none.json" 2> "$work/err" && die "a file that is not there"
[ $? -eq 5 ] || die "a missing file is exit 5"
