#!/bin/sh
# Answers during training: what `generate` says with the same adapter; they change nothing in the run; a broken run goes
# on with them; without a tokenizer they are ids.
. tests/e2e/lib.sh
case=$cases/gqa
"$dpoc" train models/dpo-lora.dpo --device=cpu --model $case --data $case/pairs.jsonl --set pref.rank=4 --set run.steps=4 \
    --set run.batch=2 --set run.sample_every=2 --set run.sample_prompts=3 --set run.sample_tokens=5 --quiet \
    -o "$work/ids" || die "training with samples of ids failed"
"$dpoc" plan models/dpo-lora.dpo --model $case --set run.sample_every=2 2>&1 | grep -q '^note: .*train --dry-run' ||
    die "plan does not say that it leaves the answers' memory out"
[ "$(grep -cE '"prompt":"[^"]*pairs.jsonl:[0-9]+","answer":"[0-9 ]+","tokens":[1-5],' "$work/ids/samples.jsonl")" = 9 ] ||
    die "not three answers at steps 0, 2, 4: $(cat "$work/ids/samples.jsonl")"
printf '{"prompt_ids":[1,2,3]}\n' > "$work/ids.jsonl"
echo "Once upon a time" > "$work/text.txt"
sampled() { # PROMPTS
    "$dpoc" train models/dpo-lora.dpo --device=cpu --model $case --data $case/pairs.jsonl --set pref.rank=4 --set run.steps=1 \
        --set run.batch=2 --set run.sample_every=1 --set "run.sample_prompts=\"$1\"" --quiet -o "$work/file" --overwrite
}
sampled "$work/ids.jsonl" || die "a file of ids is not taken without a tokenizer"
grep -q '"prompt":"[^"]*ids.jsonl:1","answer":"[0-9]' "$work/file/samples.jsonl" || die "$(cat "$work/file/samples.jsonl")"
sampled "$work/text.txt" 2> "$work/err"
[ $? = 5 ] && grep -q "text needs a tokenizer" "$work/err" || die "text without a tokenizer: $(cat "$work/err")"

# A signal while answers are made: the step before them is kept, and going on makes up for them.
answers() { # OUT [flags]
    out=$1
    shift
    ${pre:-} "$dpoc" train models/dpo-lora.dpo --device=cpu --model $case --data $case/pairs.jsonl --set pref.rank=4 --set run.steps=3 \
        --set run.batch=2 --set run.sample_every=2 --set run.sample_prompts=2 --set run.sample_tokens=1000 --quiet -o "$out" "$@"
}
answers "$work/long" || die "long answers failed"
pre=exec answers "$work/cut" &
pid=$!
until grep -qs '"step","step":2,' "$work/cut/metrics.jsonl" || ! kill -0 $pid 2> /dev/null; do sleep 0.01; done
kill -TERM $pid
wait $pid
[ $? = 143 ] && [ -e "$work/cut/checkpoint-2" ] || die "stopped without a checkpoint of its last step"
answers "$work/cut" --resume || die "going on after a signal failed"
for run in long cut; do sed -E 's/"time":[0-9.]+,//' "$work/$run/samples.jsonl" > "$work/$run.s"; done
cmp "$work/long.s" "$work/cut.s" || die "answers that a signal cut short are missing"

model=../shared/data/stories260k
[ -d $model ] || { echo "no ../shared/data/stories260k"; exit 77; }
printf '"Once upon a time"\n{"prompt":"Tom had a dog. He"}\n' > "$work/prompts.jsonl"
go() {
    out=$1
    shift
    ${pre:-} "$dpoc" train models/dpo-lora.dpo --device=cpu --model $model \
        --data ../shared/data/ultrafeedback_1k/train_clean.jsonl --set data.limit=32 --set data.max_length=120 \
        --set run.steps=6 --set run.batch=4 --set run.lr=3e-3 --set run.tokens=1024 --set run.save_every=1 --set run.keep=9 --quiet \
        -o "$out" "$@" 2>> "$work/said"
}
flags="--set run.sample_every=3 --set run.sample_tokens=16"
go "$work/with" $flags --set "run.sample_prompts=\"$work/prompts.jsonl\"" || die "training failed: $(cat "$work/said")"
go "$work/without" || die "training failed"
for run in with without; do
    plain_metrics "$work/$run/metrics.jsonl" | sed -E 's/"(memory_bytes|peak_bytes)":[0-9]+,?//g; s/"plan_hash":"[^"]*",//' > "$work/$run.m"
done
cmp "$work/with.m" "$work/without.m" || die "samples change the run"
cmp "$work/with/adapter/adapter_model.safetensors" "$work/without/adapter/adapter_model.safetensors" || die "another adapter"
says() { # STEP INDEX
    sed -nE "s/.*\"step\":$1,.*\"index\":$2,.*\"answer\":(\".*\"),\"tokens\".*/\1/p" "$work/with/samples.jsonl"
}
for step in 3 6; do
    "$dpoc" generate --model $model --adapter "$work/with/checkpoint-$step/adapter" --prompts "$work/prompts.jsonl" \
        --max-tokens 16 --json --quiet > "$work/answers" 2> "$work/err" || die "generate: $(cat "$work/err")"
    for i in 0 1; do
        want=$(sed -n $((i + 1))p "$work/answers" | sed -nE 's/.*"answer":("([^"\\]|\\.)*"),.*/\1/p')
        [ -n "$want" ] && [ "$(says $step $i)" = "$want" ] || die "step $step: $(says $step $i), generate says $want"
    done
done
[ -n "$(says 0 0)" ] && [ "$(says 0 0)$(says 0 1)" != "$(says 6 0)$(says 6 1)" ] || die "the same answers before and after"
grep -qa "samples/1" "$work"/with/events.out.tfevents.* || die "no samples in TensorBoard's file"

pre=exec go "$work/broken" $flags --set "run.sample_prompts=\"$work/prompts.jsonl\"" &
pid=$!
tries=0
until [ -e "$work/broken/checkpoint-4" ] || [ $tries -gt 1000 ]; do sleep 0.01; tries=$((tries + 1)); done
kill -KILL $pid 2> /dev/null
wait $pid
go "$work/broken" --resume $flags --set "run.sample_prompts=\"$work/prompts.jsonl\"" || die "going on failed"
for run in with broken; do sed -E 's/"time":[0-9.]+,//' "$work/$run/samples.jsonl" > "$work/$run.s"; done
cmp "$work/with.s" "$work/broken.s" || die "a broken run has other samples"
"$dpoc" report "$work/with" -o "$work/with.html" > /dev/null || die "report failed"
grep -q 'at step 0</th><th scope="col">at step 6</th>' "$work/with.html" || die "the page does not show them"
exit 0
