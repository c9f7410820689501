#!/usr/bin/env bash
# Usage: fetch.sh [--dry-run] FROM HERE
#
# Brings a folder to this machine: FROM is gs://BUCKET/FOLDER, or a path on worker 0 of the TPU, as
# runs/nq/export (from its home) or /tmp/nq. Into the folder HERE, which is made.
# shellcheck source=tpu_scripts/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
[[ $# == 2 ]] || refuse "give what to fetch and where to, as: fetch.sh gs://BUCKET/RUN/export ./export"
if [[ $1 == gs://* ]]; then
  copy=(gcloud storage rsync --recursive "$1" "$2" --project="$PROJECT")
  if ((DRY_RUN)); then
    printf '%q ' "${copy[@]}" && echo
  else
    mkdir -p "$2" && "${copy[@]}"
  fi
else
  tpu tpu-vm scp --recurse "$TPU_NAME:$1" "$2" --worker=0
fi
