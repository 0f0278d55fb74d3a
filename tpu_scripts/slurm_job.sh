#!/usr/bin/env bash
# The batch job of slurm.sh: slurm_job.sh VENV GRACE_SECONDS TRAIN_COMMAND HF_TOKEN_FILE
set -euo pipefail
venv=$1 grace=$2 command=$3 token=$4
export PATH=$venv/bin:$PATH
[[ ! -r $token ]] || export HF_TOKEN_PATH=$token # HF_TOKEN, which SLURM passes on, goes before it
# SIGTERM is for training, which gets it from SLURM, saves and exits with 75. This shell stays.
trap '' TERM

# One process that ends must not have the others killed while they save: no --kill-on-bad-exit, but
# those that hang without it are ended after the time that saving takes.
code=0
srun --kill-on-bad-exit=0 --wait="$grace" bash -c "$command" || code=$?

if ((code == 75)); then
  echo "slurm_job.sh: training was preempted and has saved; back into the queue"
  scontrol requeue "$SLURM_JOB_ID" || echo "slurm_job.sh: not requeued ('slurm.sh stop')"
fi
exit "$code"
