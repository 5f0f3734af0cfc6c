#!/bin/sh
# Bad input: the exit code, a message that names the place, and nothing lost.
. tests/e2e/lib.sh
expect() { # expect CODE PATTERN COMMAND..
    wanted=$1 pattern=$2
    shift 2
    exits "$wanted" "$@"
    [ -z "$pattern" ] || grep -qE -- "$pattern" "$work/err" || die "no '$pattern' in: $(cat "$work/err")"
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
sed 's/"hidden_size": 32/"hidden_size": 48/' $model/config.json > "$work/model/config.json"
cp $model/model.safetensors "$work/model/"
expect 1 "model.embed_tokens.weight.*\[97, ?32\]|97, ?32" $dpoc check models/dpo-lora.dpo --model "$work/model"
expect 5 "97, ?32" $dpoc eval models/dpo-lora.dpo --model "$work/model" --data $model/pairs.jsonl
sed 's/"vocab_size": 97/"vocab_size": "x"/' $model/config.json > "$work/model/config.json"
expect 5 "values of $work/model/config.json" $dpoc eval models/dpo-lora.dpo --model "$work/model" --data $model/pairs.jsonl
sed 's/"num_hidden_layers": 2/"num_hidden_layers": 1000000/' $model/config.json > "$work/model/config.json"
expect 5 "rounds; at most" $dpoc eval models/dpo-lora.dpo --model "$work/model" --data $model/pairs.jsonl
sed 's/"hidden_size": 32/"hidden_size": 1000000000000000/' $model/config.json > "$work/model/config.json"
expect 5 "below 2147483648" $dpoc eval models/dpo-lora.dpo --model "$work/model" --data $model/pairs.jsonl
cp $model/config.json "$work/model/"
size=$(stat -c %s $model/model.safetensors)
{ head -c $((size - 4)) $model/model.safetensors; printf '\377\377\377\377'; } > "$work/model/model.safetensors"
expect 6 "tensor \".*\" holds NaN" $dpoc eval models/dpo-lora.dpo --model "$work/model" --data $model/pairs.jsonl
expect 5 "adapter_config.json" $dpoc eval models/dpo-lora.dpo --model $model --data $model/pairs.jsonl --adapter "$work/none"
expect 1 "rank 4" $dpoc eval models/dpo-lora.dpo --model $model --data $model/pairs.jsonl --adapter $model/adapter

# A dry run writes nothing; a run that cannot start leaves the earlier one; flags mean what they say.
short="$dpoc train models/dpo-lora.dpo --model $model --data $model/pairs.jsonl --set run.steps=2 --quiet -o $work/kept"
expect 0 "" $short --dry-run
[ -z "$(ls "$work/kept")" ] || die "a dry run left $(ls "$work/kept")"
expect 0 "" $short
expect 2 "is not empty" $short
expect 4 "budget" $short --overwrite --memory=1MiB
expect 0 "" $short --overwrite --dry-run
[ -d "$work/kept/checkpoint-2" ] || die "the earlier run is gone"
expect 2 "exclude each other" $short --overwrite --resume
expect 2 "one argument too many" $dpoc check models/dpo-lora.dpo models/tiny.dpo
expect 2 "did you mean 'fold'" $dpoc plan models/dpo-lora.dpo --model $model --dump-after=flod
for wrong in --threads=0 --threads=1.5 --color=sometimes --dump-after=all; do
    expect 2 "${wrong%%=*}" $dpoc eval models/dpo-lora.dpo --model $model --data $model/pairs.jsonl --json $wrong
done
expect 1 "no variant 'x'" $dpoc bench models/dpo-lora.dpo --model $model --variants=x
expect 5 "pairs.jsonl" $dpoc cache list --cache-dir=$model/pairs.jsonl
expect 0 "" $dpoc init "$work/new"
expect 0 "" $dpoc fmt --check "$work/new.dpo"
mkdir "$work/ro" && chmod 555 "$work/ro"
[ "$(id -u)" = 0 ] || expect 5 "ro" $dpoc train models/dpo-lora.dpo --model $model --data $model/pairs.jsonl -o "$work/ro/run" --quiet
# a run file of the program's own, named without its folder, far from the repository
root=$PWD program=$(realpath "$dpoc")
(cd "$work" && "$program" train dpo-lora.dpo --model "$root/$model" --data "$root/$model/pairs.jsonl" \
    --set run.steps=1 --quiet -o inside) || die "a run file of the program's own is not trained"
grep -q "train pref" "$work/inside/model.dpo" || die "the run does not keep its file"
[ -e /dev/full ] && expect 5 "cannot write" sh -c "$dpoc settings > /dev/full"
exit 0
