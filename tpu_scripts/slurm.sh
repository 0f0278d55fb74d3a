#!/usr/bin/env bash
# Train on a SLURM cluster: `slurm.sh --help`.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
  cat <<'END'
slurm.sh VERB [--dry-run] [--settings FILE]

Train on a SLURM cluster of GPUs. A run that is preempted or reaches its time limit saves and goes
back into the queue.

  setup     virtual environment VENV with this checkout, on the shared file system
  launch    submit the job (refused while one of the same name is queued or running)
  status    the job's state
  watch     follow the job until training is done, and submit it again if it is lost
  stop      take it from the queue, or SIGTERM: it saves and ends (stop `watch` first)
  collect   metrics and logs into COLLECT_DIR

  --dry-run        check TRAIN_COMMAND on this machine, print every other command and run none
  --settings FILE  settings to use (default: settings.sh beside this script)
END
}

start_up "$@"
need NODES TASKS_PER_NODE GPUS_PER_TASK CPUS_PER_TASK TIME_LIMIT VENV
numbers NODES TASKS_PER_NODE GPUS_PER_TASK CPUS_PER_TASK
[[ $VENV == /* ]] || VENV=$ROOT/$VENV

setup() {
  tools python3
  run python3 -m venv "$VENV"
  run "$VENV/bin/pip" install "${ROOT}[gpu]"
}

launch() {
  local flags=("--job-name=$NAME" "--nodes=$NODES" "--ntasks-per-node=$TASKS_PER_NODE"
    "--gpus-per-task=$GPUS_PER_TASK" "--cpus-per-task=$CPUS_PER_TASK" "--time=$TIME_LIMIT"
    # SIGTERM to training, in time to save before the limit
    "--signal=TERM@$GRACE_SECONDS"
    --requeue --open-mode=append "--output=$WORKDIR/logs/%x-%j.log" "--chdir=$ROOT")
  [[ -z $PARTITION ]] || flags+=("--partition=$PARTITION")
  [[ -z $ACCOUNT ]] || flags+=("--account=$ACCOUNT")
  $DRY_RUN || [[ -z $(in_queue) ]] || die "$NAME is in the queue already: $(in_queue)"
  run mkdir -p "$WORKDIR/logs"
  run sbatch "${flags[@]}" "$SCRIPTS/slurm_job.sh" "$VENV" "$GRACE_SECONDS" "$TRAIN_COMMAND" \
    "$HF_TOKEN_FILE"
}

# State of the job in the queue (PENDING, RUNNING, …); empty when it is not there.
in_queue() { ask squeue --me "--name=$NAME" --noheader --format=%T; }

# How the job of this name that was submitted last ended: COMPLETED, FAILED, TIMEOUT, NODE_FAIL, …
ended() {
  local question=(sacct --allocations "--name=$NAME" --noheader --parsable2 --format=State
    --starttime=now-7days)
  if $DRY_RUN; then quoted "${question[@]}"; else "${question[@]}" | tail -n 1; fi
}

stop() {
  local id ids="JOB_ID"
  local question=(squeue --me "--name=$NAME" --noheader --format=%A)
  if $DRY_RUN; then quoted "${question[@]}"; else ids=$("${question[@]}"); fi
  for id in $ids; do
    # Without this, the job would go back into the queue when training exits with 75.
    run scontrol update "JobId=$id" Requeue=0
    run scancel --state=PENDING "$id"
    run scancel --signal=TERM "$id"
  done
}

watch() {
  local state previous=""
  if $DRY_RUN; then
    echo "# every $POLL_SECONDS s:" && in_queue
    echo "# when it is not in the queue:" && ended
    echo "# when it was lost (TIMEOUT, NODE_FAIL, PREEMPTED) or FAILED:" && launch
    return
  fi
  on_interrupt "$NAME goes on. '$ME watch' resumes, '$ME stop' ends it."
  while :; do
    state=$(in_queue) || die "squeue failed"
    if [[ -z $state ]]; then
      state=$(ended) || die "sacct failed"
      case $state in
        COMPLETED)
          say "$ME: training is done. '$ME collect' fetches its logs, '$ME launch' starts it anew."
          return
          ;;
        PENDING | RUNNING | COMPLETING | REQUEUED) # accounting lags behind the queue
          sleep "$POLL_SECONDS"
          continue
          ;;
        CANCELLED*) die "$NAME was cancelled; '$ME launch' starts it again" ;;
        FAILED* | OUT_OF_MEMORY) count_failure "training ended as $state; its log is in $WORKDIR/logs" ;;
      esac
      launch
    fi
    [[ $state == "$previous" ]] || say "$ME: $(date '+%F %T') $NAME: ${state:-submitted}"
    previous=$state
    sleep "$POLL_SECONDS"
  done
}

case $VERB in
  launch | watch) check_training here ;;
esac

case $VERB in
  setup) setup ;;
  launch)
    tools sbatch squeue
    launch
    ;;
  status)
    tools squeue sacct
    in_queue
    ended
    ;;
  watch)
    tools sbatch squeue sacct
    watch
    ;;
  stop)
    tools squeue scontrol scancel
    stop
    ;;
  collect)
    tools rsync
    run mkdir -p "$COLLECT_DIR"
    run rsync --archive --exclude=checkpoints/ "$WORKDIR/" "$COLLECT_DIR/"
    ;;
  *) die "unknown verb $VERB; $ME --help lists them" ;;
esac
