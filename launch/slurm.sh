#!/usr/bin/env bash
#SBATCH --job-name=jaxselftrain
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# Trains on the GPU nodes of a Slurm cluster, and queues itself again whenever the run saved itself and stopped (exit 75).
#   launch/slurm.sh [--dry-run] CONFIG [section.field=value ...]                on a login node: install, then submit
#   sbatch [OPTION ...] launch/slurm.sh CONFIG [section.field=value ...]        from the checkout, with sbatch's own options
# The checkout, the environment (VENV, .venv-cuda) and train.folder must lie where all nodes see them. Your environment is passed
# on (HF_TOKEN, WANDB_API_KEY, ...); sbatch reads options from it as well: SBATCH_ACCOUNT, SBATCH_PARTITION, SBATCH_TIMELIMIT.
#
# One task a node, with all its GPUs, as on TPU hosts: the samples of a question stay in one process, so what divides them, or the
# weights of a layer (mesh.tensor), needs a process with several devices, and questions must be no fewer than processes. JAX asks
# for one process or more a host, and under Slurm gives each one GPU alone unless JAX_LOCAL_DEVICE_IDS says otherwise
# (docs.jax.dev: multi_process, jax.distributed.initialize).
# Five minutes before the limit Slurm sends SIGTERM to the tasks, not to this script; they save and exit with 75.
script=slurm.sh
here=$(dirname "$0")
if [ ! -e "$here/environment.sh" ]; then # sbatch runs a copy of this file, in a folder of its own
  here=${JAXSELFTRAIN_LAUNCH:-${SLURM_SUBMIT_DIR:-.}/launch}
fi
if [ ! -e "$here/environment.sh" ]; then
  echo "launch/slurm.sh: submit it from the checkout: there is no $here/environment.sh" >&2
  exit 2
fi
. "$here/environment.sh"
answer_help "$@"
read_arguments "$@"
if [ -z "$dry$(command -v sbatch)" ]; then refuse "there is no sbatch: this machine is no part of a Slurm cluster"; fi

install .venv-cuda "[cuda]"
if [ -z "${SLURM_JOB_ID:-}" ]; then
  export JAXSELFTRAIN_LAUNCH=$root/launch
  run sbatch "$root/launch/$script" "${arguments[@]}"
  exit 0
fi

gpu_settings
gpus=${SLURM_GPUS_ON_NODE:-1}
settings+=(JAX_LOCAL_DEVICE_IDS="$(seq -s, 0 $((gpus - 1)))")
# --kill-on-bad-exit=0: whoever has saved exits with 75, and must not end those who are saving still. --cpus-per-task: since Slurm
# 22.05 srun does not take it over from sbatch. srun's own exit code is the highest of its tasks', so that one which crashed (1) would
# not be seen beside others that ended for it (75): each task leaves its code in a folder. It outlives the signal to write it.
codes=$root/.slurm-codes-${SLURM_JOB_ID}
# shellcheck disable=SC2016 # the task's own shell expands them
task='trap : TERM; "$@"; code=$?; echo "$code" >"$0/$SLURM_PROCID"; exit "$code"'
command=(srun --kill-on-bad-exit=0 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --export=ALL bash -c "$task" "$codes"
  env "${settings[@]}" "$venv/bin/jaxselftrain" train "${arguments[@]}")
if [ -n "$dry" ]; then
  run "${command[@]}"
  exit 0
fi
rm -rf "$codes"
mkdir "$codes"
code=0
run "${command[@]}" || code=$?
crashed=$(cat "$codes"/* 2>/dev/null | grep -vx -e 0 -e 75 | head -n 1 || true)
rm -rf "$codes"
code=${crashed:-$code}
if [ "$code" -eq 75 ]; then
  # A job that scancel ended has saved itself as well, but nobody wants it back.
  state=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)
  if [ "$state" = RUNNING ]; then
    echo "launch/$script: the run saved itself and stopped; queueing the job again" >&2
    scontrol requeue "$SLURM_JOB_ID"
  fi
fi
exit "$code"
