# lib.sh: what the end-to-end tests share; sourced.
set -u
: "${BUILD:=build}"
dpoc=$BUILD/dpoc
export DPOC_DEVICE=cpu
room=$(basename "$(dirname "$0")")
work=$BUILD/tests/runs/$room-$(basename "$0" .sh)
rm -rf "$work"
mkdir -p "$work"
cases=tests/num/cases

die() { echo "$(basename "$0"): $*" >&2; exit 1; }
# exits CODE COMMAND..: what it said is in $work/out and $work/err
exits() {
    code=$1
    shift
    "$@" > "$work/out" 2> "$work/err"
    rc=$?
    [ $rc = "$code" ] || die "exit $rc, not $code: $*: $(cat "$work/err")"
}
# The metrics without what may differ between runs: times, rates, what the machine does.
plain_metrics() {
    sed -E -e 's,"(time|tokens_per_second|step_time_ms|mfu|(train|eval)_(runtime|[a-z]+_per_second))":[-0-9.e+]+\,?,,g' \
        -e 's,"[cg]pu/[a-z_]+":[-0-9.e+]+\,?,,g' -e 's/"device":"[^"]*",//' "$1"
}
# A short run of DPO on one of the small models: train_case NAME OUT [flags]; in the background with pre=exec,
# so that $! is the program itself
train_case() {
    name=$1 out=$2
    shift 2
    ${pre:-} "$dpoc" train models/dpo-lora.dpo --device=cpu --model $cases/$name --data $cases/$name/pairs.jsonl \
        --adapter $cases/$name/adapter --set pref.rank=4 --set pref.alpha=8 --set run.batch=4 --set run.lr=1e-2 \
        --quiet -o "$out" "$@"
}
