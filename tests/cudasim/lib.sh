# lib.sh: what the end-to-end tests on the simulated device share; sourced.  Skips where it is not built.
: "${BUILD:=build}"
. tests/e2e/lib.sh
. tests/gpu/compare.sh
sim=$(cd "$BUILD" && pwd)/cudasim
[ -e "$sim/libcuda.so.1" ] || { echo "the simulated device is not built (the toolkit's headers are missing)"; exit 77; }
export DPOC_DEVICE=cuda
export DPOC_CACHE_DIR=$sim/cache # compiled modules are the same for every test
export CUDASIM_HIDE=1 # the program itself must not touch device memory
# A command of the program's with the simulated device's libraries first.
on_sim() {
    LD_LIBRARY_PATH=$sim${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} "$@"
}
