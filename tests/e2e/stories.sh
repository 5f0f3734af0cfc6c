#!/bin/sh
# A real trained model: stories260K continues the known text, and DPO on real pairs lowers its loss.
. tests/e2e/lib.sh
model=../shared/data/stories260k
[ -d $model ] || { echo "no ../shared/data/stories260k"; exit 77; }
"$dpoc" generate --model $model --prompt "" --max-tokens 90 --quiet > "$work/text" || die "generate failed"
want='Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a'
tr '\n' ' ' < "$work/text" | grep -qF "$want" || die "not the known text: $(cat "$work/text")"
"$dpoc" train models/dpo-lora.dpo --model $model --data ../shared/data/ultrafeedback_1k/train_clean.jsonl \
    --set data.limit=64 --set data.max_length=400 --set run.steps=12 --set run.batch=8 --set run.lr=1e-3 \
    --set run.tokens=2048 --quiet -o "$work/run" || die "training failed"
grep '"event":"step"' "$work/run/metrics.jsonl" | sed -E 's/.*"loss":([0-9.e-]+).*/\1/' > "$work/loss"
awk 'NR == 1 { if ($1 < 0.693146 || $1 > 0.693148) { print "first loss " $1; exit 1 } }
     { last = $1 } END { if (!(NR == 12 && last < 0.6931)) { print "last loss " last; exit 1 } }' "$work/loss" ||
    die "the loss does not fall from ln 2"
