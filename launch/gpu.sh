#!/usr/bin/env bash
# Trains on one NVIDIA GPU through JAX's CUDA 13 build, and starts again whenever the run saved itself and stopped (exit 75).
#   launch/gpu.sh [--dry-run] CONFIG [section.field=value ...]
# VENV and PYTHON choose the environment (.venv-cuda) and the interpreter that makes it (python3); CUDA_VISIBLE_DEVICES the
# GPU (0); XLA_CLIENT_MEM_FRACTION the share of its memory that JAX takes at start (0.92, JAX's own default is 0.75).
# Ctrl-C or SIGTERM to this script reaches the run once: it saves, and the script ends with 75. A second one ends it at once.
. "$(dirname "$0")/environment.sh"
answer_help "$@"
read_arguments "$@"

gpu_settings
install .venv-cuda "[cuda]"
command=(env CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES:-0}" "${settings[@]}" "$venv/bin/jaxselftrain" train "${arguments[@]}")
if [ -n "$dry" ]; then
  run "${command[@]}"
  exit 0
fi
start() { start_process "" "${command[@]}"; }
keep_running start
