#!/usr/bin/env bash
# Usage: create.sh [--dry-run]
#
# Asks for the TPU that env.sh names, as a queued resource, and waits until it is there. Prints the
# state of the request whenever that changes. Started again, it waits for the same request: one that
# is in the queue keeps its place. Gives up after CREATE_MINUTES (default: 720; status 3), after three
# requests that gcloud refuses (1), and where it cannot find out whether there is one already (2).
# shellcheck source=tpu_scripts/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
# shellcheck source=tpu_scripts/state.sh
source "$SCRIPTS/state.sh"
[[ $# == 0 ]] || refuse "$1: not known; see --help"

spot=()
((SPOT)) && spot=(--spot)
create() {
  tpu queued-resources create "$TPU_NAME" --node-id="$TPU_NAME" \
    --accelerator-type="$ACCELERATOR_TYPE" --runtime-version="$RUNTIME_VERSION" "${spot[@]}"
}
((DRY_RUN)) && create && exit 0

before='' asked=0
for ((minute = 0; minute <= ${CREATE_MINUTES:-720}; minute++)); do
  now=$(state)
  [[ $now == "$before" || $now == NONE ]] || echo "$TPU_NAME: $now"
  case $now in
    ACTIVE) exit 0 ;;
    FAILED | SUSPENDED)
      refuse "$TPU_NAME is $now; remove it with delete.sh $TPU_NAME, and try another zone, type or SPOT" ;;
    UNKNOWN) [[ -n $before ]] || refuse "nothing is created: $TPU_NAME may exist; see the answer of gcloud above" ;;
    NONE)
      ((asked < 3)) || { echo "create.sh: $TPU_NAME is not created; see the answer of gcloud above" >&2 && exit 1; }
      # The minutes are those of a request that was received.
      asked=$((asked + 1)) minute=-1
      # A request may have been received although the answer is an error.
      create || true
      wait_for 10 ;;
  esac
  [[ $now == NONE ]] || wait_for 60
  before=$now
done
echo "create.sh: $TPU_NAME is still $now after ${CREATE_MINUTES:-720} minutes; start again to wait on" >&2
exit 3
