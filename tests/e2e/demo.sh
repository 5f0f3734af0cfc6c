#!/bin/sh
# What `make demo` promises: accuracy, shorter answers, facts kept; and its data is what the script makes.
. tests/e2e/lib.sh
examples/demo/run.sh > "$work/out" 2>&1 || die "the demo misses its goal: $(tail -n 8 "$work/out")"
tail -n 5 "$work/out"
if command -v python3 > /dev/null; then
    mkdir -p "$work/again"
    cp examples/demo/make_data.py "$work/again/"
    python3 "$work/again/make_data.py" > /dev/null || die "make_data.py fails"
    for f in pairs.jsonl heldout.jsonl prompts.jsonl model/tokenizer.json model/config.json; do
        cmp "$work/again/$f" "examples/demo/$f" || die "$f is not what make_data.py makes"
    done
fi
