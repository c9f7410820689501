#!/usr/bin/env bash
# Usage: babysit.sh RUN -- COMMAND [ARGUMENT ...]
#
# Sees a training run through: creates and sets up the TPU where there is none, starts the command (see
# run.sh), looks every minute, and starts it again where it was preempted (status 75), lost one of its
# processes (76) or ended otherwise. It continues from its last checkpoint: --workdir must be in a bucket.
# A request is deleted only once it is SUSPENDED or FAILED, or its TPU is gone; one in the queue is
# waited for. What cannot be found out changes nothing. Ends with the status
#   0  the run is done           5  RETRIES (default: 20) tries failed, with no hour of training in between
#   2  it refused its input      6  nothing was found out for UNREACHABLE_MINUTES (default: 1440)
# shellcheck source=tpu_scripts/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
# shellcheck source=tpu_scripts/state.sh
source "$SCRIPTS/state.sh"
((DRY_RUN)) && refuse "--dry-run: shows nothing here; see that of run.sh, create.sh and setup.sh"
[[ $# -ge 3 && $2 == -- ]] || refuse "give a name and a command, as: babysit.sh RUN -- COMMAND ARGUMENT ..."
run=$1 retries=${RETRIES:-20} unreachable=${UNREACHABLE_MINUTES:-1440} tried=0 started=0 minutes=0 missed=0
[[ $run =~ ^[A-Za-z0-9_-]+$ ]] || refuse "RUN=$run: letters, digits, _ and - only"

end() { echo "babysit: $2" >&2 && exit "$1"; }

again() {
  ((tried < retries)) || end 5 "$run did not end well after $retries tries; see logs.sh $run"
  tried=$((tried + 1)) started=0 minutes=0 missed=0
  local pause=$((tried < 6 ? 15 * 2 ** tried : 900))
  echo "babysit: $1; try $tried of $retries in $pause s"
  wait_for "$pause"
}

while :; do
  seen=$(workers "$run") || seen=$(state)
  [[ $seen != ACTIVE || $(node) != NONE ]] || seen=GONE
  case $seen in
    *going*)
      started=1 missed=0 minutes=$((minutes + 1)) tried=$((minutes < 60 ? tried : 0))
      wait_for 60 ;;
    ACTIVE | UNKNOWN | SUSPENDING | DELETING)
      ((missed % 60)) || echo "babysit: $TPU_NAME is $seen, and its workers do not answer; nothing is changed"
      missed=$((missed + 1))
      ((missed < unreachable)) || end 6 "$TPU_NAME was out of reach for $missed minutes and is left as it is"
      wait_for 60 ;;
    SUSPENDED | FAILED | GONE)
      # Without --force Google Cloud refuses to delete a request whose TPU runs.
      tpu queued-resources delete "$TPU_NAME" --quiet || true
      again "$TPU_NAME was $seen, and is made anew" ;;
    *bare*) started=0 && { "$SCRIPTS/setup.sh" || again "$TPU_NAME was not set up"; } ;;
    [A-Z]*) started=0 && { "$SCRIPTS/create.sh" || again "$TPU_NAME is not there yet"; } ;;
    *)
      # What was there before this script began says nothing of its command.
      [[ $started$seen =~ ^1(0 )+$ ]] && echo "babysit: $run is done" && exit 0
      [[ $started == 1 && " $seen" == *' 2 '* ]] && end 2 "$run refused its input; see logs.sh $run"
      if ((started)); then
        again "$run ended ($seen)"
      elif "$SCRIPTS/run.sh" "$@" || [[ $? == 4 ]]; then
        started=1
      else
        again "$run was not started"
      fi ;;
  esac
done
