#!/usr/bin/env bash
# Trains on a Cloud TPU VM, or on a slice of many ("pod"), from nothing to a running job and back to nothing. docs/launch.md walks
# through it.
#   launch/tpu_vm.sh create   ask for the TPU and wait until it is there; from then on it costs
#   launch/tpu_vm.sh setup    copy this checkout to all workers and install it there
#   launch/tpu_vm.sh run CONFIG [section.field=value ...]   copy, install if need be, start on all workers; goes on without you
#   launch/tpu_vm.sh logs     follow what a worker prints
#   launch/tpu_vm.sh status   of the request, the VM, and the run on each worker
#   launch/tpu_vm.sh stop     the run saves itself and stops; the TPU still costs
#   launch/tpu_vm.sh delete   the TPU, and see that it is gone
# Options, before CONFIG; the variables in parentheses do as well:
#   --name NAME (TPU_NAME)  --zone ZONE (ZONE)  --project PROJECT (PROJECT, else gcloud's own)  --dry-run   with every command
#   --accelerator-type TYPE (ACCELERATOR_TYPE)  --spot   with create, and with run --restart, which may have to create it
#   --runtime-version VERSION (RUNTIME_VERSION)   likewise; without it the one that goes with the accelerator
#   --env VARIABLE   with run: pass on this variable of yours, besides HF_TOKEN and WANDB_API_KEY; repeat it for more
#   --restart        with run: stay, and when the TPU was preempted ask for it again, set it up and go on; creates it, too
#   --worker N|all   with logs (0)
# POLL_SECONDS is the time between two looks while waiting (30).
. "$(dirname "$0")/environment.sh"
usage="usage: launch/$script create|setup|run|logs|status|stop|delete [--dry-run] [OPTION ...] [CONFIG [section.field=value ...]]"
answer_help "$@"

verb=${1-}
case $verb in
  create | setup | run | logs | status | stop | delete) shift ;;
  '')
    echo "$usage" >&2
    exit 2
    ;;
  *) refuse "the first argument is create, setup, run, logs, status, stop or delete, not '$verb'" ;;
esac
name=${TPU_NAME:-}
zone=${ZONE:-}
project=${PROJECT:-}
accelerator=${ACCELERATOR_TYPE:-}
runtime=${RUNTIME_VERSION:-}
spot=()
restart=
worker=0
variables=()
poll=${POLL_SECONDS:-30}

belongs() { # OPTION VERB ...: refuse it with any other
  local option=$1 allowed
  shift
  for allowed in "$@"; do if [ "$verb" = "$allowed" ]; then return; fi; done
  allowed="$*"
  refuse "$option goes with ${allowed// / and }, not with $verb"
}

set_option() { # OPTION VALUE
  case $1 in
    --name | --zone | --project | --accelerator-type | --runtime-version | --env | --worker)
      if [ -z "$2" ]; then refuse "$1 needs a value"; fi
      ;;
    *) refuse "there is no option $1" ;;
  esac
  case $1 in
    --name) name=$2 ;;
    --zone) zone=$2 ;;
    --project) project=$2 ;;
    --accelerator-type) belongs "$1" create run && accelerator=$2 ;;
    --runtime-version) belongs "$1" create run && runtime=$2 ;;
    --env) belongs "$1" run && variables+=("$2") ;;
    --worker) belongs "$1" logs && worker=$2 ;;
  esac
}

while [ $# -gt 0 ]; do
  case $1 in
    --dry-run) go_dry ;;
    --spot) belongs --spot create run && spot=(--spot) ;;
    --restart) belongs --restart run && restart=yes ;;
    --*=*) set_option "${1%%=*}" "${1#*=}" ;;
    --*)
      set_option "$1" "${2-}"
      shift
      ;;
    -*) refuse "there is no option $1" ;;
    *)
      if [ "$verb" != run ]; then refuse "$verb takes options alone, not '$1'"; fi
      break
      ;;
  esac
  shift
done

if ! [[ $name =~ ^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$ ]]; then
  refuse "--name (or TPU_NAME) is lower-case letters, digits and hyphens, a letter first, not '$name'"
fi
if ! [[ $zone =~ ^[a-z]+-[a-z]+[0-9]+-[a-z]$ ]]; then refuse "--zone (or ZONE) is a zone such as us-central1-a, not '$zone'"; fi
if ! [[ $worker =~ ^([0-9]+|all)$ ]]; then refuse "--worker is a number or all, not '$worker'"; fi
if ! [[ $poll =~ ^[0-9]+$ ]]; then refuse "POLL_SECONDS is a number of seconds, not '$poll'"; fi
where=(--zone="$zone")
if [ -n "$project" ]; then where+=(--project="$project"); fi

check_accelerator() { # the runtime for each TPU version: https://cloud.google.com/tpu/docs/runtimes
  local default=
  case $accelerator in
    '') refuse "--accelerator-type (or ACCELERATOR_TYPE) is missing, e.g. v5litepod-16" ;;
    v6e-*) default=v2-alpha-tpuv6e ;;
    v5p-*) default=v2-alpha-tpuv5 ;;
    v5litepod-*) default=v2-alpha-tpuv5-lite ;;
    v[234]-*) default=tpu-ubuntu2204-base ;;
    tpu7x*) refuse "$accelerator is there through Kubernetes alone: see launch/gke" ;;
  esac
  runtime=${runtime:-$default}
  if [ -z "$runtime" ]; then refuse "--runtime-version (or RUNTIME_VERSION) is missing: none is known for '$accelerator'"; fi
}

check_run() { # everything that can be wrong with it, before anything is touched
  local variable folder argument
  for variable in ${variables[@]+"${variables[@]}"}; do
    if ! [[ $variable =~ ^[A-Za-z_][A-Za-z_0-9]*$ ]]; then
      refuse "--env takes the name of a variable, whose value stays out of the command line, not '$variable'"
    fi
    if [ -z "${!variable+set}" ]; then refuse "--env $variable: there is no such variable in your environment"; fi
  done
  folder=$(cd "$(dirname "$config")" && pwd -P)/$(basename "$config")
  case $folder in
    "$root"/*) ;;
    *) refuse "$config is not in $root, and only that is copied to the workers" ;;
  esac
  for argument in "${!arguments[@]}"; do
    if [ "${arguments[argument]}" = "$config" ]; then
      arguments[argument]=${folder#"$root"/}
      break
    fi
  done
  config=${folder#"$root"/}
  if ! git -C "$root" rev-parse --is-inside-work-tree >/dev/null 2>&1; then
    refuse "$root is no git checkout: what .gitignore keeps from the workers cannot be told"
  fi
  folder=$(awk '/^train:/ {inside = 1} /^[^ #]/ && !/^train:/ {inside = 0} inside && match($0, /[ {]folder: */) {
    print substr($0, RSTART + RLENGTH)}' "$root/$config")
  for argument in "${arguments[@]}"; do if [[ $argument == train.folder=* ]]; then folder=${argument#*=}; fi; done
  case $folder in
    gs://* | \"gs://* | \'gs://*) ;;
    *) echo "launch/$script: train.folder is not on gs://, so what the run saves is lost with the VM, at a preemption, too" >&2 ;;
  esac
}

if [ "$verb" = run ]; then
  read_arguments "$@"
  check_run
fi
if [ "$verb" = create ] || [ -n "$restart" ]; then
  check_accelerator
elif [ "${#spot[@]}" -gt 0 ]; then
  refuse "--spot is for a TPU that is asked for: with create or run --restart"
fi
if [ -z "$dry" ] && ! command -v gcloud >/dev/null; then
  refuse "there is no gcloud: install it as https://cloud.google.com/sdk/docs/install says"
fi

fail() {
  echo "launch/$script: $1" >&2
  exit "${2:-1}"
}

say() { if [ -z "$dry" ]; then echo "launch/$script: $1" >&2; fi; }

# Sets `request` and `vm` to the states of those named $name, empty where there is none, and `others` to the rest in the zone.
# A dry run takes them for what its arguments say.
look() {
  local requests vms
  local list_requests=(gcloud compute tpus queued-resources list "${where[@]}" '--format=value(name.basename(),state.state)')
  local list_vms=(gcloud compute tpus tpu-vm list "${where[@]}" '--format=value(name.basename(),state)')
  if [ -n "$dry" ]; then
    run "${list_requests[@]}"
    run "${list_vms[@]}"
    request=$1 vm=$2 others=
    return
  fi
  requests=$("${list_requests[@]}") || return 1
  vms=$("${list_vms[@]}") || return 1
  request=$(awk -v name="$name" '$1 == name {print $2}' <<<"$requests")
  vm=$(awk -v name="$name" '$1 == name {print $2}' <<<"$vms")
  others=$(awk -v name="$name" 'NF && $1 != name {print $1 " (" $2 ")"}' <<<"$requests"$'\n'"$vms" | sort -u)
}

look_or_fail() { look "$@" || fail "gcloud could not list what is in $zone"; }

ask() {
  run gcloud compute tpus queued-resources create "$name" --node-id="$name" "${where[@]}" \
    --accelerator-type="$accelerator" --runtime-version="$runtime" ${spot[@]+"${spot[@]}"}
}

wait_until_there() {
  local before=none absent=0
  while true; do
    look_or_fail ACTIVE READY
    if [ "$request" != "$before" ]; then say "$name is ${request:-not listed yet} (Ctrl-C ends the waiting, not the request)"; fi
    before=$request
    case $request in
      ACTIVE) if [ "$vm" = READY ]; then return; fi ;;
      FAILED | SUSPENDING | SUSPENDED) return 1 ;;
      '')
        absent=$((absent + 1))
        if [ "$absent" -ge 10 ]; then return 1; fi
        ;;
    esac
    sleep "$poll"
  done
}

remove() {
  if [ -n "$request" ]; then run gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet; fi
  # One that was made without a request; --force has taken the other along.
  if [ -z "$request" ] && [ -n "$vm" ]; then run gcloud compute tpus tpu-vm delete "$name" "${where[@]}" --quiet; fi
}

on_workers() { # WORKER VERB ARGUMENT ...
  local on=$1 line
  shift
  line=$(printf ' %q' bash tpu_worker.sh "$@")
  run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker="$on" --command="${line# }"
}

pack() { # the files that git does not ignore, and CONFIG
  if [ -n "$dry" ]; then
    echo "# pack what git -C $(printf %q "$root") ls-files --cached --others --exclude-standard lists: jaxselftrain.tgz"
    return
  fi
  git -C "$root" ls-files -z --cached --others --exclude-standard | while IFS= read -rd '' file; do
    if [ -e "$root/$file" ] || [ -L "$root/$file" ]; then printf '%s\0' "$file"; fi # not those deleted since
  done >"$temporary/files" || return 1
  if [ -n "$config" ]; then printf '%s\0' "$config" >>"$temporary/files"; fi
  COPYFILE_DISABLE=1 tar -C "$root" --null -T "$temporary/files" -czf "$temporary/jaxselftrain.tgz"
}

write_environment() { # in a file that only its owner reads: a command line is there for everybody on the machine
  local variable passed=()
  for variable in HF_TOKEN WANDB_API_KEY ${variables[@]+"${variables[@]}"}; do
    if [ -n "${!variable+set}" ]; then passed+=("$variable"); fi
  done
  if [ -n "$dry" ]; then
    echo "# write jaxselftrain-environment with ${passed[*]-no variable}"
    return
  fi
  (
    umask 077
    for variable in ${passed[@]+"${passed[@]}"}; do printf 'export %s=%q\n' "$variable" "${!variable}"; done \
      >"$temporary/jaxselftrain-environment"
  )
}

temporary=TEMPORARY # in a dry run
send() {
  local files=(jaxselftrain.tgz) place
  if [ -z "$dry" ]; then
    temporary=$(mktemp -d) || return 1
    trap 'rm -rf "$temporary"' EXIT
  fi
  pack || return 1
  if [ "$verb" = run ]; then
    write_environment || return 1
    files+=(jaxselftrain-environment)
  fi
  for place in "${!files[@]}"; do files[place]=$temporary/${files[place]}; done
  run gcloud compute tpus tpu-vm scp "${files[@]}" "$root/launch/tpu_worker.sh" "$name:" "${where[@]}" --worker=all || return 1
  if [ -z "$dry" ]; then rm -rf "$temporary"; fi
}

start() { send && on_workers all run "${arguments[@]}"; }

must_be_there() {
  look_or_fail ACTIVE READY
  if [ "$vm" != READY ]; then
    refuse "there is no TPU $name ready in $zone (request: ${request:-none}, VM: ${vm:-none}); create makes one"
  fi
}

# What the workers say of the run, as one word or the exit code: running, finished, again, stopped, or the code that it died with.
judge() {
  local code
  code=$(sed -n 's/.*: ended with code \([0-9]*\)$/\1/p' <<<"$1" | grep -vx -e 0 -e 75 | head -n 1 || true)
  if grep -q ': running' <<<"$1"; then # the rest will end, too: JAX ends those whose peers are gone
    echo running
  elif grep -q ': stopped' <<<"$1"; then
    echo stopped
  elif grep -q ': lost' <<<"$1"; then # the others died of that
    echo again
  elif [ -n "$code" ]; then
    echo "$code"
  elif grep -q -e ': ended with code 75' -e ': nothing' <<<"$1"; then
    echo again
  else
    echo finished
  fi
}

# From nothing, or from a run that goes on, to its end. It gives up when the same step failed ten times; an answer that gcloud
# owes while this machine has no network is waited for.
watch_over() {
  local failures=0 report verdict='' seen='' step
  trap 'trap - INT; say "no longer watching; the run goes on, and costs: the same command watches again"; exit 130' INT
  while [ "$failures" -lt 10 ]; do
    step=yes
    if ! look; then
      say "gcloud could not list what is in $zone; trying again"
      sleep "$poll"
      continue
    fi
    if [ "$request $vm" != "$seen" ]; then say "request: ${request:-none}, VM: ${vm:-none}"; fi
    seen="$request $vm"
    case $request/$vm in
      /)
        verdict=again
        ask || step=
        ;;
      ACTIVE/READY)
        if [ "$verdict" != again ]; then
          if report=$(on_workers all status); then
            verdict=$(judge "$report")
          elif [ -z "$verdict" ]; then # not set up yet
            verdict=again
          else
            step=
          fi
        fi
        case $verdict in
          running) ;;
          again)
            if start; then verdict=running; else step=; fi
            ;;
          finished)
            say "the run is finished; the TPU is still there, and costs, until delete"
            exit 0
            ;;
          stopped) fail "the run saved itself and stopped, as it was told; the TPU is still there, and costs, until delete" 75 ;;
          *)
            # When one worker is taken away the others die of it, sooner than the TPU is listed as preempted.
            sleep "$poll"
            if ! look || [ "$request/$vm" != ACTIVE/READY ]; then
              verdict=again
              continue
            fi
            fail "the run died with code $verdict: see logs; the TPU is still there, and costs, until delete" "$verdict"
            ;;
        esac
        ;;
      FAILED/* | SUSPENDED/* | ACTIVE/PREEMPTED | ACTIVE/TERMINATED | ACTIVE/STOPPED | /PREEMPTED | /TERMINATED)
        say "$name was taken away or not given; asking for it again"
        verdict=again
        remove || step=
        ;;
    esac
    if [ -n "$step" ]; then failures=0; else failures=$((failures + 1)); fi
    sleep "$poll"
  done
  fail "ten failures in a row, giving up; the TPU may be there, and cost: see status and delete"
}

case $verb in
  create)
    look_or_fail '' ''
    if [ -n "$request$vm" ]; then refuse "there is a $name in $zone already (request: ${request:-none}, VM: ${vm:-none})"; fi
    ask
    wait_until_there || fail "$name is ${request:-gone}: it will not come; delete it and create it again, or another"
    say "$name is there, and costs from now on; setup or run comes next, delete ends it"
    ;;
  setup)
    must_be_there
    send
    on_workers all setup
    ;;
  run)
    if [ -n "$restart" ] && [ -n "$dry" ]; then
      look '' ''
      ask
      look ACTIVE READY
      start
      on_workers all status
      echo "# and whenever it was taken away, all of that again after"
      remove
    elif [ -n "$restart" ]; then
      watch_over
    else
      must_be_there
      start
    fi
    ;;
  logs) on_workers "$worker" logs ;;
  stop) on_workers all stop ;;
  status)
    look_or_fail ACTIVE READY
    if [ -z "$dry" ]; then
      echo "request $name: ${request:-none}"
      echo "VM $name: ${vm:-none}"
    fi
    if [ "$vm" = READY ]; then
      on_workers all status || fail "the workers did not answer; when setup was not run yet they cannot"
    fi
    ;;
  delete)
    look_or_fail ACTIVE READY
    remove
    look_or_fail '' ''
    if [ -n "$dry" ]; then exit 0; fi
    if [ -n "$request$vm" ]; then
      fail "$name is still there (request: ${request:-none}, VM: ${vm:-none}), and may cost: delete it again"
    fi
    echo "Nothing named $name is left in $zone: it costs nothing any more. What lies in a bucket still does."
    if [ -n "$others" ]; then echo "Still in $zone: ${others//$'\n'/, }"; fi
    ;;
esac
