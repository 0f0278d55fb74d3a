# shellcheck shell=bash disable=SC2034
# Every setting of tpu.sh, gke.sh and slurm.sh. Edit this file, or copy it and say --settings COPY.
# It is bash: later lines may use earlier ones. Empty means "not set".

# ---- The run ------------------------------------------------------------------------------------

# Name of the slice, JobSet or SLURM job: lower-case letters, digits and dashes.
NAME=chopjax

# Where checkpoints, metrics and logs go: an absolute path, the same on every host, on a file system
# that all of them mount (Filestore or other NFS, Lustre, Parallelstore). No bucket, neither gs://
# nor mounted: a checkpoint counts once it is renamed, which buckets do not do in one piece.
WORKDIR=

# The token store to train on and one of held-out text (empty: none), as `chopjax prepare` makes them:
# absolute paths, the same on every host, on such a file system, or gs://BUCKET/FOLDER.
TRAIN_STORE=
EVALUATION_STORE=

# A file on this machine with a token of Hugging Face, for models and data that need one, as Llama 2
# does; `hf auth login` writes this one, and HF_TOKEN, where it is set, goes before it. The hosts get
# it as a file (tpu.sh), a secret (gke.sh) or a path (slurm.sh) that you alone can read; it stands in
# no command line, log or metadata. Empty: none is passed on.
HF_TOKEN_FILE=${HF_TOKEN_PATH:-${HF_HOME:-$HOME/.cache/huggingface}/token}

# What each host runs, in the repository's root. It must save when it gets SIGTERM and then exit
# with 75 ("preempted, saved, start me again"), as `chopjax train` does, and resume when started
# again. Of several commands, training is the last; it is checked on this machine first.
TRAIN_COMMAND="chopjax train --config configs/just_chop_llama2_7b.py --workdir '$WORKDIR' \
--config.data.train='$TRAIN_STORE' --config.data.evaluation='$EVALUATION_STORE'"

# Seconds from SIGTERM until a host is killed: the time to save a checkpoint. Google gives a spot
# machine that it takes away about 30, whatever stands here.
GRACE_SECONDS=240

# How many failures `watch` mends by starting again before it gives up. Preemptions do not count.
MAX_FAILURES=5

# Seconds between two looks at the state of things.
POLL_SECONDS=60

# Where `collect` puts metrics and logs on this machine.
COLLECT_DIR=runs/$NAME

# ---- Google Cloud: tpu.sh and gke.sh ------------------------------------------------------------

# Project id.
PROJECT=

# Zone that has the TPUs, for example us-east5-a (v5p), us-central2-b (v4), us-west4-a (v5e).
ZONE=

# How capacity is paid for: spot (cheapest, may be taken away), on-demand, or reserved
# (tpu.sh only).
CAPACITY=spot

# Number of slices. More than one: they talk over the data-centre network (mesh axis `slice`).
SLICES=1

# ---- Cloud TPU virtual machines: tpu.sh ---------------------------------------------------------

# v4-N and v5p-N count cores, two a chip; v5litepod-N (v5e) and v6e-N count chips.
ACCELERATOR_TYPE=v5p-128

# Software on the machines: tpu-ubuntu2204-base (v4), v2-alpha-tpuv5-lite (v5e), v2-alpha-tpuv5
# (v5p), v2-alpha-tpuv6e (v6e).
RUNTIME_VERSION=v2-alpha-tpuv5

# Give up a request that was not filled in this time, for example 12h. Empty: wait for ever.
VALID_UNTIL=

# Network, subnetwork and service account of the machines. Empty: the project's defaults.
NETWORK=
SUBNETWORK=
SERVICE_ACCOUNT=

# What mounts the file system of WORKDIR on a machine. `setup` and `launch` (and `watch`) run it on
# every machine where it is not mounted. Empty: it is mounted when a machine starts. Example:
# MOUNT_COMMAND="sudo mkdir -p /mnt/share && sudo mount -t nfs -o hard ADDRESS:/share /mnt/share"
# (before the && also: sudo apt-get install -y nfs-common, where the image has no NFS).
MOUNT_COMMAND=

# How this machine reaches them: external (public addresses), internal (same network) or iap
# (through Identity-Aware Proxy). The last two create machines without public addresses.
SSH_ROUTE=external

# Python for the run, installed by uv, for the images come with an older one than chopjax needs.
PYTHON_VERSION=3.12

# ---- Google Kubernetes Engine: gke.sh -----------------------------------------------------------

# Cluster and where its control plane is (a region or a zone).
CLUSTER=
CLUSTER_LOCATION=

# Machine type, accelerator label and topology of one slice, and what follows from them: the number
# of machines and the chips in each. This is 64 chips of v5p; 16 chips of v5e would be
# ct5lp-hightpu-4t, tpu-v5-lite-podslice, 4x4, 4, 4.
MACHINE_TYPE=ct5p-hightpu-4t
GKE_ACCELERATOR=tpu-v5p-slice
GKE_TOPOLOGY=4x4x4
HOSTS_PER_SLICE=16
CHIPS_PER_HOST=4

# Image that `setup` builds and pushes, for example us-docker.pkg.dev/PROJECT/REPOSITORY/chopjax:v1.
IMAGE=

# Name of a PersistentVolumeClaim in NAMESPACE with access mode ReadWriteMany (Filestore, Lustre or
# Parallelstore; `kubectl get persistentvolumeclaims`), and where pods mount it: the path that
# WORKDIR begins with, for example /mnt/share.
VOLUME_CLAIM=
MOUNT_PATH=

# Kubernetes namespace, and the pods' service account (empty: the namespace's default).
NAMESPACE=default
KUBERNETES_SERVICE_ACCOUNT=

# Version of the JobSet controller that `setup` installs.
JOBSET_VERSION=v0.10.1

# ---- SLURM: slurm.sh ----------------------------------------------------------------------------

# Partition and account. Empty: the cluster's defaults.
PARTITION=
ACCOUNT=

# Nodes, processes on each, GPUs and CPU cores of each process. One GPU a process is what JAX takes
# under SLURM.
NODES=2
TASKS_PER_NODE=8
GPUS_PER_TASK=1
CPUS_PER_TASK=8

# Time limit of one job; GRACE_SECONDS before it the run saves and goes back into the queue.
TIME_LIMIT=24:00:00

# Virtual environment on the shared file system that `setup` makes and jobs use.
VENV=.venv
