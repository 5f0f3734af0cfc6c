#!/bin/sh
# What a run says and does about its data: mixtures and their shares, held-out pairs, limits, named warnings, check's
# summary, fractional epochs.
. tests/e2e/lib.sh
model=$cases/gqa
for i in 1 2 3 4 5 6 7 8 9 10 11 12; do echo "{\"prompt_ids\":[1,$i],\"chosen_ids\":[3,$i],\"rejected_ids\":[4]}"; done > "$work/a.jsonl"
for i in 13 14 15 16; do echo "{\"prompt_ids\":[1,$i],\"chosen_ids\":[3,$i],\"rejected_ids\":[4]}"; done > "$work/b.jsonl"
{ cat "$work/a.jsonl"; sed -n 1p "$work/a.jsonl"; echo '{"prompt_ids":[1],"chosen_ids":[7],"rejected_ids":[7]}'; } > "$work/dirty.jsonl"
train() { # train OUT flags..
    out=$1
    shift
    "$dpoc" train models/dpo-lora.dpo --device=cpu --model $model --set run.batch=4 --set run.tokens=64 --overwrite \
        -o "$work/$out" "$@" > "$work/out" 2> "$work/err"
}
said() { grep -qF -- "$1" "$work/err" || die "no '$1' in: $(cat "$work/err")"; }
silent() { ! grep -qF -- "$1" "$work/err" || die "'$1' in: $(cat "$work/err")"; }

# 12 pairs once and 4 three times are an epoch of 24: half of each
cat models/dpo-lora.dpo > "$work/mix.dpo"
printf '\ndata { train = ["a.jsonl", "b.jsonl" weight 3] }\n' >> "$work/mix.dpo"
"$dpoc" train "$work/mix.dpo" --device=cpu --model $model --set run.batch=4 --set run.tokens=64 --set run.epochs=0.5 \
    -o "$work/mix" > "$work/out" 2> "$work/err" || die "$(cat "$work/err")"
said "an epoch: 24 pairs: 50.0 % of $work/a.jsonl (weight 1), 50.0 % of $work/b.jsonl (weight 3)"
[ "$(grep -c '"event":"step"' "$work/mix/metrics.jsonl")" = 3 ] || die "half an epoch of 24 in fours is 3 steps"

# a number and a share are held out; what equals a held-out pair is not trained on either
train split --data "$work/a.jsonl" --set data.eval=4 || die "$(cat "$work/err")"
said 'eval pairs: 4 of these, never trained on'
[ "$(grep -c '"event":"step"' "$work/split/metrics.jsonl")" = 2 ] || die "8 pairs in fours are 2 steps"
train share --data "$work/a.jsonl" --set data.eval=25% || die "$(cat "$work/err")"
said 'eval pairs: 3 of these, never trained on'
train all --data "$work/a.jsonl" --set data.eval=12
[ $? = 1 ] || die "nothing left to train on must be exit 1"
said 'none is left to train on'
train leak --data "$work/a.jsonl" --eval-data "$work/a.jsonl" --set run.steps=1 || die "$(cat "$work/err")"
said '12 of the pairs trained on are eval pairs, too [-Wleak]'
train limit --data "$work/a.jsonl" --set data.limit=8 || die "$(cat "$work/err")"
said "token ids; 8 kept of 8 read"

# warnings have names, and a name silences them
train dirty --data "$work/dirty.jsonl" --set run.steps=1 || die "$(cat "$work/err")"
said "dirty.jsonl:14: \"chosen\" and \"rejected\" are identical: nothing can be learnt from it [-Widentical]"
said "dirty.jsonl:13: the same as an earlier pair [-Wrepeated]"
train dirty --data "$work/dirty.jsonl" --set run.steps=1 -Wno-identical --warn=no-repeated || die "$(cat "$work/err")"
silent '[-W'
said '1 with equal answers; 1 the same as an earlier one'
train dirty --data "$work/dirty.jsonl" -W identical && die "-W identical was taken"
said '-Wno-NAME'

# check reads what it is given and says the same, as JSON too
"$dpoc" check models/dpo-lora.dpo --model $model --data "$work/dirty.jsonl" --json > "$work/out" 2> "$work/err" || die "check"
grep -q '"identical": 1' "$work/out" && grep -q '"token ids": 14' "$work/out" || die "$(cat "$work/out")"
printf 'PAR1' > "$work/x.parquet"
"$dpoc" check models/dpo-lora.dpo --model $model --data "$work/x.parquet" --json > "$work/out" 2> "$work/err"
[ $? = 1 ] || die "check of a bad file must be exit 1"
grep -q "read_parquet('$work/x.parquet')" "$work/out" || die "$(cat "$work/out")"
grep -q '"repeated": 1' "$work/dirty/run.json" || die "run.json holds no summary"
