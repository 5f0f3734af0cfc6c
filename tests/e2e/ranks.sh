#!/bin/sh
# Training by several processes (mpirun): the losses, gradients and adapter of one process, to rounding; the same bits
# again with as many processes; dropout, evaluation, resume, unequal shares; a stop, a failure and a loss end them all.
. tests/e2e/lib.sh
command -v mpirun > /dev/null || { echo "mpirun is missing (Debian: openmpi-bin)"; exit 77; }
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
export OMPI_MCA_pml=ob1 OMPI_MCA_btl=self,vader OMPI_MCA_btl_vader_single_copy_mechanism=none # this machine's memory alone
export ASAN_OPTIONS=detect_leaks=0                   # MPI keeps what it has until the process ends

# ranks N OUT [flags]: train_case by N processes; 1: without mpirun
ranks() {
    n=$1 to=$2
    shift 2
    pre="timeout 100"
    [ "$n" = 1 ] || pre="$pre mpirun -n $n ${under:-}"
    pre=$pre train_case gqa "$work/$to" --set run.warmup=0 "$@" 2> "$work/$to.log"
}
ok() { ranks "$@" || { cat "$work/$2.log"; die "$2 failed"; }; }
fails() { want=$1; shift; ranks "$@"; rc=$?; [ $rc = "$want" ] || { cat "$work/$2.log"; die "$2: exit $rc, not $want"; }; }
says() { grep -q -- "$2" "$work/$1.log" || { cat "$work/$1.log"; die "$1 does not say: $2"; }; }
# series OUT: "loss grad_norm" of each step, and each evaluation's loss
series() {
    sed -nE -e '/"event":"step"/s/.*"grad_norm":([0-9.e-]+).*"loss":([0-9.e-]+).*/\2 \1/p' \
        -e 's/.*"eval_loss":([0-9.e-]+).*/\1 0/p' "$work/$1/metrics.jsonl"
}
# near A B LINES: fp32 sums in another order: losses and norms of some steps within 1e-5 (or of their size, above 1)
near() {
    series "$1" > "$work/a.txt"
    series "$2" > "$work/b.txt"
    paste "$work/a.txt" "$work/b.txt" | awk -v n="$3" '{ for (i = 1; i <= 2; i++) { d = $i - $(i + 2); if (d < 0) d = -d
        if (d > 1e-5 * ($i > 1 ? $i : 1)) bad = 1 } } END { exit bad || NR != n }' ||
        { paste "$work/a.txt" "$work/b.txt"; die "$1 and $2 differ by more than rounding"; }
}
# A gradient is a sum over some 100 rows of products of some 60 terms: (100 + 60) 2^-24 = 1e-5 of it may be rounding,
# and each of the 6 steps of AdamW moves an element by lr times a ratio of such: 1e-4 of the adapter's length.
adapter() { od -An -v -tf4 -w4 -j "$((8 + $(od -An -tu8 -N8 "$1")))" "$1"; }
near_adapter() {
    adapter "$work/$1/adapter/adapter_model.safetensors" > "$work/a.txt"
    adapter "$work/$2/adapter/adapter_model.safetensors" > "$work/b.txt"
    paste "$work/a.txt" "$work/b.txt" | awk '{ d += ($1 - $2) ^ 2; s += $1 ^ 2 } END { exit !(NR > 1000 && d <= 1e-8 * s) }' ||
        die "the adapters of $1 and $2 differ by more than rounding"
}
same() { # all but times, and how many processes made it
    for f in adapter/adapter_model.safetensors checkpoint-6/state.safetensors; do
        cmp "$work/$1/$f" "$work/$2/$f" || die "$f of $1 and $2 differs"
    done
    plain_metrics "$work/$1/metrics.jsonl" > "$work/a.txt"
    plain_metrics "$work/$2/metrics.jsonl" | cmp - "$work/a.txt" || die "metrics of $1 and $2 differ"
}

short="--set graph.compute=fp32 --set run.steps=6 --set pref.dropout=0.1 --set run.save_every=3 --set run.tokens=128"
evals="--eval-data $cases/gqa/pairs.jsonl --set run.eval_every=2"
ok 1 one $short $evals
if ! ranks 2 two $short $evals && grep -q "built without MPI" "$work/two.log"; then
    fails 3 2 two $short
    echo "built without MPI (mpicc): several processes are refused"
    exit 77
fi
[ -d "$work/two" ] || { cat "$work/two.log"; die "two processes failed"; }
ok 4 four $short $evals
ok 4 again $short $evals --threads=2
for n in two four; do
    near one $n 9
    near_adapter one $n
done
same four again
[ "$(grep -c '"event":"step"' "$work/four/metrics.jsonl")" = 6 ] || die "more than one process writes"
cmp "$work/one/adapter/adapter_model.safetensors" "$work/four/adapter/adapter_model.safetensors" > /dev/null &&
    die "four processes have the sums of one: do they share the work?"

# Fewer pairs than processes; an objective over all pairs; the reference's log-probs kept.
ok 1 three1 $short --set run.batch=3
ok 4 three4 $short --set run.batch=3
near three1 three4 6
{ echo 'use "objectives/aot.dpo"'; sed '/^objective/,/^}/d' models/dpo-lora.dpo; } > "$work/aot.dpo"
for n in 1 4; do
    pre="timeout 100"
    [ $n = 1 ] || pre="$pre mpirun -n $n"
    $pre "$dpoc" train "$work/aot.dpo" --model $cases/gqa --data $cases/gqa/pairs.jsonl --quiet $short $evals --set run.warmup=0 \
        --adapter $cases/gqa/adapter --set pref.rank=4 --set pref.alpha=8 --set run.batch=6 --set run.lr=1e-2 --set graph.ref=cached \
        --set graph.ref_file="$work/ref$n.safetensors" -o "$work/aot$n" 2> "$work/aot$n.log" || { cat "$work/aot$n.log"; die "aot by $n failed"; }
done
near aot1 aot4 9

# Going on: with as many processes the same bits, with others the same to rounding, and it says so.
for n in 4 2; do
    cp -r "$work/four" "$work/on$n"
    rm -r "$work/on$n/checkpoint-6" "$work/on$n/adapter"
    ok $n on$n $short $evals --resume
done
same four on4
near four on2 9
near_adapter four on2
says on2 "made by 4 processes, goes on with 2"

# A signal at one process stops all after the same step, with one checkpoint, complete.
long="--set graph.compute=fp32 --set run.steps=100000 --set run.save_every=0 --set run.lr=1e-4"
begin() { # begin OUT [flags]: in the background; until its first steps are made
    out=$1
    shift
    ranks 4 "$out" $long "$@" &
    job=$!
    tries=0
    until [ "$(grep -c '"event":"step"' "$work/$out/metrics.jsonl" 2> /dev/null)" -gt 3 ] 2> /dev/null; do
        tries=$((tries + 1))
        [ $tries -lt 200 ] || { cat "$work/$out.log"; die "$out does not begin"; }
        sleep 0.1
    done
}
process() { # OUT, which
    for p in /proc/[0-9]*; do
        { tr '\0' ' ' < "$p/cmdline"; } 2> /dev/null | grep -q "^$dpoc train .*-o $work/$1 " && echo "${p#/proc/}"
    done | sort -n | sed -n "$2p"
}
begin term
kill -TERM "$(process term 3)"
wait $job
rc=$?
[ $rc = 143 ] || { cat "$work/term.log"; die "exit $rc after TERM"; }
[ "$(find "$work/term" -maxdepth 1 -name 'checkpoint-*' | wc -l)" = 1 ] || die "not one checkpoint after TERM"
step=$(grep -c '"event":"step"' "$work/term/metrics.jsonl")
[ -f "$work/term/checkpoint-$step/state.safetensors" ] || die "the checkpoint is not that of the last step"
ok 2 term $long --set run.steps=100000 --resume --dry-run

# One that is killed: the others end, with a reason and what to go on from, also where it is started by a script
# that mpirun still sees alive.
printf '#!/bin/sh\n"$@"\nrc=$?\nsleep 6\nexit $rc\n' > "$work/under.sh"
chmod +x "$work/under.sh"
under=$work/under.sh
begin lost --set run.save_every=2
kill -KILL "$(process lost 3)"
wait $job
[ $? = 3 ] || { cat "$work/lost.log"; die "the others do not see that a process is lost"; }
says lost "was lost"
says lost "--resume goes on from it"
under=
begin kill --set run.save_every=2
kill -KILL "$(process kill 2)"
wait $job
rc=$?
[ $rc != 0 ] || die "exit 0 after a process was killed"
says kill "signal 9"
tries=0
while [ -n "$(process kill 1)" ]; do
    tries=$((tries + 1))
    [ $tries -lt 30 ] || die "processes are left"
    sleep 0.1
done
ok 4 kill $long --resume --dry-run

# One whose data are others, one that fails alone, all that fail of the same, one that knows nothing of the others.
cat > "$work/own.sh" << 'EOF'
#!/bin/sh
# The last process has other pairs; or none
[ "$OMPI_COMM_WORLD_RANK" = 3 ] || exec "$@"
for a; do case $a in *pairs.jsonl) a=$OWN ;; esac; set -- "$@" "$a"; shift; done
exec "$@"
EOF
chmod +x "$work/own.sh"
train="train models/dpo-lora.dpo --model $cases/gqa --data $cases/gqa/pairs.jsonl --set pref.rank=4 --set run.steps=1 --quiet"
head -n 5 $cases/gqa/pairs.jsonl > "$work/five.jsonl"
OWN=$work/five.jsonl timeout 100 mpirun -n 4 "$work/own.sh" "$dpoc" $train -o "$work/other" > "$work/other.log" 2>&1
[ $? = 1 ] || die "other pairs were taken"
says other "pairs to train on: rank 3"
[ "$(grep -c "pairs to train on" "$work/other.log")" = 1 ] || die "it is said more than once"
[ ! -d "$work/other" ] || die "a refused run left something"
OWN=$work/none.jsonl timeout 100 mpirun -n 4 "$work/own.sh" "$dpoc" $train -o "$work/none" > "$work/none.log" 2>&1
[ $? = 5 ] || { cat "$work/none.log"; die "no pairs at one process: not exit 5"; }
says none "rank 3 on"
says none "none.jsonl"
fails 2 4 four $short
[ "$(grep -c "is not empty" "$work/four.log")" = 1 ] || die "the first process's message is not said once"
fails 1 4 typo --set run.lr=fast
[ "$(grep -c "error" "$work/typo.log")" = 1 ] || { cat "$work/typo.log"; die "an error is not said once"; }
SLURM_STEP_NUM_TASKS=4 "$dpoc" $train -o "$work/alone" 2> "$work/alone.log"
[ $? = 3 ] || die "one of four tasks trained alone"
says alone "srun --mpi=pmix"
timeout 100 mpirun -n 2 "$dpoc" eval models/dpo-lora.dpo > "$work/eval.log" 2>&1
[ $? = 2 ] || die "eval by two processes is not refused"
exit 0
