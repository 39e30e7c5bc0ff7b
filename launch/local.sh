#!/usr/bin/env bash
# Trains on this machine's processors, or on the accelerator of the jax that is already installed in the environment.
#   launch/local.sh [--dry-run] CONFIG [section.field=value ...]
# VENV and PYTHON choose the environment (.venv) and the interpreter that makes it (python3).
. "$(dirname "$0")/environment.sh"
answer_help "$@"
read_arguments "$@"

install .venv ""
command=("$venv/bin/jaxselftrain" train "${arguments[@]}")
if [ -n "$dry" ]; then run "${command[@]}"; else exec "${command[@]}"; fi
