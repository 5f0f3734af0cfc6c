#!/bin/sh
# make demo: preference training of the small Llama that lies in examples/demo/model, before and after.
# Prints reward accuracy, answer lengths and facts kept on held-out prompts, and fails if they miss the goal.
set -eu
: "${BUILD:=build}"
export DPOC_DEVICE=cpu # a model this small needs no GPU
here=examples/demo
out=$BUILD/demo
dpoc=$BUILD/dpoc
mkdir -p "$out"

start=$(date +%s)
"$dpoc" generate --model $here/model --spec $here/concise.dpo --chat $here/prompts.jsonl --max-tokens 60 \
    --json --quiet > "$out/before.jsonl"
"$dpoc" train $here/concise.dpo -o "$out/run" --overwrite
"$dpoc" generate --model $here/model --spec $here/concise.dpo --adapter "$out/run/adapter" \
    --chat $here/prompts.jsonl --max-tokens 60 --json --quiet > "$out/after.jsonl"
"$dpoc" eval $here/concise.dpo --data $here/heldout.jsonl --adapter "$out/run/adapter" --quiet > "$out/eval.txt"
took=$(($(date +%s) - start))

# Each line of the three files is about the same prompt; the answer must contain the fact as a word.
awk -v took="$took" '
function field(line, key,    s) {
    s = line; if (!sub(".*\"" key "\": ?\"", "", s)) return ""
    sub("\"[,}].*", "", s); gsub("\\\\n", " ", s); return s
}
FILENAME ~ /prompts/ { fact[FNR] = field($0, "fact"); prompt[FNR] = field($0, "prompt"); n = FNR }
FILENAME ~ /before/  { before[FNR] = field($0, "answer") }
FILENAME ~ /after/   { after[FNR] = field($0, "answer") }
FILENAME ~ /eval/ && $1 == "rewards/accuracies" { accuracy = $2 }
END {
    for (i = 1; i <= n; i++) {
        lb += split(before[i], w, " "); la += split(after[i], w, " ")
        kb += before[i] ~ ("[^a-z]" fact[i] "[^a-z]"); ka += after[i] ~ ("[^a-z]" fact[i] "[^a-z]")
    }
    print ""
    for (i = 1; i <= 4; i++) printf "%s\n   before:%s\n   after: %s\n", prompt[i], before[i], after[i]
    printf "\nheld-out prompts          %d\n", n
    printf "reward accuracy           %.3f\n", accuracy
    printf "words an answer           %.1f before, %.1f after (%.0f %% shorter)\n", lb / n, la / n, 100 * (1 - la / lb)
    printf "required fact in answer   %d before, %d after\n", kb, ka
    printf "time                      %d s\n", took
    exit !(n > 0 && accuracy >= 0.9 && la <= 0.7 * lb && ka >= kb)
}' $here/prompts.jsonl "$out/before.jsonl" "$out/after.jsonl" "$out/eval.txt"
