#!/usr/bin/env bash
# Training as a job of one TPU machine that outlives the ssh connection. tpu.sh calls it there:
#   start COMMAND   run COMMAND in the repository's root, detached; refused while one is running
#   status          prints "chopjax-job: " and idle, running or "exit N"
#   stop SECONDS    SIGTERM, wait so long for it to save, then SIGKILL; fine when nothing runs
#   tail            the last lines of the log
#   upload FOLDER   copy the log to FOLDER (gs://…) under this machine's name
set -euo pipefail

REPOSITORY=$(dirname "$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)")
STATE=${CHOPJAX_JOB_DIR:-$HOME/chopjax_job} # outside the repository: setup replaces that
LOG=$STATE/train.log
mkdir -p "$STATE"

# Started, not known to have ended, and its process group is alive.
running() {
  [[ -s $STATE/group && ! -s $STATE/exit_code ]] && kill -0 -- "-$(<"$STATE/group")" 2>/dev/null
}

status() {
  if running; then
    echo "running"
  elif [[ -s $STATE/exit_code ]]; then
    echo "exit $(<"$STATE/exit_code")"
  elif [[ -s $STATE/group ]]; then
    echo "exit 137" # gone without a word: killed together with its keeper, or the machine restarted
  else
    echo "idle"
  fi
}

# Runs the command in a process group of its own, so that `stop` reaches all of it and not us, and
# writes down how it ended.
keep() {
  local code=0
  cd "$REPOSITORY"
  export PATH=$REPOSITORY/.venv/bin:$PATH
  printf '\n==== %s %s: %s\n' "$(date '+%F %T')" "$(hostname)" "$1"
  setsid bash -c "$1" </dev/null &
  echo $! >"$STATE/group"
  wait $! || code=$?
  kill -KILL -- "-$(<"$STATE/group")" 2>/dev/null || true # an orphan would hold the TPU
  printf '==== %s exit code %s\n' "$(date '+%F %T')" "$code"
  echo "$code" >"$STATE/exit_code.new"
  mv "$STATE/exit_code.new" "$STATE/exit_code"
}

case ${1:-} in
  start)
    if running; then
      echo "remote_job.sh: training already runs on $(hostname)" >&2
      exit 1
    fi
    rm -f "$STATE/exit_code" "$STATE/group"
    setsid nohup "${BASH_SOURCE[0]}" keep "$2" </dev/null >>"$LOG" 2>&1 &
    for ((tenth = 0; tenth < 100; tenth++)); do
      [[ ! -s $STATE/group ]] || exit 0
      sleep 0.1
    done
    echo "remote_job.sh: training did not start on $(hostname)" >&2
    exit 1
    ;;
  keep) keep "$2" ;;
  status) echo "chopjax-job: $(status)" ;;
  stop)
    if running; then
      group=$(<"$STATE/group")
      kill -TERM -- "-$group"
      for ((tenth = 0; tenth < $2 * 10; tenth++)); do
        [[ ! -s $STATE/exit_code ]] || exit 0
        sleep 0.1
      done
      echo "remote_job.sh: still there after $2 s on $(hostname): killed" >&2
      kill -KILL -- "-$group"
      until [[ -s $STATE/exit_code ]] || ! running; do sleep 0.1; done
    fi
    ;;
  tail) tail -n 15 "$LOG" | sed "s/^/$(hostname): /" ;;
  upload) [[ ! -e $LOG ]] || gcloud storage cp "$LOG" "$2/$(hostname).log" ;;
  *)
    sed -n '2,7s/^# //p' "${BASH_SOURCE[0]}" >&2
    exit 2
    ;;
esac
