#!/usr/bin/env bash
# Runs on each worker of a TPU slice; launch/tpu_vm.sh copies it there and calls it.
#   tpu_worker.sh install                the environment ~/jaxselftrain-venv, anew when the dependencies have changed
#   tpu_worker.sh setup                  unpack ~/jaxselftrain.tgz as ~/jaxselftrain, then install
#   tpu_worker.sh run CONFIG ...         setup, then train in the background, with the variables in ~/jaxselftrain-environment
#   tpu_worker.sh train CONFIG ...       train in the foreground, joined with the other workers; for launchers that copy and watch
#   tpu_worker.sh status|logs|stop       of that run; ~/jaxselftrain-run has its log, its process number and how it ended
set -euo pipefail
self=$(cd "$(dirname "$0")" && pwd)/$(basename "$0")
verb=${1-}
shift || true
runs=$HOME/jaxselftrain-run

metadata() { # as JAX asks for it
  curl -sf -m 5 -H 'Metadata-Flavor: Google' "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}

# The worker's number; the machine's name where there is no such service.
worker=$(metadata agent-worker-number || hostname)

running() { # a number can be given again after a reboot, so its command must be ours, too
  [ -e "$runs/pid" ] && [ ! -e "$runs/code" ] && grep -qs jaxselftrain-venv "/proc/$(cat "$runs/pid")/cmdline"
}

find_python() { # the images come with Python 3.10, one too old; a worker may have a newer one beside it
  local candidate
  for candidate in python3.12 python3.11; do
    if "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
      PYTHON=$(command -v "$candidate")
      return
    fi
  done
  python3 -m pip install --quiet --user uv
  python3 -m uv python install --quiet 3.12
  PYTHON=$(python3 -m uv python find 3.12)
}

install_here() { # from the checkout that is the working folder
  local now
  export VENV=$HOME/jaxselftrain-venv PYTHON
  now=$(cat setup.cfg pyproject.toml constraints/*.txt | cksum)
  if [ "$(cat "$VENV/dependencies" 2>/dev/null)" != "$now" ]; then rm -rf "$VENV"; fi
  if [ -x "$VENV/bin/jaxselftrain" ]; then return; fi
  find_python
  (script=tpu_worker.sh && . launch/environment.sh && install "" "[tpu]")
  echo "$now" >"$VENV/dependencies"
}

setup() {
  mkdir -p "$HOME/jaxselftrain"
  cd "$HOME/jaxselftrain"
  rm -rf jaxselftrain # a module that is gone there must be gone here; run folders in runs/ stay
  tar -xzf "$HOME/jaxselftrain.tgz"
  install_here
}

join_others() { # the workers of a slice of several machines, as addresses or as name:id:address, in the order of their numbers
  local endpoints workers
  endpoints=$(metadata worker-network-endpoints || true)
  IFS=, read -ra workers <<<"$endpoints"
  if [ "${#workers[@]}" -gt 1 ]; then
    export JAX_COORDINATOR_ADDRESS="${workers[0]##*:}:8482" JAX_NUM_PROCESSES="${#workers[@]}" JAX_PROCESS_ID="$worker"
  fi
}

supervise() {
  local code=0
  cd "$HOME/jaxselftrain"
  # shellcheck disable=SC1091 # written by tpu_vm.sh
  . "$HOME/jaxselftrain-environment"
  join_others
  echo "--- $(date -u '+%Y-%m-%d %H:%M:%S') UTC: jaxselftrain train $*"
  "$HOME/jaxselftrain-venv/bin/jaxselftrain" train "$@" &
  echo "$!" >"$runs/pid"
  wait "$!" || code=$?
  echo "--- ended with code $code"
  echo "$code" >"$runs/code"
}

case $verb in
  install) install_here ;;
  setup)
    setup
    echo "worker $worker: set up"
    ;;
  run)
    if running; then
      echo "worker $worker: a run is going on already; stop it first" >&2
      exit 2
    fi
    chmod 600 "$HOME/jaxselftrain-environment" # tokens
    setup
    mkdir -p "$runs"
    rm -f "$runs/pid" "$runs/code" "$runs/stopped"
    # Nothing of it may hold the connection open, and its end must not end the run.
    setsid nohup bash "$self" supervise "$@" >>"$runs/log" 2>&1 </dev/null &
    for _ in {1..50}; do
      if [ -e "$runs/pid" ]; then break; fi
      sleep 0.1
    done
    echo "worker $worker: started"
    ;;
  supervise) supervise "$@" ;;
  train)
    join_others
    exec "$HOME/jaxselftrain-venv/bin/jaxselftrain" train "$@"
    ;;
  status)
    if [ ! -e "$runs/pid" ]; then
      echo "worker $worker: nothing was started"
    elif [ -e "$runs/code" ] && [ -e "$runs/stopped" ]; then
      echo "worker $worker: stopped as it was told, with code $(cat "$runs/code")"
    elif [ -e "$runs/code" ]; then
      echo "worker $worker: ended with code $(cat "$runs/code")"
    elif running; then
      echo "worker $worker: running for $(ps -o etime= -p "$(cat "$runs/pid")" | tr -d ' ')"
    else
      echo "worker $worker: lost, the machine went down under the run"
    fi
    ;;
  logs)
    if [ ! -e "$runs/log" ]; then
      echo "worker $worker: nothing was started"
      exit 0
    fi
    follow=()
    if running; then follow=(-F --pid="$(cat "$runs/pid")"); fi
    tail -n 100 ${follow[@]+"${follow[@]}"} "$runs/log" | sed -u "s/^/[$worker] /"
    ;;
  stop)
    if running; then
      touch "$runs/stopped"
      kill -TERM "$(cat "$runs/pid")"
      echo "worker $worker: told to save and stop"
    else
      echo "worker $worker: nothing is running"
    fi
    ;;
  *)
    echo "tpu_worker.sh: install, setup, run, train, status, logs or stop, not '$verb'" >&2
    exit 2
    ;;
esac
