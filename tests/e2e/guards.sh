#!/bin/sh
# Bad input: the exit code, a message that names the place, and nothing lost.
. tests/e2e/lib.sh
expect() { # expect CODE PATTERN COMMAND..
    code=$1 pattern=$2
    shift 2
    "$@" > "$work/out" 2> "$work/err"
    rc=$?
    [ $rc = "$code" ] || die "exit $rc, not $code: $*: $(cat "$work/err")"
    grep -qE -- "$pattern" "$work/err" || die "no '$pattern' in: $(cat "$work/err")"
}
model=$cases/gqa
run="$dpoc train models/dpo-lora.dpo --model $model -o $work/run --overwrite --quiet --set pref.rank=4 --set run.steps=2"
expect 2 "did you mean 'model'" "$dpoc" eval x.dpo --modle y
expect 2 "did you mean 'train'" "$dpoc" trian
expect 1 "no_such" "$dpoc" check no_such.dpo
expect 1 "did you mean|run.steps" $run --data $model/pairs.jsonl --set run.stesp=3
expect 1 "run.lr" $run --data $model/pairs.jsonl --set run.lr=-1
expect 5 "no_such.jsonl" $run --data no_such.jsonl
expect 5 "config.json|no_dir" $dpoc eval models/dpo-lora.dpo --model no_dir --data $model/pairs.jsonl

printf '{"prompt_ids":[1,2],"chosen_ids":[3],"rejected_ids":[]}\n' > "$work/empty.jsonl"
expect 5 "empty.jsonl:1" $run --data "$work/empty.jsonl"
printf '{"prompt_ids":[1,2],"chosen_ids":[3],"rejected_ids":[4]}\n{"prompt_ids":[1,2],"chosen_ids":[3]\n' > "$work/torn.jsonl"
expect 5 "torn.jsonl:2" $run --data "$work/torn.jsonl"
printf '{"prompt_ids":[1,2],"chosen_ids":[3],"rejected_ids":[5000]}\n' > "$work/vocab.jsonl"
expect 5 "vocab.jsonl:1.*5000|5000.*vocab" $run --data "$work/vocab.jsonl"
printf '{"prompt_ids":[1,2],"chosen_ids":[3],"rejected_ids":[3]}\n' > "$work/same.jsonl"
expect 6 "gradient is exactly zero" $run --data "$work/same.jsonl"

cp -r $model "$work/model"
head -c 5000 $model/model.safetensors > "$work/model/model.safetensors"
expect 5 "model.safetensors" $dpoc eval models/dpo-lora.dpo --model "$work/model" --data $model/pairs.jsonl
sed 's/"hidden_size": 32/"hidden_size": 40/' $model/config.json > "$work/model/config.json"
cp $model/model.safetensors "$work/model/"
expect 1 "model.embed_tokens.weight.*\[97, ?32\]|97, ?32" $dpoc check models/dpo-lora.dpo --model "$work/model"
mkdir "$work/ro" && chmod 555 "$work/ro"
[ "$(id -u)" = 0 ] || expect 5 "ro" $dpoc train models/dpo-lora.dpo --model $model --data $model/pairs.jsonl -o "$work/ro/run" --quiet
[ -e /dev/full ] && expect 5 "cannot write" sh -c "$dpoc settings > /dev/full"
exit 0
