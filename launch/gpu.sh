#!/usr/bin/env bash
# Trains on one NVIDIA GPU through JAX's CUDA 13 build, and starts again whenever the run saved itself and stopped (exit 75).
#   launch/gpu.sh [--dry-run] CONFIG [section.field=value ...]
# VENV and PYTHON choose the environment (.venv-cuda) and the interpreter that makes it (python3); CUDA_VISIBLE_DEVICES the
# GPU (0); XLA_CLIENT_MEM_FRACTION the share of its memory that JAX takes at start (0.92, JAX's own default is 0.75).
# Ctrl-C or SIGTERM to this script reaches the run once: it saves, and the script ends with 75. A second one ends it at once.
. "$(dirname "$0")/environment.sh"

settings=(CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES:-0}" JAX_PLATFORMS=cuda)
if [ -z "${XLA_PYTHON_CLIENT_MEM_FRACTION:-}" ]; then # the old name; JAX refuses both together
  settings+=(XLA_CLIENT_MEM_FRACTION="${XLA_CLIENT_MEM_FRACTION:-0.92}")
fi

install .venv-cuda "[cuda]"
command=(env "${settings[@]}" "$venv/bin/jaxselftrain" train "${arguments[@]}")
if [ -n "$dry" ]; then
  run "${command[@]}"
  exit 0
fi

# In a session of its own the run hears only what this script passes on: a Ctrl-C that reached it twice would not save.
stopped=
signalled=
child=
stop() {
  stopped=yes
  signalled=yes
  if [ -n "$child" ]; then kill -TERM "$child" 2>/dev/null || true; fi
}
trap stop INT TERM HUP
while true; do
  setsid "${command[@]}" &
  child=$!
  code=0
  wait "$child" || code=$?
  while [ -n "$signalled" ]; do # a signal to this script ends `wait` while the run is still saving
    signalled=
    code=0
    wait "$child" || code=$?
  done
  if [ "$code" -ne 75 ] || [ -n "$stopped" ]; then exit "$code"; fi
  echo "launch/gpu.sh: the run saved itself and stopped; starting it again" >&2
done
