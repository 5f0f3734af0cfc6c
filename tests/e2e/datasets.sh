#!/bin/sh
# Real data sets: a run starts with a summary of what was read, says what it left out, and finishes.  Ids and masks
# are tests/io/test_pairs.c's; here stories260K's tokenizer and a plain template, so that steps are cheap.
. tests/e2e/lib.sh
data=../shared/data
model=$data/stories260k
[ -d $model ] || { echo "no $model"; exit 77; }
ran=0
run() { # FILE DIALECT RECORDS WORDS: what the summary must say; WORDS may be empty
    [ -f "$data/$1" ] || { echo "no $data/$1"; return; }
    "$dpoc" train models/dpo-lora.dpo --model $model --data "$data/$1" --set data.template=plain --set data.max_length=256 \
        --set data.truncation=keep_answers --set run.steps=2 --set run.batch=4 --set run.tokens=1024 -o "$work/run" \
        --overwrite > "$work/out" 2> "$work/err" || die "$1: $(tail -n 5 "$work/err")"
    summary=$(grep '^pairs: ' "$work/err")
    case $summary in
    "pairs: $data/$1: $2; "*" of $3 read"*"$4"*) ;;
    *) die "$1: the summary is '$summary', not $2, $3 read, $4" ;;
    esac
    grep -q 'tokens (median, 95 %, longest): prompt [1-9]' "$work/err" || die "$1: no lengths"
    grep '"step":1,' "$work/run/metrics.jsonl" | grep -q '"loss":0.69314' || die "$1: the first loss is not ln 2"
    [ -f "$work/run/adapter/adapter_model.safetensors" ] || die "$1: no adapter"
    ran=$((ran + 1))
}
lines() { grep -c . "$data/$1"; } # also a last one without its newline
run orca_dpo_openai_format/validation.jsonl OpenAI "$(lines orca_dpo_openai_format/validation.jsonl)" ''
run llamafactory_dpo/dpo_en_demo.json ShareGPT "$(grep -c '"conversations": \[' $data/llamafactory_dpo/dpo_en_demo.json)" ''
run llamafactory_dpo/v1_dpo_demo.jsonl 'LLaMA-Factory v1' "$(lines llamafactory_dpo/v1_dpo_demo.jsonl)" ''
run ultrafeedback_1k/train_clean.jsonl 'TRL strings' "$(lines ultrafeedback_1k/train_clean.jsonl)" '2 left out: an answer is empty'
# 5 of these transcripts have another prompt on each side
run hh_rlhf_harmless_test/test.jsonl.gz 'HH transcripts' "$(gzip -dc $data/hh_rlhf_harmless_test/test.jsonl.gz | grep -c .)" \
    '5 left out: two prompts'
[ $ran -gt 0 ] || exit 77
echo "$ran data sets"
