#!/usr/bin/env bash
# Trains on this machine's processors, or on the accelerator of the jax that is already installed in the environment.
#   launch/local.sh [--dry-run] CONFIG [section.field=value ...]
# VENV and PYTHON choose the environment (.venv) and the interpreter that makes it (python3).
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)

dry=
run() { "$@"; }
if [ "${1:-}" = --dry-run ]; then
  dry=yes
  run() { printf '%q ' "$@" && echo; }
  shift
fi
if [ $# -eq 0 ]; then
  echo "usage: launch/local.sh [--dry-run] CONFIG [section.field=value ...]" >&2
  exit 2
fi

venv=${VENV:-$root/.venv}
if [ ! -x "$venv/bin/jaxselftrain" ]; then
  run "${PYTHON:-python3}" -m venv "$venv"
  tag=$("${PYTHON:-python3}" -c 'import sys; print("py%d%d" % sys.version_info[:2])')
  pins=()
  if [ -f "$root/constraints/$tag.txt" ]; then pins=(-c "$root/constraints/$tag.txt"); fi
  run "$venv/bin/python" -m pip install --quiet ${pins[@]+"${pins[@]}"} -e "$root"
fi
command=("$venv/bin/jaxselftrain" train "$@")
if [ -n "$dry" ]; then run "${command[@]}"; else exec "${command[@]}"; fi
