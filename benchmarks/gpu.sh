#!/usr/bin/env bash
# Measures sampling, update, idle time and memory on one GPU, with random weights of Qwen2.5-1.5B's and -7B's shapes: 64 questions
# x 16 samples, 512 + 1024 tokens, bfloat16. One call, 15 to 20 minutes for all four sizes; no model file and no network is needed.
#   benchmarks/gpu.sh [--set FIELD=VALUE ...]
# PYTHON is an interpreter with jaxselftrain and jax[cuda13] (python3); SIZE chooses among 1.5b, 1.5b-cudnn (with cuDNN's fused
# attention), 1.5b-rows (all 1024 rows at once), 7b (these four) and tiny, which takes a minute on a CPU; REPETITIONS (2) come after
# a call that warms up; tables go to $OUT/gpu-SIZE.md, or to runs/benchmarks.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
out=${OUT:-$root/runs/benchmarks}
mkdir -p "$out"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"

measure() { # SIZE, then options of roofline.py
  local size=$1
  shift
  echo "gpu.sh: $size" >&2
  "${PYTHON:-python3}" "$root/benchmarks/roofline.py" --repetitions "${REPETITIONS:-2}" --dtype bfloat16 "$@" | tee "$out/gpu-$size.md"
}

gpu() { # what launch/gpu.sh sets for a run
  export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES:-0}" JAX_PLATFORMS=cuda
  if [ -z "${XLA_PYTHON_CLIENT_MEM_FRACTION:-}" ]; then export XLA_CLIENT_MEM_FRACTION="${XLA_CLIENT_MEM_FRACTION:-0.92}"; fi
}

# The tokens of one question at a time go through the update: a million of them at once would need more than any device has.
workload=(--workload 64,16,512,1024 --set update.micro_batches=64)
for size in ${SIZE:-1.5b 1.5b-cudnn 1.5b-rows 7b}; do
  case $size in
    1.5b)
      gpu
      measure 1.5b --random qwen2.5-1.5b "${workload[@]}" "$@"
      ;;
    1.5b-cudnn) # its sampling differs in the prefill alone: compare the update
      gpu
      measure 1.5b-cudnn --random qwen2.5-1.5b "${workload[@]}" --set model.attention=cudnn "$@"
      ;;
    1.5b-rows) # its update is the same: compare sampling
      gpu
      measure 1.5b-rows --random qwen2.5-1.5b "${workload[@]}" --set rollout.rows=1024 "$@"
      ;;
    7b) # weights and moments in bfloat16, rounded stochastically: 46 GB instead of 91
      gpu
      lean=(--set model.weights_dtype=bfloat16 --set optimizer.state_dtype=bfloat16)
      measure 7b --random qwen2.5-7b "${workload[@]}" "${lean[@]}" "$@"
      ;;
    tiny)
      lean=(--set model.weights_dtype=bfloat16 --set optimizer.state_dtype=bfloat16)
      measure tiny --random tiny --workload 4,4,24,40 --set update.micro_batches=4 "${lean[@]}" "$@"
      ;;
    *)
      echo "gpu.sh: SIZE=$size is none of 1.5b, 1.5b-cudnn, 1.5b-rows, 7b, tiny" >&2
      exit 2
      ;;
  esac
done
