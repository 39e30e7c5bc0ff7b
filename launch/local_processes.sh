#!/usr/bin/env bash
# Trains in N processes on this machine, as a pod of N hosts would: they find each other through jax.distributed over loopback.
#   launch/local_processes.sh N [--dry-run] [--devices D] CONFIG [section.field=value ...]
# Each process has D simulated devices (1), and its lines begin with its number: [0] ... JAX_PLATFORMS is cpu unless it is set;
# VENV and PYTHON choose the environment (.venv) and the interpreter that makes it (python3).
# When the run saves itself and stops (exit 75), all start again. Ctrl-C or SIGTERM to this script reaches each of them once: they
# save, and the script ends with 75. When one dies with another code, the others are ended and the script ends with that code.
. "$(dirname "$0")/environment.sh"
usage="usage: launch/$script N [--dry-run] [--devices D] CONFIG [section.field=value ...]"
answer_help "$@"

processes=
devices=1
rest=()
while [ $# -gt 0 ]; do
  case $1 in
    --devices)
      if [ $# -lt 2 ]; then refuse "--devices needs a number"; fi
      devices=$2
      shift
      ;;
    --devices=*) devices=${1#*=} ;;
    -*) rest+=("$1") ;;
    *) if [ -z "$processes" ]; then processes=$1; else rest+=("$1"); fi ;;
  esac
  shift
done
if [ -z "$processes" ]; then
  echo "$usage" >&2
  exit 2
fi
for number in "$processes" "$devices"; do
  if ! [[ $number =~ ^[1-9][0-9]{0,3}$ ]]; then refuse "the numbers of processes and devices are 1 or more, not '$number'"; fi
done
read_arguments ${rest[@]+"${rest[@]}"}

install .venv ""
flags="${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$devices"
start() {
  # A port that is free now, and a new one for every start: the one before may linger.
  local port process command
  port=$("${PYTHON:-python3}" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
  for ((process = 0; process < processes; process++)); do
    command=(env JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}" XLA_FLAGS="$flags" JAX_COORDINATOR_ADDRESS="127.0.0.1:$port"
      JAX_NUM_PROCESSES="$processes" JAX_PROCESS_ID="$process" "$venv/bin/jaxselftrain" train "${arguments[@]}")
    if [ -n "$dry" ]; then run "${command[@]}"; else start_process "$process" "${command[@]}"; fi
  done
}
if [ -n "$dry" ]; then start; else keep_running start; fi
