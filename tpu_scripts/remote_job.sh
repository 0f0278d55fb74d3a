#!/usr/bin/env bash
# Training as a job of one TPU machine that outlives the ssh connection. tpu.sh calls it there:
#   mount WORKDIR MOUNT_COMMAND   mount the file system that WORKDIR lies on, unless it is mounted
#   start WORKDIR MOUNT_COMMAND COMMAND   the same, then run COMMAND in the repository's root,
#                   detached; refused while one is running
#   token FILE      keep the token of Hugging Face that lies in FILE (empty: none) for training
#   status          prints "chopjax-job: " and idle, running or "exit N"
#   stop SECONDS    SIGTERM, wait so long for it to save, then SIGKILL; fine when nothing runs
#   tail            the last lines of the log
#   log WORKDIR MOUNT_COMMAND   mount, then copy the log to WORKDIR/logs under this machine's name
set -euo pipefail

REPOSITORY=$(dirname "$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)")
STATE=${CHOPJAX_JOB_DIR:-$HOME/chopjax_job} # outside the repository: setup replaces that
LOG=$STATE/train.log
mkdir -p "$STATE"

fail() {
  echo "remote_job.sh: $(hostname): $*" >&2
  exit 1
}

# What is there of the path lies on another file system than /: a mount point that is still (or
# again) an empty folder of this machine's own disk must not be taken for the share.
mounted() {
  local there=$1
  until [[ -e $there ]]; do there=$(dirname "$there"); done
  [[ $(stat -Lc %d "$there") != "$(stat -Lc %d /)" ]]
}

mount_share() { # WORKDIR MOUNT_COMMAND
  local code=0
  if ! mounted "$1" && [[ -n $2 ]]; then
    bash -c "$2" </dev/null || code=$?
    ((code == 0)) || fail "MOUNT_COMMAND failed with exit code $code: $2"
  fi
  mounted "$1" || fail "WORKDIR=$1 lies on this machine's own disk: nothing is mounted there" \
    "(MOUNT_COMMAND: ${2:-not set})"
  mkdir -p "$1/logs" && [[ -w $1 ]] || fail "$(whoami) cannot write to WORKDIR=$1"
}

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
  [[ ! -s $STATE/hf_token ]] || export HF_TOKEN_PATH=$STATE/hf_token
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
  mount) mount_share "$2" "$3" ;;
  start)
    ! running || fail "training already runs"
    mount_share "$2" "$3"
    rm -f "$STATE/exit_code" "$STATE/group"
    setsid nohup "${BASH_SOURCE[0]}" keep "$4" </dev/null >>"$LOG" 2>&1 &
    for ((tenth = 0; tenth < 100; tenth++)); do
      [[ ! -s $STATE/group ]] || exit 0
      sleep 0.1
    done
    fail "training did not start"
    ;;
  keep) keep "$2" ;;
  token)
    rm -f "$STATE/hf_token"
    [[ -z $2 ]] || { chmod 600 "$2" && mv "$2" "$STATE/hf_token"; }
    ;;
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
  log)
    mount_share "$2" "$3"
    [[ ! -e $LOG ]] || cp "$LOG" "$2/logs/$(hostname).log"
    ;;
  *)
    sed -n '2,11s/^# //p' "${BASH_SOURCE[0]}" >&2
    exit 2
    ;;
esac
