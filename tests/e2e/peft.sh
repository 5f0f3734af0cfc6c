#!/bin/sh
# Adapters that PEFT wrote (tests/peers/make_adapters.py) score the same here, merged too, and go out again bit for bit.
. tests/e2e/lib.sh
case=$cases/gqa
head -n 2 $case/pairs.jsonl > "$work/pairs.jsonl"

# LOGP.TXT RESULT.json: both are fp32 evaluations of 15 products of at most 97 terms a token, each with a relative error
# of about u sqrt(97), u = 2^-24, in what makes the log-probability: 2 * 15 * sqrt(97) * 2^-24 = 1.8e-5 of it.
compare() {
    grep -o '"logp_[a-z]*":[-0-9.e+]*' "$2" | cut -d: -f2 | paste -d' ' - - > "$work/got"
    paste -d' ' "$1" "$work/got" | awk '
        function far(a, b, d) { d = a - b; if (d < 0) d = -d; return !(d <= 1.8e-5 * (a < 0 ? -a : a)) }
        { n++; if (NF != 4 || far($1, $3) || far($2, $4)) { print "want " $1 " " $2 ", got " $3 " " $4; bad = 1 } }
        END { exit bad || n != 2 }'
}
evaluate() { # SPEC MODEL RESULT
    "$dpoc" eval "$1" --model "$2" --data "$work/pairs.jsonl" --json > "$3" 2> "$work/err" || { cat "$work/err" >&2; die "$1"; }
}
export_it() { # FROM OUT FORMAT [flags]
    from=$1 out=$2 format=$3
    shift 3
    "$dpoc" export "$from" --model $case --format=$format -o "$out" --quiet "$@" 2> "$work/err" || { cat "$work/err" >&2; die "export of $from as $format"; }
}

describe() { # DIR: a program that loads it
    printf 'use "objectives/dpo.dpo"\nbase = auto\nadapter theirs = load "%s"\npolicy = base + theirs\nreference = base\n' \
        "$(realpath "$1")"
}
printf 'use "objectives/dpo.dpo"\nbase = auto\npolicy = base\nreference = base\n' > "$work/merged.dpo"
for dir in tests/io/peft/*; do
    name=$(basename $dir)
    describe $dir > "$work/$name.dpo"
    evaluate "$work/$name.dpo" $case "$work/$name.json"
    compare $dir/logp.txt "$work/$name.json" || die "$name: not PEFT's log-probabilities"
    dtype=fp32
    [ $name = half ] && dtype=fp16
    export_it $dir "$work/$name" peft --dtype=$dtype
    case $name in
    embeddings | dora_embedding | ours_back) ;; # PEFT put copies of base weights beside them
    named) cmp $dir/named/adapter_model.safetensors "$work/$name/adapter_model.safetensors" || die "$name: other bytes" ;;
    *) cmp $dir/adapter_model.safetensors "$work/$name/adapter_model.safetensors" || die "$name: other bytes" ;;
    esac
    describe "$work/$name" > "$work/$name-again.dpo"
    evaluate "$work/$name-again.dpo" $case "$work/$name-again.json"
    cmp "$work/$name.json" "$work/$name-again.json" || die "$name: scores differ after export"
    export_it $dir "$work/$name-merged" merged --dtype=fp32 --no-check
    evaluate "$work/merged.dpo" "$work/$name-merged" "$work/$name-merged.json"
    compare $dir/logp.txt "$work/$name-merged.json" || die "$name: merged, not PEFT's log-probabilities"
done
# ours -> PEFT -> ours
for f in "$work/ours/adapter_config.json" tests/io/peft/ours/adapter_config.json; do
    grep -v base_model_name "$f" > "$work/config.$(basename "$(dirname "$f")")$((n = ${n:-0} + 1))"
done
cmp "$work/config.ours1" "$work/config.ours2" || die "ours: another adapter_config.json"
cmp "$work/ours_back/adapter_model.safetensors" tests/io/peft/ours/adapter_model.safetensors || die "PEFT changed ours"
cmp "$work/ours.json" "$work/ours_back.json" || die "scores of ours differ after PEFT saved it"
