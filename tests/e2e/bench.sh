#!/bin/sh
# bench: its document holds what CLI.md says and more; FLOPs executed are the algorithm's and those again, no kernel
# beats its ceiling; variants agree or it is exit 6; an earlier run can be compared with; variants can be loaded in
# turn; each pass switched off changes its counter by what it promised.  No time is looked at.
. tests/e2e/lib.sh
printf 'use "dpo-lora.dpo"\nvariant plain { graph { fuse = off } }\nvariant other { adapter pref = lora(rank = 8) on "q_proj" }\n' \
    > "$work/two.dpo"
data="--model $cases/gqa --data $cases/gqa/pairs.jsonl"
bench() { "$dpoc" bench "$work/two.dpo" $data --set run.batch=4 --set run.tokens=64 "$@"; }
rows() { sed 's/{"name":/\n&/g' "$1" > "$work/rows"; } # a line for each variant
field() { sed -n "s/^{\"name\":\"$1\".*/&/p" "$work/rows" | sed -E "s/\"kernels\":.*//; s/.*\"$2\":([^,}]*).*/\1/"; }
holds() { awk "BEGIN { exit !($1) }" || die "$2: $1"; }

bench --runs 6 --json > "$work/first.json" 2> "$work/err" || die "bench failed: $(cat "$work/err")"
rows "$work/first.json"
for key in device context gemm_rate bandwidth ceilings load_average version interleaved; do
    sed -n 1p "$work/rows" | grep -q "\"$key\":" || die "no $key"
done
[ "$(grep -c '"median_ms":' "$work/rows")" -eq 3 ] || die "not three variants"
for key in name differs min_ms max_ms mean_ms deviation_ms runs samples_ms tokens_per_second peak_bytes flops \
    flops_executed bytes launches roofline loss grad_norm loss_apart must_agree kernels; do
    [ "$(grep '"median_ms":' "$work/rows" | grep -c "\"$key\":")" -eq 3 ] || die "no $key"
done
for key in ratio ratio_low ratio_high p; do
    [ "$(grep -c "\"$key\":" "$work/rows")" -eq 2 ] || die "$key is that of all but the first"
done
[ "$(sed -n 's/.*"samples_ms":\[\([^]]*\)\].*/\1/p' "$work/rows" | awk -F, '{ print NF }' | sort -u)" = 6 ] || die "samples"
grep -q '"label":"matmul model.layers.\*.mlp.up_proj"' "$work/rows" || die "layers are not one row"
[ "$(field plain must_agree) $(field other must_agree)" = "true false" ] || die "who must agree"
holds "$(field plain loss_apart) <= $(field plain tolerance)" "losses are apart"
holds "$(field plain grad_apart) <= $(field plain tolerance)" "gradients are apart"
[ "$(field other grad_apart)" = null ] || die "gradients of other tensors were compared"
# Executed FLOPs are those of all kernels; filled up to whole buckets, and some again, they are more than the algorithm's.
sed -E 's/"(label|median_ms|flops_executed|flops_again|flops|roofline)":/\n\1 /g' "$work/rows" | awk -F '[ ,]' '
    function close_one() { if (n++ && (sum < step * 0.9999 || sum > step * 1.0001)) { print sum " of " step; bad = 1 } sum = 0 }
    /^median_ms/ { close_one(); whole = 1 }
    /^label/ { whole = 0 }
    /^flops / { if (whole) algorithm = $2; else sum += $2 }
    /^flops_again/ { again += $2 }
    /^flops_executed/ { step = $2; if (step < algorithm) { print step " executed of " algorithm; bad = 1 } }
    /^roofline/ { if (!whole && $2 > 1.0001) { print "roofline " $2; bad = 1 } }
    END { close_one(); exit bad || n != 4 || !(step > 0) || !(again > 0) }' || die "FLOPs of the kernels"

bench --runs 1 > "$work/table" 2> "$work/err" || die "no table: $(cat "$work/err")"
awk '/must compute the same/ { told = NR } /^variant/ { table = NR } END { exit !(told && told < table) }' "$work/table" ||
    die "agreement stands before the times"
grep -q "^other computes something else" "$work/table" || die "another adapter is another result"
bench --runs 1 --markdown --in-turn --variants plain 2> "$work/err" > "$work/md" || die "no Markdown: $(cat "$work/err")"
[ "$(grep -c '^|' "$work/md")" -eq 4 ] && grep -q 'loaded one after another' "$work/md" || die "Markdown in turn"
[ "$(awk -F'|' '/^[|]/ { print NF }' "$work/md" | sort -u)" = 16 ] || die "rows of the table are not alike"

# A cached reference is not in the step, and it is said; an objective that crosses pairs has the same algorithm, whose
# policy goes forward twice.
{ echo 'use "objectives/aot.dpo"'; sed '/^objective/,/^}/d' models/dpo-lora.dpo; } > "$work/aot.dpo"
printf 'use "dpo-lora.dpo"\nvariant cached { graph { ref = cached } }\n' > "$work/three.dpo"
"$dpoc" bench "$work/three.dpo" $data --set run.batch=6 --set run.tokens=64 --variants cached --runs 1 --json \
    > "$work/three.json" 2> "$work/err" || die "a cached reference: $(cat "$work/err")"
rows "$work/three.json"
online=$(field "as written" flops) executed=$(field "as written" flops_executed)
[ "$(field cached step)" = '"from the second epoch or run"' ] && [ "$(field "as written" step)" = '"every"' ] || die "which step"
[ "$(field cached must_agree)" = true ] || die "a cached reference is the same"
holds "$(field cached flops) < 0.85 * $online" "a cached reference is not computed"
"$dpoc" bench "$work/aot.dpo" $data --set run.batch=6 --set run.tokens=64 --runs 1 --json > "$work/aot.json" 2> "$work/err" ||
    die "an objective that crosses pairs: $(cat "$work/err")"
rows "$work/aot.json"
holds "$(field "as written" flops) == $online && $(field "as written" flops_executed) > 1.2 * $executed" "a coupled step"

# An earlier run that was a thousand times faster, and one as much slower.
for by in 0.001 1000; do
    sed -E 's/"median_ms":[0-9.]+|"samples_ms":\[[^]]*\]/\n&\n/g' "$work/first.json" | awk -v by=$by '
        /^"median_ms":/ { split($0, a, ":"); $0 = a[1] ":" a[2] * by }
        /^"samples_ms":/ { n = split($0, a, /[][,]/); $0 = "\"samples_ms\":[" a[2] * by
            for (i = 3; i < n; i++) $0 = $0 "," a[i] * by
            $0 = $0 "]" }
        { print }' > "$work/old-$by.json"
done
bench --runs 4 --variants plain --threshold 50 --compare "$work/old-1000.json" > "$work/table" 2> "$work/err" ||
    die "faster is no regression: $(cat "$work/err")"
[ "$(grep -c 'of its earlier time' "$work/table")" -eq 2 ] || die "nothing was compared"
bench --runs 4 --variants plain --compare "$work/old-0.001.json" > "$work/table" 2> "$work/err" || die "no threshold, no verdict"
bench --runs 4 --variants plain --threshold 50 --compare "$work/old-0.001.json" > "$work/table" 2> "$work/err"
[ $? -eq 1 ] && grep -q 'a regression' "$work/table" || die "a regression is exit 1"
bench --compare "$work/none.json" > "$work/table" 2> "$work/err"
[ $? -eq 5 ] && [ ! -s "$work/table" ] || die "a missing file is exit 5, before anything is run"
bench --threshold 5 2> "$work/err" && die "a threshold of what?"
bench --runs 1 --variants plain --set dpo.beta=1e38 > "$work/table" 2> "$work/err"
[ $? -eq 6 ] && grep -q 'loss' "$work/err" || die "a loss that is no number is exit 6: $(cat "$work/err")"

# Effects: adapters in the last layer only, so that the first is shared; a quantized base; prompts to share.
printf 'use "dpo-lora.dpo"\nquantize base nf4(block = 64, double = true) on "model.layers[*].**.*_proj"
adapter pref = lora(rank = 4, alpha = 8) on "model.layers[1].**.*_proj"\n' > "$work/top.dpo"
"$dpoc" bench "$work/top.dpo" $data --set run.batch=16 --set run.tokens=256 --effects --runs 1 --json \
    --variants fold,slice,defer,share,remat,gemm,fuse,order,prefix,quant > "$work/effects.json" 2> "$work/err" ||
    die "--effects failed: $(cat "$work/err")"
rows "$work/effects.json"
more() { # PASS KEY: larger without
    holds "$(field "without $1" "$2") > $(field "as written" "$2")" "$2 without $1"
}
more fold launches
more slice flops; more slice flops_executed
more defer flops_executed
more share launches
more remat peak_bytes
more gemm launches; more gemm bytes
more fuse launches; more fuse bytes
more order peak_bytes
more prefix flops; more prefix flops_executed; more prefix bytes
holds "$(field "as written" launches) > $(field "without quant" launches)" "dequantizations"
[ "$(field "without quant" must_agree)" = false ] || die "other weights, another loss"
holds "$(field "without defer" flops) == $(field "as written" flops)" "logits again are not the algorithm's"
"$dpoc" bench "$work/top.dpo" $data --effects --variants fues 2> "$work/err"
[ $? -eq 1 ] && grep -q "did you mean 'fuse'" "$work/err" || die "a pass that is none: $(cat "$work/err")"
