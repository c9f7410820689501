#!/usr/bin/env bash
# Usage: delete.sh [--dry-run] TPU_NAME
#
# Deletes the TPU and its request, and all that lies on its disks. The name must be the one that
# env.sh has, so that no other TPU is meant by accident. What is in a bucket stays.
# shellcheck source=tpu_scripts/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
[[ ${1:-} == "$TPU_NAME" && $# == 1 ]] || refuse "give the name of the TPU to delete it: delete.sh $TPU_NAME"
echo "deleting $TPU_NAME in $PROJECT, $ZONE" >&2
tpu queued-resources delete "$TPU_NAME" --force --quiet
