#!/usr/bin/env bash
# Train on Cloud TPU virtual machines: `tpu.sh --help`.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
  cat <<'END'
tpu.sh VERB [--dry-run] [--settings FILE]

Train on Cloud TPU virtual machines, requested as queued resources.

  create    ask for the slice and wait until it is there
  setup     mount the file system of WORKDIR on every machine (MOUNT_COMMAND, unless it is mounted)
            and install this checkout (what git tracks, as it is now)
  launch    start training on every machine, mounting again what a restart of the machine has
            unmounted; it goes on without this terminal
  status    state of the slice, and of training on every machine
  watch     all of the above, and again after every preemption, until training is done
  stop      SIGTERM to training everywhere: it saves and ends (stop `watch` first)
  collect   metrics and logs, not checkpoints, from the first machine onto this one
  delete    give the slice back (collect first); everything stays in WORKDIR

  --dry-run        check TRAIN_COMMAND on this machine, print every other command and run none
  --settings FILE  settings to use (default: settings.sh beside this script)
END
}

start_up "$@"
need PROJECT ZONE ACCELERATOR_TYPE RUNTIME_VERSION SLICES PYTHON_VERSION
numbers SLICES
one_of CAPACITY spot on-demand reserved
one_of SSH_ROUTE external internal iap
tools gcloud git

WHERE=("--project=$PROJECT" "--zone=$ZONE")
QUEUED=(gcloud compute tpus queued-resources)
case $SSH_ROUTE in
  external) ROUTE=() ;;
  internal) ROUTE=(--internal-ip) ;;
  iap) ROUTE=(--tunnel-through-iap) ;;
esac
EVERYWHERE=(--node=all --worker=all --batch-size=all "${ROUTE[@]}")
FIRST=(--node=0 --worker=0 "${ROUTE[@]}")
SHARE=("$WORKDIR" "$MOUNT_COMMAND")

everywhere() { # COMMAND → runs it on every machine; fails if it fails on one
  run "${QUEUED[@]}" ssh "$NAME" "${WHERE[@]}" "${EVERYWHERE[@]}" "--command=$1"
}

request() {
  local flags=("--accelerator-type=$ACCELERATOR_TYPE" "--runtime-version=$RUNTIME_VERSION")
  if ((SLICES > 1)); then
    flags+=("--node-count=$SLICES" "--node-prefix=$NAME")
  else
    flags+=("--node-id=$NAME")
  fi
  case $CAPACITY in
    spot) flags+=(--spot) ;;
    reserved) flags+=(--reserved) ;;
  esac
  [[ -z $VALID_UNTIL ]] || flags+=("--valid-until-duration=$VALID_UNTIL")
  [[ -z $NETWORK ]] || flags+=("--network=$NETWORK")
  [[ -z $SUBNETWORK ]] || flags+=("--subnetwork=$SUBNETWORK")
  [[ -z $SERVICE_ACCOUNT ]] || flags+=("--service-account=$SERVICE_ACCOUNT")
  [[ $SSH_ROUTE == external ]] || flags+=(--internal-ips)
  run "${QUEUED[@]}" create "$NAME" "${WHERE[@]}" "${flags[@]}"
}

delete() { run "${QUEUED[@]}" delete "$NAME" "${WHERE[@]}" --force --quiet; }

# Prints ABSENT, UNKNOWN (gcloud could not say), a state of the queued resource, or PREEMPTED: a
# machine can be gone while its queued resource still says ACTIVE.
slice_state() {
  local describe=("${QUEUED[@]}" describe "$NAME" "${WHERE[@]}" '--format=value(state.state)')
  local nodes=(gcloud compute tpus tpu-vm list "${WHERE[@]}"
    "--filter=name~/$NAME(-[0-9]+)?\$" '--format=value(state)')
  local answer
  if $DRY_RUN; then
    ask "${describe[@]}"
    ask "${nodes[@]}"
    return
  fi
  if ! answer=$("${describe[@]}" 2>&1); then
    if [[ $answer == *NOT_FOUND* ]]; then
      echo ABSENT
    else
      say "$answer"
      echo UNKNOWN
    fi
    return
  fi
  answer=${answer##*$'\n'} # gcloud's warnings come first
  if [[ $answer == ACTIVE ]] && "${nodes[@]}" 2>/dev/null | grep -qE '^(PREEMPTED|TERMINATED)$'; then
    answer=PREEMPTED
  fi
  echo "$answer"
}

wait_until_active() {
  local state="" previous=""
  if $DRY_RUN; then
    slice_state
    return
  fi
  while :; do
    state=$(slice_state)
    [[ $state == "$previous" ]] || say "$ME: $NAME is $state"
    previous=$state
    case $state in
      ACTIVE) return ;;
      ABSENT | FAILED | SUSPENDING | SUSPENDED | PREEMPTED | DELETING)
        die "$NAME will not become ACTIVE. '$ME delete', then '$ME create', or let '$ME watch' do it."
        ;;
    esac
    sleep "$POLL_SECONDS"
  done
}

# Everything in the checkout that git does not ignore, committed or not, as it is now.
pack() { # ARCHIVE
  # shellcheck disable=SC2016
  run bash -o pipefail -c 'git -C "$1" ls-files -coz --exclude-standard |\
 tar -C "$1" --null -T - --ignore-failed-read -czf "$2"' pack "$ROOT" "$1"
}

send() { # FILE NAME → under that name into the home of every machine
  run "${QUEUED[@]}" scp "$1" "$NAME:$2" "${WHERE[@]}" "${EVERYWHERE[@]}"
}

setup() {
  local archive=$NAME-source.tar.gz token=""
  temporary
  hf_token "$TEMPORARY"
  if [[ -n $HF_TOKEN_SOURCE ]]; then
    token=$NAME-hf-token
    send "$HF_TOKEN_SOURCE" "$token" || return
  fi
  pack "$TEMPORARY/$archive" &&
    send "$TEMPORARY/$archive" "" &&
    everywhere "set -e;\
 if chopjax/tpu_scripts/remote_job.sh status 2>/dev/null | grep running; then\
 echo 'stop training first' >&2; exit 1; fi;\
 rm -rf chopjax; mkdir chopjax; tar -xzf $archive -C chopjax; cd chopjax;\
 tpu_scripts/remote_job.sh token $(quoted "${token:+../$token}");\
 tpu_scripts/remote_job.sh mount $(quoted "${SHARE[@]}");\
 python3 -m pip install --quiet --user uv; export PATH=\$HOME/.local/bin:\$PATH;\
 uv venv --quiet --python $PYTHON_VERSION .venv; uv pip install --quiet --python .venv '.[tpu]'"
}

job() { # VERB ARGUMENT… of remote_job.sh, on every machine
  everywhere "chopjax/tpu_scripts/remote_job.sh $(quoted "$@")"
}

# Prints what the machines say, each once: bare (needs setup), idle, running, "exit N"; or UNKNOWN.
job_states() {
  local ask='if [ -x chopjax/.venv/bin/chopjax ]; then chopjax/tpu_scripts/remote_job.sh status;'
  local answer
  ask+=' else echo chopjax-job: bare; fi'
  if $DRY_RUN; then
    everywhere "$ask"
  elif answer=$(everywhere "$ask" 2>&1); then
    sed -n 's/^chopjax-job: //p' <<<"$answer" | sort -u
  else
    say "$answer"
    echo UNKNOWN
  fi
}

bring_up() { # [setup] → training starts afresh on every machine
  [[ ${1:-} != setup ]] || setup || return
  job stop "$GRACE_SECONDS" || return
  job start "${SHARE[@]}" "$TRAIN_COMMAND"
}

# One look at training on a slice that is ACTIVE; returns 0 when training is done.
SILENT=0
look_at_job() {
  local states
  states=$(job_states)
  if [[ $states == *UNKNOWN* || -z $states ]]; then
    SILENT=$((SILENT + 1))
    ((SILENT < 10)) || die "the machines of $NAME do not answer to ssh (SSH_ROUTE=$SSH_ROUTE)"
    return 1
  fi
  SILENT=0
  case $states in
    "exit 0") return 0 ;;
    running | $'exit 0\nrunning') return 1 ;;
    *bare*) bring_up setup || count_failure "could not set up or start training" ;;
    *idle* | *"exit $EXIT_PREEMPTED"*)
      say "$ME: training is to be started (again): ${states//$'\n'/, }"
      bring_up || count_failure "could not start training"
      ;;
    *)
      # A peer of a preempted machine crashes before Google says why: look again before counting.
      sleep "$POLL_SECONDS"
      if [[ $(slice_state) == ACTIVE ]]; then
        job tail || say "$ME: could not read the logs"
        count_failure "training: ${states//$'\n'/, }"
        bring_up || say "$ME: could not start training"
      fi
      ;;
  esac
  return 1
}

watch() {
  local state previous="" unknown=0
  if $DRY_RUN; then
    echo "# every $POLL_SECONDS s:" && slice_state
    echo "# when the slice is absent:" && request
    echo "# when it is SUSPENDED, FAILED or PREEMPTED:" && delete && request
    echo "# while it is ACTIVE:" && job_states
    echo "# when the machines are new:" && bring_up setup
    echo "# when training exited with $EXIT_PREEMPTED (saved) or failed:" && bring_up
    return
  fi
  on_interrupt "$NAME and its training go on and are billed. '$ME watch' resumes," \
    "'$ME delete' gives the slice back."
  while :; do
    state=$(slice_state)
    [[ $state == "$previous" ]] || say "$ME: $(date '+%F %T') $NAME is $state"
    previous=$state
    [[ $state == UNKNOWN ]] || unknown=0
    case $state in
      ABSENT) request || die "gcloud refused the request; its message is above" ;;
      ACTIVE)
        if look_at_job; then
          say "$ME: training is done. '$ME collect', then '$ME delete'."
          return
        fi
        ;;
      FAILED)
        count_failure "Google could not fill the request"
        { delete && request; } || say "$ME: will try again"
        ;;
      SUSPENDED | PREEMPTED) { delete && request; } || say "$ME: will try again" ;;
      UNKNOWN)
        unknown=$((unknown + 1))
        ((unknown < 10)) || die "gcloud failed $unknown times in a row; its message is above"
        ;;
    esac
    sleep "$POLL_SECONDS"
  done
}

collect() {
  local archive=$NAME-workdir.tar.gz
  job log "${SHARE[@]}" || say "$ME: not every machine answers; taking what is in $WORKDIR"
  run mkdir -p "$COLLECT_DIR"
  run "${QUEUED[@]}" ssh "$NAME" "${WHERE[@]}" "${FIRST[@]}" "--command=$(pack_workdir "$archive")"
  run "${QUEUED[@]}" scp "$NAME:$archive" "$COLLECT_DIR/$archive" "${WHERE[@]}" "${FIRST[@]}"
  unpack_workdir "$COLLECT_DIR/$archive"
}

# What a machine finds out only when it is there and billed.
look_at_mount() {
  local folder=$WORKDIR
  if [[ -z $MOUNT_COMMAND ]]; then
    say "$ME: MOUNT_COMMAND is not set: the machines must mount the file system of WORKDIR=$WORKDIR" \
      "as they start"
    return
  fi
  while [[ $folder != / ]]; do
    # A word of its own there, not the beginning of another path.
    [[ ! " $MOUNT_COMMAND " =~ [^A-Za-z0-9._/-]"$folder"/?[^A-Za-z0-9._/-] ]] || return 0
    folder=$(dirname "$folder")
  done
  say "$ME: MOUNT_COMMAND names no folder that WORKDIR=$WORKDIR lies in"
}

case $VERB in
  create | launch | watch)
    check_training elsewhere
    look_at_mount
    ;;
esac

case $VERB in
  create)
    on_interrupt "The request for $NAME stays queued. '$ME watch' or '$ME status' shows it," \
      "'$ME delete' withdraws it."
    request
    wait_until_active
    ;;
  setup) setup ;;
  launch)
    job start "${SHARE[@]}" "$TRAIN_COMMAND"
    $DRY_RUN || say "$ME: training runs on every machine of $NAME. '$ME watch' keeps it alive."
    ;;
  status)
    slice_state
    job_states
    ;;
  watch) watch ;;
  stop) job stop "$GRACE_SECONDS" ;;
  collect) collect ;;
  delete) delete ;;
  *) die "unknown verb $VERB; $ME --help lists them" ;;
esac
