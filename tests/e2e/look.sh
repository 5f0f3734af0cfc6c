#!/bin/sh
# Looking never changes anything, and what is looked at can be run again: dumps, one pass alone, one value.
. tests/e2e/lib.sh
model=$cases/gqa
run() { "$dpoc" eval models/dpo-lora.dpo --device=cpu --model $model --data $model/pairs.jsonl --quiet --json "$@" 2> "$work/err"; }
run > "$work/plain" || die "eval failed"
run --dump-after=all --dump-dir="$work/dumps" > "$work/dumped" || die "eval with dumps failed"
cmp "$work/plain" "$work/dumped" || die "dumps change the result"
"$dpoc" view --only=cse "$work/dumps/eval.01-fold.ir" > "$work/again" || die "--only=cse failed"
# (the seed, which nothing reads yet, is kept by a unit that knows it: leaves are not counted)
grep -cE '^%[0-9]+ = [a-z_]+ %' "$work/dumps/eval.02-cse.ir" > "$work/want"
grep -cE '^%[0-9]+ = [a-z_]+ %' "$work/again" > "$work/got"
cmp "$work/want" "$work/got" || die "cse alone gives another number of nodes: $(cat "$work/want" "$work/got")"
"$dpoc" view --only=nope "$work/dumps/eval.01-fold.ir" 2> "$work/err" && die "an unknown pass was taken"
grep -q "no pass 'nope'" "$work/err" || die "the message does not name the pass"
"$dpoc" view models/dpo-lora.dpo --model $model --explain=%1 | grep -q '^%1 = ' || die "--explain says nothing"
"$dpoc" view models/dpo-lora.dpo --model $model --explain=%999999 2> "$work/err" && die "a value that is not there"
exit 0
