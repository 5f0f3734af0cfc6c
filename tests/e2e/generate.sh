#!/bin/sh
# `generate` as a person uses it: prompts of every form, alone and together, before and after, sampled and repeated.
. tests/e2e/lib.sh
demo=examples/demo
gen() {
    "$dpoc" generate --model $demo/model --spec $demo/concise.dpo --device=cpu --quiet "$@"
}
same() { # FILE FILE WHAT
    cmp -s "$1" "$2" || die "$3: $(diff "$1" "$2" | head -n 4)"
}

# Streamed, as JSON, alone, together: one answer.
question='Q: Mira put the coin in the hallway. Where is the coin?
A:'
gen --prompt "$question" > "$work/streamed" || die "no answer"
grep -q 'it is in the hallway' "$work/streamed" || die "not the known answer: $(cat "$work/streamed")"
printf %s "$question" | gen --prompt - > "$work/stdin" || die "no answer to stdin"
same "$work/streamed" "$work/stdin" "from stdin"
gen --chat $demo/prompts.jsonl --max-tokens=40 --json > "$work/together" || die "no answers"
gen --chat $demo/prompts.jsonl --max-tokens=40 --json --at-once=1 > "$work/alone" || die "no answers one by one"
gen --chat $demo/prompts.jsonl --max-tokens=40 --json --at-once=3 > "$work/three" || die "no answers in threes"
same "$work/together" "$work/alone" "one by one"
same "$work/together" "$work/three" "in threes"
[ "$(wc -l < "$work/together")" = "$(wc -l < $demo/prompts.jsonl)" ] || die "not one line a prompt"
head -n 1 "$work/together" | grep -q '"end":"stop"' || die "no stop: $(head -n 1 "$work/together")"

# Every form of a file asks the same two things.
cat > "$work/a.txt" << 'END'
Q: Anna has a box.
Q: Tom has a cup.
END
cat > "$work/b.jsonl" << 'END'
{"prompt": "Q: Anna has a box."}
{"messages": [{"role": "user", "content": "Q: Tom has a cup."}, {"role": "assistant", "content": "No."}]}
END
cat > "$work/c.json" << 'END'
[{"prompt": "Q: Anna has a box.", "chosen": " a", "rejected": " b"},
 {"prompt": [{"role": "user", "content": "Q: Tom has a cup."}]}]
END
cat > "$work/d.jsonl" << 'END'
{"chosen": "Q: Anna has a box. One", "rejected": "Q: Anna has a box. Two"}
{"question": "Q: Tom has a cup.", "chosen": "a", "rejected": "b"}
END
for form in a.txt b.jsonl c.json d.jsonl; do
    gen --prompts "$work/$form" --set data.template=plain --max-tokens=5 --json > "$work/$form.out" ||
        die "$form is not read"
    sed 's/"answer".*//; s/\. "/."/; s/\\n"/"/' "$work/$form.out" > "$work/$form.asked"
    same "$work/a.txt.asked" "$work/$form.asked" "$form"
done
grep -qE '"answer_tokens":5,"end":"length","answer_ids":\[[0-9]+(,[0-9]+){4}\]' "$work/a.txt.out" || die "no ids"

# Drawn answers are repeated with the seed, whatever they are drawn with, and differ without it.
draw() {
    gen --chat $demo/prompts.jsonl --max-tokens=20 --temperature=1.3 --top-p=0.95 --json "$@"
}
draw --seed=5 > "$work/draw" && draw --seed=5 --at-once=2 > "$work/again" && draw --seed=6 > "$work/other"
same "$work/draw" "$work/again" "the same seed"
cmp -s "$work/draw" "$work/other" && die "another seed draws the same"

# Before and after, side by side: what each is alone.
"$dpoc" train $demo/concise.dpo --set run.steps=3 --set run.lr=1e-2 --quiet -o "$work/run" ||
    die "no adapter"
short="--chat $demo/prompts.jsonl --max-tokens=12 --json"
gen $short > "$work/before" && gen $short --adapter "$work/run/adapter" > "$work/after" || die "no answers"
gen $short --adapter "$work/run/adapter" --before > "$work/both" || die "no --before"
cmp -s "$work/before" "$work/after" && die "the adapter does nothing"
sed 's/,"before":.*/}/' "$work/both" > "$work/both.after"
sed 's/"answer":.*"before":\(.*\),"before_tokens.*/"answer":\1/' "$work/both" > "$work/both.before"
sed 's/,"prompt_tokens.*//' "$work/before" > "$work/before.text"
same "$work/after" "$work/both.after" "after"
same "$work/before.text" "$work/both.before" "before"

# A conversation from stdin keeps its cache; its second answer is what the whole conversation gets at once.
printf 'Q: Anna has a box.\n\nQ: Who is Tom?\n' > "$work/turns"
gen --chat - --set data.template=plain --max-tokens=12 < "$work/turns" > "$work/talk" || die "no conversation"
[ "$(wc -l < "$work/talk")" = 2 ] || die "not two answers: $(cat "$work/talk")"
cat > "$work/talk.json" << END
[{"role": "user", "content": "Q: Anna has a box."}, {"role": "assistant", "content": "$(sed -n 1p "$work/talk")"},
 {"role": "user", "content": "Q: Who is Tom?"}]
END
gen --chat "$work/talk.json" --set data.template=plain --max-tokens=12 > "$work/second" || die "no second answer"
sed -n 2p "$work/talk" > "$work/talk2"
same "$work/talk2" "$work/second" "the second turn"

# Where an answer stops, and how it is drawn, as the checkpoint's generation_config.json says.
cp -r $demo/model "$work/model"
"$dpoc" tokens --model "$work/model" --text ' coin' > "$work/ids" || die "no tokens"
coin=$(awk '{ id = $2 } END { print id }' "$work/ids")
echo "{\"eos_token_id\": [1, $coin], \"do_sample\": true, \"temperature\": 0.5, \"top_k\": 3}" \
    > "$work/model/generation_config.json"
"$dpoc" generate --model "$work/model" --prompt "$question" --json --quiet > "$work/out" || die "no answer"
grep -q 'with the coin","prompt_tokens' "$work/out" || die "does not stop at $coin: $(cat "$work/out")"
"$dpoc" generate --model "$work/model" --prompt "$question" --model-sampling > "$work/out" 2> "$work/err" ||
    die "no drawn answer"
grep -q '^sampling: temperature 0.5, top-p 1, top-k 3$' "$work/err" || die "not as asked: $(cat "$work/err")"
# One that makes no sense is named, not passed over.
cp "$work/model/generation_config.json" "$work/was.json"
for flaw in '{"eos_token_id": "2"}' '{"eos_token_id": [2, -1]}' '{"eos_token_id": 2' '[]' '{"temperature": -1}' '{"top_k": "all"}'; do
    echo "$flaw" > "$work/model/generation_config.json"
    status=0
    "$dpoc" generate --model "$work/model" --prompt "$question" --model-sampling > "$work/out" 2> "$work/err" || status=$?
    [ $status = 5 ] && grep -q 'generation_config.json:' "$work/err" || die "$flaw: exit $status: $(cat "$work/err")"
done
cp "$work/was.json" "$work/model/generation_config.json"

# What can't be answered says so.
fails() { # CODE TEXT FLAGS..
    code=$1 text=$2
    shift 2
    status=0
    gen "$@" > "$work/out" 2> "$work/err" || status=$?
    [ $status = $code ] || die "$*: exit $status, not $code: $(cat "$work/err")"
    grep -qF "$text" "$work/err" || die "$*: $(cat "$work/err")"
}
printf '{"prompt": "a"}\n{"promt": "a"}\n' > "$work/bad.jsonl"
fails 5 'bad.jsonl:2: no "prompt" or "messages"' --prompts "$work/bad.jsonl"
printf '{"prompt_ids": [3, 4294967297]}\n' > "$work/ids.jsonl"
fails 5 'ids.jsonl:1: "prompt_ids" holds what is no token id' --prompts "$work/ids.jsonl"
printf '{"prompt_ids": [3, 100000]}\n' > "$work/ids.jsonl"
fails 5 "token 100000 is not one of the model's" --prompts "$work/ids.jsonl"
printf '\n' > "$work/empty.txt"
fails 5 'empty.txt: no prompt' --prompts "$work/empty.txt"
fails 5 'missing.txt' --prompts "$work/missing.txt"
printf '[{"role": "user", "content": "hello"}]' > "$work/chat.json"
fails 5 'name a data.template' --chat "$work/chat.json"
fails 2 'generate needs --prompt' --max-tokens=3
fails 2 'goes with no other prompts' --chat - --prompt a
fails 2 'name one, --adapter DIR' --before --prompt a

# A signal ends it with what there is (weights that say nothing never stop).
: > "$work/long"
"$dpoc" generate --model $demo/model --random-weights --prompt "$question" --max-tokens=100000 --quiet \
    >> "$work/long" 2> "$work/err" &
until [ "$(wc -c < "$work/long")" -gt 200 ]; do sleep 0.1; done
kill -TERM $!
status=0
wait $! || status=$?
[ $status = 143 ] || die "exit $status after SIGTERM: $(tail -n 2 "$work/err")"
