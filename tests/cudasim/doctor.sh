#!/bin/sh
# doctor on the simulated device: what is found, what is rejected and why, what to install.
. tests/cudasim/lib.sh
doctor() { on_sim env "$@" "$dpoc" doctor > "$work/said" || die "doctor $*: exit $?"; }
says() { grep -q -- "$1" "$work/said" || { cat "$work/said"; die "doctor does not say: $1"; }; }

doctor CUDASIM_SM=90
says "^found    driver     $sim/libcuda.so.1, 13.0"
says "^found    cuda:0     Simulated H200, compute capability 9.0, 80.0 GiB free of 80.0"
says "^found    nvrtc      $sim/libnvrtc.so.13, 13."
says "^found    cublaslt   $sim/libcublasLt.so.13, 13."
if grep -q missing "$work/said"; then die "nothing is missing"; fi

doctor CUDASIM_DRIVER=12040
says "^found    driver     $sim/libcuda.so.1, 12.4"
says "^rejected nvrtc      $sim/libnvrtc.so.13: 13.[0-9] is newer than the driver, which is for CUDA 12.4"
if ! grep -q "^found    nvrtc" "$work/said"; then # no toolkit 12 here
    says '^missing  nvrtc      libnvrtc.so.12: `pip install nvidia-cuda-nvrtc-cu12`, or the CUDA toolkit 12'
    says '^missing  cublaslt   libcublasLt.so.12: `pip install nvidia-cublas-cu12`, or the CUDA toolkit 12'
fi

doctor CUDASIM_SM=75
says "^rejected cuda:0     Simulated T4 has compute capability 7.5; 8.0 or later"

doctor CUDASIM_DEVICES=0
says "^missing  gpu        the NVIDIA driver sees no GPU"

doctor CUDASIM_DRIVER=11080
says "^rejected driver     $sim/libcuda.so.1: is a driver for CUDA 11.8; 12.0 or later is needed"
says "^missing  driver"

# auto: a GPU that is there and cannot be used is an error with the reason; the CPU only where there is none.
try() { # SETTING: trains one step; what it says goes to $work/said
    on_sim env "$1" "$dpoc" train models/dpo-lora.dpo --device=auto --model $cases/gqa --data $cases/gqa/pairs.jsonl \
        --set run.steps=1 --set run.batch=1 --set pref.rank=2 --overwrite -o "$work/run" > "$work/said" 2>&1
}
try CUDASIM_SM=75
[ $? -eq 3 ] || die "a GPU that is too old is not exit 3"
says "compute capability 7.5; 8.0 or later"
for none in CUDASIM_DEVICES=0 CUDA_VISIBLE_DEVICES=-1; do
    try $none || { cat "$work/said"; die "$none: auto does not take the CPU"; }
    says "^cpu: "
done
