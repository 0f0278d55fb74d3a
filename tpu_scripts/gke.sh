#!/usr/bin/env bash
# Train on Google Kubernetes Engine with JobSet: `gke.sh --help`.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
  cat <<'END'
gke.sh VERB [--dry-run] [--settings FILE]

Train on TPU node pools of a Google Kubernetes Engine cluster, as a JobSet. Kubernetes restarts
training after a preemption by itself; `watch` only tells.

  create    one node pool a slice
  setup     credentials for kubectl, a look at VOLUME_CLAIM (the volume that WORKDIR lies on), the
            token of Hugging Face as a secret, the JobSet controller, and the image of this checkout
  launch    start training
  status    the JobSet and its pods
  watch     follow the JobSet until training is done (launching it if it is not there)
  stop      delete the JobSet: its pods get SIGTERM and save
  collect   metrics and logs, not checkpoints, onto this machine, by a pod of its own
  delete    give the node pools back; everything stays in WORKDIR
  manifest  print the JobSet

  --dry-run        check TRAIN_COMMAND on this machine, print every other command and run none
  --settings FILE  settings to use (default: settings.sh beside this script)
END
}

start_up "$@"
need PROJECT ZONE SLICES CLUSTER CLUSTER_LOCATION MACHINE_TYPE GKE_ACCELERATOR GKE_TOPOLOGY \
  HOSTS_PER_SLICE CHIPS_PER_HOST IMAGE NAMESPACE JOBSET_VERSION VOLUME_CLAIM MOUNT_PATH
numbers SLICES HOSTS_PER_SLICE CHIPS_PER_HOST
one_of CAPACITY spot on-demand
[[ $MOUNT_PATH =~ ^/[A-Za-z0-9._/-]+$ && $WORKDIR/ == "${MOUNT_PATH%/}"/* ]] ||
  die "MOUNT_PATH=$MOUNT_PATH in $SETTINGS: an absolute path that WORKDIR=$WORKDIR begins with"
for store in "$TRAIN_STORE" "$EVALUATION_STORE"; do
  while IFS= read -r folder; do
    [[ $folder != /* || $folder/ == "${MOUNT_PATH%/}"/* ]] ||
      die "$folder, a token store in $SETTINGS, does not lie below MOUNT_PATH=$MOUNT_PATH"
  done < <(folders_of "$store")
done
tools gcloud kubectl

CLUSTER_FLAGS=("--cluster=$CLUSTER" "--location=$CLUSTER_LOCATION" "--project=$PROJECT")
KUBECTL=(kubectl "--namespace=$NAMESPACE")
PODS="--selector=jobset.sigs.k8s.io/jobset-name=$NAME"

# Any pod that ends badly fails its job, and JobSet restarts all of them together: collectives need
# every process. Exit code 75 and disruptions (preemption, eviction) restart without limit.
manifest() {
  local spot="" account=""
  [[ $CAPACITY != spot ]] || spot="cloud.google.com/gke-spot: \"true\""
  [[ -z $KUBERNETES_SERVICE_ACCOUNT ]] || account="serviceAccountName: $KUBERNETES_SERVICE_ACCOUNT"
  grep -v '^ *$' <<END
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $NAME
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: $MAX_FAILURES
    rules:
    - name: preempted
      action: RestartJobSetAndIgnoreMaxRestarts
      onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
  - name: slice
    replicas: $SLICES
    template:
      spec:
        parallelism: $HOSTS_PER_SLICE
        completions: $HOSTS_PER_SLICE
        backoffLimit: 0
        podFailurePolicy:
          rules:
          - action: FailJob
            onExitCodes: {containerName: train, operator: In, values: [$EXIT_PREEMPTED]}
          - action: FailJob
            onPodConditions: [{type: DisruptionTarget, status: "True"}]
        template:
          spec:
            restartPolicy: Never
            terminationGracePeriodSeconds: $GRACE_SECONDS
            $account
            nodeSelector:
              cloud.google.com/gke-tpu-accelerator: $GKE_ACCELERATOR
              cloud.google.com/gke-tpu-topology: "$GKE_TOPOLOGY"
              $spot
            volumes: [{name: share, persistentVolumeClaim: {claimName: $VOLUME_CLAIM}}]
            containers:
            - name: train
              image: $IMAGE
              ports: [{containerPort: 8471}, {containerPort: 8080}, {containerPort: 8482}]
              resources:
                limits:
                  google.com/tpu: $CHIPS_PER_HOST
              volumeMounts: [{name: share, mountPath: $MOUNT_PATH}]
              env:
              - name: HF_TOKEN
                valueFrom: {secretKeyRef: {name: $NAME-hf-token, key: token, optional: true}}
              command: [bash, -c]
              args:
              - |
                ${TRAIN_COMMAND//$'\n'/$'\n                '}
END
}

apply() { # a pipe, which run() cannot show
  if $DRY_RUN; then
    echo "$(quoted "$0" manifest --settings "$SETTINGS") | $(quoted "${KUBECTL[@]}" apply -f -)"
  else
    say "+ $(quoted "${KUBECTL[@]}" apply -f -)"
    manifest | "${KUBECTL[@]}" apply -f -
  fi
}

create() {
  local slice flags=("--machine-type=$MACHINE_TYPE" "--num-nodes=$HOSTS_PER_SLICE")
  ((HOSTS_PER_SLICE == 1)) || flags+=("--tpu-topology=$GKE_TOPOLOGY")
  [[ $CAPACITY != spot ]] || flags+=(--spot)
  for ((slice = 0; slice < SLICES; slice++)); do
    run gcloud container node-pools create "$NAME-$slice" "${CLUSTER_FLAGS[@]}" \
      "--node-locations=$ZONE" "${flags[@]}"
  done
}

# Not by `apply`, which writes what it got into the metadata.
send_token() {
  temporary
  hf_token "$TEMPORARY"
  delete_token
  [[ -z $HF_TOKEN_SOURCE ]] ||
    run "${KUBECTL[@]}" create secret generic "$NAME-hf-token" "--from-file=token=$HF_TOKEN_SOURCE"
}

delete_token() { run "${KUBECTL[@]}" delete secret "$NAME-hf-token" --ignore-not-found; }

setup() {
  tools docker
  run gcloud container clusters get-credentials "$CLUSTER" "--location=$CLUSTER_LOCATION" \
    "--project=$PROJECT"
  run "${KUBECTL[@]}" get persistentvolumeclaim "$VOLUME_CLAIM"
  send_token
  run kubectl apply --server-side -f \
    "https://github.com/kubernetes-sigs/jobset/releases/download/$JOBSET_VERSION/manifests.yaml"
  run docker build --tag "$IMAGE" --file "$SCRIPTS/Dockerfile" "$ROOT"
  run docker push "$IMAGE"
}

# Prints "CONDITIONS;RESTARTS" of the JobSet, or ABSENT or UNKNOWN.
job_state() {
  local answer
  local format='{range .status.conditions[?(@.status=="True")]}{.type} {end};{.status.restarts}'
  local get=("${KUBECTL[@]}" get jobset "$NAME" "--output=jsonpath=$format")
  if answer=$(ask "${get[@]}" 2>&1); then
    echo "$answer"
  elif [[ $answer == *NotFound* ]]; then
    echo ABSENT
  else
    say "$answer"
    echo UNKNOWN
  fi
}

watch() {
  local state previous="" unknown=0
  if $DRY_RUN; then
    echo "# every $POLL_SECONDS s:" && job_state
    echo "# when the JobSet is absent:" && apply
    return
  fi
  on_interrupt "$NAME goes on. '$ME watch' resumes, '$ME stop' ends it."
  while :; do
    state=$(job_state)
    [[ $state == "$previous" ]] || say "$ME: $(date '+%F %T') $NAME (conditions; restarts): $state"
    previous=$state
    case $state in
      ABSENT) apply ;;
      *Completed*)
        say "$ME: training is done. '$ME collect', then '$ME delete'."
        return
        ;;
      *Failed*) die "training failed more than $MAX_FAILURES times; '$ME collect' fetches its logs" ;;
      UNKNOWN)
        unknown=$((unknown + 1))
        ((unknown < 10)) || die "kubectl failed $unknown times in a row; its message is above"
        sleep "$POLL_SECONDS"
        continue
        ;;
    esac
    unknown=0
    sleep "$POLL_SECONDS"
  done
}

stop() { run "${KUBECTL[@]}" delete jobset "$NAME" --ignore-not-found --cascade=foreground; }

# Into COLLECT_DIR, by way of a pod that mounts the volume: those of training may be gone.
fetch_workdir() {
  local pod=$NAME-collect archive=/tmp/$NAME-workdir.tar.gz
  local delete=("${KUBECTL[@]}" delete pod "$pod" --ignore-not-found)
  local spec="{\"apiVersion\": \"v1\", \"spec\": {\"activeDeadlineSeconds\": 3600, \"terminationGracePeriodSeconds\": 0,\
 \"volumes\": [{\"name\": \"share\", \"persistentVolumeClaim\": {\"claimName\": \"$VOLUME_CLAIM\"}}],\
 \"containers\": [{\"name\": \"collect\", \"image\": \"$IMAGE\", \"command\": [\"sleep\", \"3600\"],\
 \"volumeMounts\": [{\"name\": \"share\", \"mountPath\": \"$MOUNT_PATH\"}]}]}}"
  run "${delete[@]}" # of a collect that was interrupted
  run "${KUBECTL[@]}" run "$pod" "--image=$IMAGE" --restart=Never "--overrides=$spec"
  # shellcheck disable=SC2064
  $DRY_RUN || trap "$(quoted "${delete[@]}") --wait=false" EXIT
  run "${KUBECTL[@]}" wait "pod/$pod" --for=condition=Ready --timeout=300s
  run "${KUBECTL[@]}" exec "$pod" -- bash -c "$(pack_workdir "$archive")"
  run "${KUBECTL[@]}" cp "$pod:$archive" "$COLLECT_DIR/$NAME-workdir.tar.gz" --retries=10
  unpack_workdir "$COLLECT_DIR/$NAME-workdir.tar.gz"
  if $DRY_RUN; then quoted "${delete[@]}" --wait=false; fi
}

collect() {
  local logs=("${KUBECTL[@]}" logs "$PODS" --tail=-1 --prefix --max-log-requests=1000)
  run mkdir -p "$COLLECT_DIR"
  if $DRY_RUN; then
    echo "$(quoted "${logs[@]}") > $(quoted "$COLLECT_DIR/pods.log")"
  else
    say "+ $(quoted "${logs[@]}")"
    "${logs[@]}" >"$COLLECT_DIR/pods.log" || say "$ME: no logs: the pods are gone"
  fi
  fetch_workdir
}

delete() {
  local slice
  stop
  delete_token
  for ((slice = 0; slice < SLICES; slice++)); do
    run gcloud container node-pools delete "$NAME-$slice" "${CLUSTER_FLAGS[@]}" --quiet
  done
}

case $VERB in
  create | launch | watch) check_training elsewhere ;;
esac

case $VERB in
  create | setup | watch | stop | collect | delete | manifest) "$VERB" ;;
  launch) apply ;;
  status)
    job_state
    run "${KUBECTL[@]}" get pods "$PODS" --output=wide
    ;;
  *) die "unknown verb $VERB; $ME --help lists them" ;;
esac
