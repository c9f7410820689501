#!/usr/bin/env bash
# Usage: create.sh [--dry-run]
#
# Asks for the TPU that env.sh names, as a queued resource, and waits until it is there. Says what
# state the request is in whenever that changes. Started again, it goes on waiting for the same
# request. Gives up after CREATE_MINUTES (default: 720).
# shellcheck source=tpu_scripts/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
[[ $# == 0 ]] || refuse "$1: not known; see --help"

state() {
  tpu queued-resources describe "$TPU_NAME" --format='value(state.state)' 2>/dev/null || echo NONE
}

spot=()
((SPOT)) && spot=(--spot)
if ((DRY_RUN)) || [[ $(state) == NONE ]]; then
  tpu queued-resources create "$TPU_NAME" --node-id="$TPU_NAME" \
    --accelerator-type="$ACCELERATOR_TYPE" --runtime-version="$RUNTIME_VERSION" "${spot[@]}"
fi
((DRY_RUN)) && exit 0

before=''
for ((minute = 0; minute <= ${CREATE_MINUTES:-720}; minute++)); do
  now=$(state)
  [[ $now == "$before" ]] || echo "$TPU_NAME: $now"
  before=$now
  case $now in
    ACTIVE) exit 0 ;;
    FAILED | SUSPENDED | SUSPENDING)
      refuse "$TPU_NAME is $now; remove it with delete.sh $TPU_NAME, and try another zone, type or SPOT" ;;
  esac
  wait_for 60
done
echo "create.sh: $TPU_NAME is still $now after ${CREATE_MINUTES:-720} minutes; start again to wait on" >&2
exit 3
