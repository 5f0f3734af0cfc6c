#!/bin/sh
# `report`: one run or several, finished, broken off with a torn line, or going on; pages are well-formed and whole.
. tests/e2e/lib.sh
case=$cases/gqa
checker=$BUILD/tests/io/test_svg
[ -x "$checker" ] || die "$checker is not built"
go() {
    ${pre:-} "$dpoc" train models/dpo-lora.dpo --device=cpu --model $case --data $case/pairs.jsonl --eval-data $case/pairs.jsonl \
        --set pref.rank=4 --set run.batch=2 --set run.tokens=96 --set run.eval_every=5 --quiet "$@"
}
go -o "$work/a" --set run.steps=40 --set run.lr=1e-2 || die "training failed"
go -o "$work/b" --set run.steps=20 --set run.lr=2e-3 || die "training failed"
says() { # PATTERN: in the text of the last report
    grep -qE -- "$1" "$work/text" || die "no '$1' in: $(cat "$work/text")"
}
"$dpoc" report "$work/a" -o "$work/a.html" > "$work/text" || die "report failed"
says "state +finished, step 40 of 40"
says "loss +0.6931 → 0\."
says "eval accuracy +1; best 1 at step [0-9]+ \(± 0\)"
says "read +6 of 6 kept"
says "step +2 pairs, adamw, lr 0.01, linear"
says "memory +.* planned"
"$checker" "$work/a.html" || die "a.html is not well-formed"
for title in Loss "Reward margin" "Reward accuracy" Rewards "Gradient norm" "Learning rate" "Tokens a second" "Memory in use" \
    Utilization; do
    grep -q "<title id=\"t[0-9]*\">$title</title>" "$work/a.html" || die "no chart of $title"
done
grep -qE 'https?://' "$work/a.html" && grep -oE 'https?://[^" ]*' "$work/a.html" | grep -v 'www.w3.org/2000/svg' && die "it needs the network"
grep -q '<script' "$work/a.html" && die "it has a script"
# the last point of the loss's eval curve is as far right as the axis goes
grep -q '<circle class="dot c0" cx="464.0"' "$work/a.html" || die "no eval point at the last step"

# Several: overlaid, with what differs; one that was torn, one without run.json; two of one name.
mkdir -p "$work/other/a"
head -n 12 "$work/a/metrics.jsonl" > "$work/other/a/metrics.jsonl"
printf '{"event":"step","step":99,"lo' >> "$work/other/a/metrics.jsonl"
printf '{"event":"sample","step":0,"prompt":"<Hi> & you","answer":"no"}\n{"event":"sample","step":5,"prompt":"<Hi> & you","answer":"yes"}\n' \
    > "$work/other/a/samples.jsonl"
for form in html svg; do
    "$dpoc" report "$work/a" "$work/b" "$work/other/a/" -o "$work/all.$form" > "$work/text" || die "report of three failed"
    "$checker" "$work/all.$form" || die "all.$form is not well-formed"
done
says "state +broken off, step [0-9]+ of 40"
says "run.lr +0.002"
says "run.steps +20"
grep -q "step 99" "$work/text" && die "a torn line was taken"
grep -q "graph.fuse" "$work/text" && die "settings that do not differ are shown"
for text in "<td class=\"said\">&#60;Hi&#62; &#38; you</td><td class=\"said\">no</td><td class=\"said\">yes</td>" "class=\"line c2\"" \
    "$work/other/a/"; do
    grep -qF "$text" "$work/all.html" || die "no '$text' in the page of three"
done

# One that goes on is told from one that was broken off.
pre=exec go -o "$work/going" --set run.steps=100000000 --set run.lr=1e-3 --set run.eval_every=0 &
pid=$!
tries=0
until grep -q '"step":9' "$work/going/metrics.jsonl" 2> /dev/null || [ $tries -gt 500 ]; do sleep 0.02; tries=$((tries + 1)); done
"$dpoc" report "$work/going" -o "$work/going.svg" > "$work/text"
rc=$?
go -o "$work/going" --set run.steps=2 --overwrite 2> "$work/said"
[ $? = 2 ] && grep -q "another process is training" "$work/said" || rc="two at once: $(cat "$work/said")"
kill -TERM $pid
wait $pid
[ "$rc" = 0 ] || die "a run that goes on cannot be read, or $rc"
says "state +running, step [0-9]+ of 100000000"
"$checker" "$work/going.svg" || die "going.svg is not well-formed"
"$dpoc" report "$work/going" > "$work/text" && says "broken off"

"$dpoc" report "$work" 2> "$work/text"
[ $? = 5 ] && says "not the directory of a run" || die "no run at all"
"$dpoc" report 2> "$work/text"
[ $? = 2 ] || die "report of nothing"
"$dpoc" report "$work/a" -o "$work/a.png" 2> "$work/text"
[ $? = 2 ] && says "FILE.html or FILE.svg" || die "a.png"
exit 0
