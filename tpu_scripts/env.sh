# shellcheck shell=bash
# Sourced by the other scripts: the names of a TPU, from the environment or from tpu_scripts/tpu.env
# (lines NAME=VALUE), and how gcloud is called.
#
#   TPU_NAME          what the TPU is called
#   PROJECT, ZONE     the Google Cloud project and zone
#   ACCELERATOR_TYPE  v4-8, v5litepod-8, v5p-8, v6e-8, ...
#   SPOT              1: cheaper, and taken away at any time; 0: on demand (default: 1)
#   RUNTIME_VERSION   the image (default: by generation)
#   LOOK_SECONDS      how long babysit.sh and create.sh wait for an answer when they look (default: 120)
#   WAIT_UNIT         seconds of one unit of waiting (default: 1; 0: none, as in tests)
set -euo pipefail
SCRIPTS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [[ -f ${TPU_ENV:-$SCRIPTS/tpu.env} ]]; then
  # shellcheck source=/dev/null
  source "${TPU_ENV:-$SCRIPTS/tpu.env}"
fi
DRY_RUN=0

refuse() { echo "${0##*/}: $*" >&2; exit 2; }

# Prints the block of comments that a script begins with.
usage() { sed -n '2,/^[^#]/{s/^# \{0,1\}//p}' "$0"; exit 0; }

# The options that all scripts have, taken from the arguments of the one that sources this.
case ${1:-} in
  -h | --help) usage ;;
  --dry-run) DRY_RUN=1 && shift ;;
esac
for name in TPU_NAME PROJECT ZONE ACCELERATOR_TYPE; do
  [[ -n ${!name:-} ]] || refuse "$name is not set; export it, or write $name=VALUE into tpu_scripts/tpu.env"
done
SPOT=${SPOT:-1} LOOK_SECONDS=${LOOK_SECONDS:-120} WAIT_UNIT=${WAIT_UNIT:-1}
case $ACCELERATOR_TYPE in
  v4-*) RUNTIME_VERSION=${RUNTIME_VERSION:-tpu-ubuntu2204-base} ;;
  v5litepod-*) RUNTIME_VERSION=${RUNTIME_VERSION:-v2-alpha-tpuv5-lite} ;;
  v5p-*) RUNTIME_VERSION=${RUNTIME_VERSION:-v2-alpha-tpuv5} ;;
  v6e-*) RUNTIME_VERSION=${RUNTIME_VERSION:-v2-alpha-tpuv6e} ;;
  *) [[ -n ${RUNTIME_VERSION:-} ]] ||
    refuse "ACCELERATOR_TYPE=$ACCELERATOR_TYPE: not v4-N, v5litepod-N, v5p-N or v6e-N; set RUNTIME_VERSION too" ;;
esac

# Runs gcloud in the project and zone, within GCLOUD_LIMIT (words of timeout), or only prints the call.
tpu() {
  local call=(gcloud compute tpus "$@" --project="$PROJECT" --zone="$ZONE")
  if ((DRY_RUN)); then
    printf '%q ' "${call[@]}" && echo
  else
    ${GCLOUD_LIMIT:+timeout -k 10 $GCLOUD_LIMIT} "${call[@]}"
  fi
}

# look CALL ...: one that is short. It fails after LOOK_SECONDS, and the ssh that it started ends with it.
# In the background, since timeout keeps a Ctrl-C from what it runs, and bash would wait for that.
look() { GCLOUD_LIMIT=$LOOK_SECONDS "$@" & wait $!; }

# on WORKER COMMAND: a command line for the shell of a worker, or of all.
on() { tpu tpu-vm ssh "$TPU_NAME" --worker="$1" --command="$2"; }

wait_for() { [[ $WAIT_UNIT == 0 ]] || sleep "$(awk "BEGIN {print $1 * $WAIT_UNIT}")"; }
