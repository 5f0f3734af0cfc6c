#!/bin/sh
# Every file of kernels/ was executed by a test: $BUILD/tests/executed.txt (executed.h) names them all.
# Those for CUDA count where the simulated device is built.
: "${BUILD:=build}"
list=$BUILD/tests/executed.txt
if [ ! -f "$list" ]; then # run alone
    "$BUILD/tests/gpu/test_kernels" --device=cpu > /dev/null || exit 1
    for t in tests/cudasim/kernels.sh "$BUILD/tests/gpu/test_quantize" "$BUILD/tests/plan/test_adamw8" \
        "$BUILD/tests/num/test_generate"; do
        "$t" > /dev/null
        rc=$?
        [ $rc = 0 ] || [ $rc = 77 ] || exit 1
    done
fi
files="kernels/*.h kernels/cpu/*.h"
[ -e "$BUILD/cudasim/libcuda.so.1" ] && files="$files kernels/cuda/*.cuh"
missing=
for f in $files; do
    grep -qxF "$f" "$list" || missing="$missing $f"
done
n=$(sort -u "$list" | wc -l)
rm -f "$list" # the next run begins anew
[ -z "$missing" ] || { echo "never executed:$missing"; exit 1; }
echo "$n files of kernels/ executed"
[ -e "$BUILD/cudasim/libcuda.so.1" ] || { echo "no simulated device: kernels/cuda was not looked at"; exit 77; }
