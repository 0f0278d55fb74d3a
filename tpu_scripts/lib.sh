# shellcheck shell=bash disable=SC2034
# What tpu.sh, gke.sh and slurm.sh have in common. Sourced, never run.
set -euo pipefail

# The exit code by which training says "stopped from outside, start me again" (EX_TEMPFAIL of
# sysexits.h). chopjax/launch/distributed.py has the same number.
readonly EXIT_PREEMPTED=75

SCRIPTS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(dirname "$SCRIPTS")
ME=$(basename "$0")

say() { printf '%s\n' "$*" >&2; }

die() {
  say "$ME: error: $*"
  exit 2
}

# quoted ARGUMENT… → one line that can be pasted into a shell
quoted() {
  local argument line=""
  for argument in "$@"; do
    if [[ ! $argument =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]]; then
      argument="'${argument//\'/\'\\\'\'}'"
    fi
    line+=" $argument"
  done
  printf '%s\n' "${line# }"
}

# run COMMAND ARGUMENT… → does it and shows it; with --dry-run only shows it
run() {
  if $DRY_RUN; then
    quoted "$@"
  else
    say "+ $(quoted "$@")"
    "$@"
  fi
}

# ask COMMAND ARGUMENT… → the same for a question: its answer is what counts, so it is not shown
ask() {
  if $DRY_RUN; then quoted "$@"; else "$@"; fi
}

# need SETTING… → every one has a value, or all that have none are named
need() {
  local name missing=()
  for name in "$@"; do
    [[ -n ${!name:-} ]] || missing+=("$name")
  done
  if ((${#missing[@]})); then
    die "not set: ${missing[*]}. Write a value into $SETTINGS (its comments say what is meant)."
  fi
}

# tools COMMAND… → each is on PATH; a dry run needs none
tools() {
  local tool
  $DRY_RUN && return
  for tool in "$@"; do
    command -v "$tool" >/dev/null || die "$tool is not on PATH. Install it, or look with --dry-run."
  done
}

# start_up ARGUMENT… → VERB, DRY_RUN and the settings, or the help. The script defines usage().
start_up() {
  local name missing=()
  VERB="" DRY_RUN=false SETTINGS=$SCRIPTS/settings.sh
  while (($#)); do
    case $1 in
      -h | --help) usage && exit 0 ;;
      --dry-run) DRY_RUN=true ;;
      --settings)
        (($# > 1)) || die "--settings needs a file"
        SETTINGS=$2
        shift
        ;;
      -*) die "unknown flag $1; $ME --help lists them" ;;
      *)
        [[ -z $VERB ]] || die "one verb at a time: $VERB or $1"
        VERB=$1
        ;;
    esac
    shift
  done
  [[ -n $VERB ]] || die "no verb given; $ME --help lists them"
  [[ -r $SETTINGS ]] || die "cannot read the settings file $SETTINGS"
  # shellcheck source=settings.sh
  source "$SETTINGS"
  while IFS= read -r name; do
    [[ -v $name ]] || missing+=("$name")
  done < <(sed -n 's/^\([A-Z_]*\)=.*/\1/p' "$SCRIPTS/settings.sh")
  ((${#missing[@]} == 0)) || die "$SETTINGS lacks ${missing[*]}; see $SCRIPTS/settings.sh"
  need NAME WORKDIR TRAIN_COMMAND GRACE_SECONDS MAX_FAILURES POLL_SECONDS COLLECT_DIR
  [[ $TRAIN_COMMAND != *"--config.data.train=''"* ]] || need TRAIN_STORE
  [[ -n $HF_TOKEN_FILE ]] || unset HF_TOKEN
  numbers GRACE_SECONDS MAX_FAILURES
  [[ $WORKDIR == /* ]] ||
    die "WORKDIR=$WORKDIR in $SETTINGS: an absolute path on a file system that every host mounts"
  stores_are_shared
  [[ $NAME =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] ||
    die "NAME=$NAME in $SETTINGS: lower-case letters, digits and dashes only"
}

# folders_of STORES → one a line: of FOLDER, or of FOLDER=WEIGHT,FOLDER=WEIGHT
folders_of() {
  local part parts
  [[ $1 == *=* ]] || { printf '%s\n' "$1" && return; }
  IFS=, read -ra parts <<<"$1"
  for part in "${parts[@]}"; do printf '%s\n' "${part%=*}"; done
}

# stores_are_shared → TRAIN_STORE and EVALUATION_STORE are the same on every host
stores_are_shared() {
  local name folder
  for name in TRAIN_STORE EVALUATION_STORE; do
    while IFS= read -r folder; do
      [[ -z $folder || $folder == /* || $folder == *://* ]] ||
        die "$name=${!name} in $SETTINGS: an absolute path on a file system that every host mounts," \
          "or a URL"
    done < <(folders_of "${!name}")
  done
}

# hf_token FOLDER → HF_TOKEN_SOURCE is a file with the token, in FOLDER where HF_TOKEN holds it; empty
# where there is none. Never an argument of a program: those are for all to see.
hf_token() {
  HF_TOKEN_SOURCE=""
  if [[ -n ${HF_TOKEN:-} ]]; then
    HF_TOKEN_SOURCE=$1/token
    if $DRY_RUN; then
      echo "(umask 077 && echo \"\$HF_TOKEN\" >$(quoted "$HF_TOKEN_SOURCE"))"
    else
      (umask 077 && printf '%s\n' "$HF_TOKEN" >"$HF_TOKEN_SOURCE")
    fi
  elif [[ -n $HF_TOKEN_FILE && -r $HF_TOKEN_FILE ]]; then
    HF_TOKEN_SOURCE=$HF_TOKEN_FILE
  fi
}

# temporary → TEMPORARY is a folder that goes when this script ends
TEMPORARY=""
temporary() {
  if $DRY_RUN; then
    TEMPORARY=/tmp
  elif [[ -z $TEMPORARY ]]; then
    TEMPORARY=$(mktemp -d)
    trap 'rm -rf "$TEMPORARY"' EXIT
  fi
}

# check_training here|elsewhere → the `chopjax train` of TRAIN_COMMAND, with its model, its token and
# its stores, is looked at on this machine, before anything is asked for; also in a dry run
check_training() {
  local arguments=${TRAIN_COMMAND##*chopjax train } words
  if [[ $arguments == "$TRAIN_COMMAND" ]]; then
    say "$ME: not checked: there is no \`chopjax train\` in TRAIN_COMMAND"
    return
  elif ! command -v chopjax >/dev/null; then
    say "$ME: not checked: TRAIN_COMMAND, for chopjax is not on PATH here (pip install $ROOT)"
    return
  elif ! (eval "words=($arguments)") 2>/dev/null; then
    say "$ME: not checked: TRAIN_COMMAND, for it is more than words: $arguments"
    return
  fi
  eval "words=($arguments)"
  ((SLICES == 1)) || [[ $arguments == *mesh.slices=* ]] ||
    say "$ME: SLICES=$SLICES, and TRAIN_COMMAND does not say --config.mesh.slices=$SLICES"
  # In the folder that it will run in, and with the token that it will have.
  (cd "$ROOT" && HF_TOKEN_PATH=${HF_TOKEN_FILE:-/dev/null} chopjax train "${words[@]}" --check "$1" >&2) ||
    die "TRAIN_COMMAND in $SETTINGS would not start: see above"
}

# numbers SETTING… → every one is a whole number of at least 1
numbers() {
  local name
  for name in "$@"; do
    [[ ${!name} =~ ^[1-9][0-9]*$ ]] ||
      die "$name=${!name} in $SETTINGS: a whole number of at least 1 is needed"
  done
}

# one_of SETTING VALUE… → the setting has one of these values
one_of() {
  local name=$1 value
  shift
  for value in "$@"; do
    [[ ${!name} != "$value" ]] || return 0
  done
  die "$name=${!name} in $SETTINGS: it must be one of: $*"
}

# on_interrupt SENTENCE… → Ctrl-C says what goes on without us, and how to go on
on_interrupt() {
  # shellcheck disable=SC2064
  trap "say; say $(quoted "$ME: interrupted. $*"); exit 130" INT TERM
}

# count_failure WHAT → one more of MAX_FAILURES, or the end
FAILURES=0
count_failure() {
  FAILURES=$((FAILURES + 1))
  say "$ME: failure $FAILURES of at most $MAX_FAILURES: $1"
  ((FAILURES < MAX_FAILURES)) || die "gave up after $FAILURES failures. The last: $1"
}

# pack_workdir ARCHIVE → the command that packs, there, everything in WORKDIR but the checkpoints
pack_workdir() {
  # tar's 1: a file, such as a log, grew meanwhile
  echo "tar $(quoted -czf "$1" --exclude=checkpoints -C "$WORKDIR") . || [ \$? = 1 ]"
}

# unpack_workdir ARCHIVE → what it holds, in COLLECT_DIR
unpack_workdir() {
  run tar -xzf "$1" -C "$COLLECT_DIR"
  run rm "$1"
  $DRY_RUN || say "$ME: metrics and logs are in $COLLECT_DIR; the checkpoints stay in $WORKDIR/checkpoints"
}
