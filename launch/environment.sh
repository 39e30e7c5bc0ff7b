# Sourced by the launch scripts, with their arguments: takes --dry-run off them, refuses none, and defines
#   run COMMAND ...          run it, or only print it under --dry-run
#   install VENV EXTRA       an environment with jaxselftrain, e.g. with the extra [cuda], unless there is one
# VENV and PYTHON choose the environment and the interpreter that makes it (python3).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

dry=
run() { "$@"; }
if [ "${1:-}" = --dry-run ]; then
  dry=yes
  run() { printf '%q ' "$@" && echo; }
  shift
fi
if [ $# -eq 0 ]; then
  echo "usage: launch/$(basename "$0") [--dry-run] CONFIG [section.field=value ...]" >&2
  exit 2
fi
arguments=("$@")

install() {
  venv=${VENV:-$root/$1}
  if [ -x "$venv/bin/jaxselftrain" ]; then return; fi
  run "${PYTHON:-python3}" -m venv "$venv"
  local tag pins=()
  tag=$("${PYTHON:-python3}" -c 'import sys; print("py%d%d" % sys.version_info[:2])')
  if [ -f "$root/constraints/$tag.txt" ]; then pins=(-c "$root/constraints/$tag.txt"); fi
  run "$venv/bin/python" -m pip install --quiet ${pins[@]+"${pins[@]}"} -e "$root$2"
}
