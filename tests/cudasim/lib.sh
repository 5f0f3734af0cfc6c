# lib.sh: what the end-to-end tests on the simulated device share; sourced.  Skips where it is not built.
: "${BUILD:=build}"
. tests/e2e/lib.sh
sim=$(cd "$BUILD" && pwd)/cudasim
[ -e "$sim/libcuda.so.1" ] || { echo "the simulated device is not built (the toolkit's headers are missing)"; exit 77; }
export DPOC_DEVICE=cuda
export DPOC_CACHE_DIR=$sim/cache # compiled modules are the same for every test
# A command of the program's with the simulated device's libraries first.
on_sim() {
    LD_LIBRARY_PATH=$sim${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} "$@"
}
# The numbers of one key, a line a step: steps FILE KEY
steps() {
    grep '"event":"step"' "$1" | sed -E "s,.*\"$2\":([-0-9.e+]+).*,\1,"
}
# Each number of B is near A's: within rel |a| + abs.  near A B REL ABS WHAT
near() {
    paste "$1" "$2" | awk -v rel="$3" -v most="$4" -v what="$5" '
        NF != 2 { print what ": " NF " numbers in line " NR; exit 1 }
        { d = $1 - $2; a = $1 < 0 ? -$1 : $1; if (d < 0) d = -d
          if (!(d <= rel * a + most)) { print what " in step " NR ": " $2 ", should be " $1; exit 1 } }
        END { if (NR == 0) { print what ": nothing"; exit 1 } }'
}
# Two runs agree in every bit: same_run A B
same_run() {
    plain_metrics "$1/metrics.jsonl" | sed -E 's/"(memory_bytes|peak_bytes)":[0-9]+,?//g' > "$work/same.a"
    plain_metrics "$2/metrics.jsonl" | sed -E 's/"(memory_bytes|peak_bytes)":[0-9]+,?//g' > "$work/same.b"
    cmp "$work/same.a" "$work/same.b" &&
        cmp "$1/adapter/adapter_model.safetensors" "$2/adapter/adapter_model.safetensors"
}
