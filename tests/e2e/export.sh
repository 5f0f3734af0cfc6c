#!/bin/sh
# Two steps of training, then out: the merged model scores pairs as base and adapter do, from an nf4 base too, after full
# fine-tuning, with tied weights; `eval` is what says so, beside the check that `export` makes itself.
. tests/e2e/lib.sh
printf 'use "dpo-lora.dpo"\nadapter pref = lora(rank = 2, alpha = 8) on all_linear\n' > "$work/plain.dpo"
printf 'use "dpo-lora.dpo"\nadapter pref = lora(rank = 2, alpha = 8) on all_linear\nquantize base nf4(block = 64, double = true) on "*_proj"\n' > "$work/nf4.dpo"
printf 'use "dpo-lora.dpo"\nadapter pref = lora(rank = 2, alpha = 8, dora = true) on all_linear, lora(rank = 2, dora = true) on "{embed_tokens,lm_head}"\n' > "$work/tied.dpo"
printf 'use "dpo-lora.dpo"\nadapter pref = lora(rank = 2, alpha = 8, rslora = true, init = "pissa") on all_linear\n' > "$work/pissa.dpo"
printf 'use "dpo-lora.dpo"\npolicy = base\nreference = policy at start\ntrain base\n' > "$work/full.dpo"
printf 'use "objectives/sft.dpo"\nbase = auto\nadapter pref = lora(rank = 2) on all_linear\npolicy = base + pref\ntrain pref\n' > "$work/sft.dpo"
printf 'use "objectives/dpo.dpo"\nbase = auto\npolicy = base\nreference = base\n' > "$work/merged.dpo"

train() { # NAME CASE
    "$dpoc" train "$work/$1.dpo" --model $cases/$2 --data $cases/$2/pairs.jsonl --set run.steps=2 --set run.batch=4 \
        --set run.lr=1e-2 --quiet -o "$work/$1" 2> "$work/err" || { cat "$work/err" >&2; die "training of $1 failed"; }
}
export_it() { # FROM OUT FORMAT [flags]
    from=$1 out=$2 format=$3
    shift 3
    "$dpoc" export "$work/$from" --format=$format -o "$work/$out" "$@" 2> "$work/$out.txt" ||
        { cat "$work/$out.txt" >&2; die "export of $from as $format failed"; }
}
scores() { # SPEC MODEL CASE RESULT [flags]: log-probability and tokens of every answer
    spec=$1 model=$2 case=$3 result=$4
    shift 4
    "$dpoc" eval "$work/$spec.dpo" --model "$model" --data $cases/$case/pairs.jsonl --json "$@" 2> "$work/err" > "$work/json" ||
        { cat "$work/err" >&2; die "eval of $model failed"; }
    grep -o '"\(logp_[a-z]*\|[a-z]*_tokens\)":[-0-9.e+]*' "$work/json" | cut -d: -f2 | paste -d' ' - - - - |
        awk '{ print $1, $3; print $2, $4 }' > "$work/$result"
}
# TRAINED BF16 MERGED U: rounding errors are independent and small, so they act linearly: what rounding everything to bf16
# (u = 2^-8) does to a log-probability, per token, tells what rounding the weights to u does, fp32's sums of at most 97
# terms included; six times that, and fp32's own sum over the answer.
close() {
    paste -d' ' "$work/$1" "$work/$2" "$work/$3" | awk -v u="$4" '
        { n++; t[n] = $2; x[n] = $1; d[n] = $5 - $1; e += ((($3 - $1) / $2) ^ 2 - e) / n }
        END {
            for (i = 1; i <= n; i++) {
                bound = 6 * sqrt(e) * (u + 2 ^ -24 * sqrt(97)) * 256 * t[i] + 2 ^ -24 * sqrt(t[i]) * -x[i]
                if ((d[i] < 0 ? -d[i] : d[i]) > bound) { print "answer " i ": " x[i] " + " d[i] ", bound " bound; bad = 1 }
            }
            exit bad || n != 12
        }'
}
u_fp16=0.00048828125 u_fp32=0.000000059604644775390625

train plain gqa
train nf4 gqa
train tied mha_tied
train pissa gqa
train full gqa
train sft gqa
for run in plain:gqa nf4:gqa pissa:gqa tied:mha_tied; do
    name=${run%:*} case=${run#*:}
    for compute in fp32 bf16; do
        scores $name $cases/$case $case $name.$compute --adapter "$work/$name/adapter" --set graph.compute=$compute
    done
    for dtype in fp16 fp32; do
        case $name.$dtype in tied.fp32 | pissa.fp16) continue ;; esac
        export_it $name $name-$dtype merged --dtype=$dtype
        scores merged "$work/$name-$dtype" $case $name.merged
        eval "u=\$u_$dtype"
        close $name.fp32 $name.bf16 $name.merged $u || die "$name as $dtype does not score as base and adapter"
    done
done
grep -q 'tie_word_embeddings": false' "$work/tied-fp16/config.json" || die "two weights, and the config says one"
# the original base is another model than the one that was trained on
export_it nf4 nf4-original merged --dtype=fp32 --base=original --no-check
scores merged "$work/nf4-original" gqa nf4.original
close nf4.fp32 nf4.bf16 nf4.original $u_fp32 > "$work/far" && die "the original base scores as the quantized one"
# full fine-tuning: what training left is what is written
export_it full full-fp32 merged --dtype=fp32
grep -q 'written' "$work/full-fp32.txt" || die "no word about the result"
# an objective that knows no rejected answers
export_it sft sft-fp16 merged --dtype=fp16
grep -q 'of 4 random answers' "$work/sft-fp16.txt" || die "sft: not four answers"
# a checkpoint of the run; the adapter as it is, and for llama.cpp
export_it plain plain-peft peft --checkpoint=2
cmp "$work/plain/adapter/adapter_model.safetensors" "$work/plain-peft/adapter_model.safetensors" || die "peft: other bytes"
export_it plain plain.gguf gguf-lora --dtype=fp16
[ "$(head -c 4 "$work/plain.gguf")" = GGUF ] || die "no GGUF file"

refuse() { # EXIT WORDS flags..
    want=$1 words=$2
    shift 2
    "$dpoc" export "$@" > "$work/out" 2> "$work/err"
    rc=$?
    [ $rc = "$want" ] || { cat "$work/err" >&2; die "export $*: exit $rc, not $want"; }
    grep -q -- "$words" "$work/err" || { cat "$work/err" >&2; die "export $*: nothing about '$words'"; }
    [ ! -e "$work/new" ] && [ ! -e "$work/new.part" ] || die "export $*: left something"
}
refuse 2 overwrite "$work/plain" --format=peft -o "$work/plain-peft"
refuse 2 -- --format "$work/plain" --format=onnx -o "$work/new"
refuse 2 checkpoint-2 "$work/plain" --format=peft --checkpoint=7 -o "$work/new"
refuse 2 merged "$work/full" --format=peft -o "$work/new"
refuse 5 run.json "$work/plain-fp16" --format=peft -o "$work/new"
refuse 1 DoRA "$work/tied" --format=gguf-lora -o "$work/new"
refuse 2 "would replace" "$work/plain" --format=merged -o "$work/plain" --overwrite
refuse 2 "would replace" "$work/plain" --format=merged -o "$work" --overwrite
mkdir "$work/broken" && cp -r "$work/plain/run.json" "$work/plain/checkpoint-2" "$work/broken"
refuse 5 "broken/checkpoint-2" "$work/broken" --format=peft -o "$work/new"
export_it broken/checkpoint-2 broken-peft peft
cmp "$work/broken-peft/adapter_model.safetensors" "$work/plain-peft/adapter_model.safetensors" || die "a checkpoint by its name: other bytes"
rm "$work/plain/adapter/adapter_model.safetensors"
refuse 5 adapter_model "$work/plain" --format=merged -o "$work/new"
export_it nf4 plain-peft peft --overwrite
[ -f "$work/plain-peft/adapter_model.safetensors" ] || die "--overwrite left nothing"
