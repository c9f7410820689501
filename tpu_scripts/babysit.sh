#!/usr/bin/env bash
# Usage: babysit.sh RUN -- COMMAND [ARGUMENT ...]
#
# Sees a training run through: makes a TPU where there is none, starts the command (see run.sh), looks
# every minute, and starts it again where it ended with 75 (preempted), 76 (a process lost) or otherwise,
# or not on all workers within 15 minutes. It continues from its last checkpoint: --workdir must be in a
# bucket. A request is deleted only once it is SUSPENDED or FAILED, or its TPU is gone; one in the queue
# is waited for, which is no try. What cannot be found out changes nothing. Ends with the status
#   0  the run is done           5  RETRIES (default: 20) tries failed, with no hour of training in between
#   2  it refused its input      6  nothing was found out for UNREACHABLE_MINUTES (default: 1440)
# shellcheck source=tpu_scripts/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
# shellcheck source=tpu_scripts/state.sh
source "$SCRIPTS/state.sh"
((DRY_RUN)) && refuse "--dry-run: shows nothing here; see that of run.sh, create.sh and setup.sh"
[[ $# -ge 3 && $2 == -- ]] || refuse "give a name and a command, as: babysit.sh RUN -- COMMAND ARGUMENT ..."
run=$1 retries=${RETRIES:-20} unreachable=${UNREACHABLE_MINUTES:-1440} tried=0 started=0 minutes=0 missed=0 mixed=0
export GCLOUD_LIMIT="--foreground ${CALL_SECONDS:-3600}"
[[ $run =~ ^[A-Za-z0-9_-]+$ ]] || refuse "RUN=$run: letters, digits, _ and - only"

end() { echo "babysit: $2" >&2 && exit "$1"; }
set_up() { "$SCRIPTS/setup.sh" && [[ $(workers "$run" "$most") != *bare* ]]; }

again() {
  ((tried < retries)) || end 5 "$run did not end well after $retries tries; see logs.sh $run"
  tried=$((tried + 1)) started=0 minutes=0 missed=0 mixed=0
  local pause=$((tried < 6 ? 15 * 2 ** tried : 900))
  echo "babysit: $1; try $tried of $retries in $pause s"
  wait_for "$pause"
}

while :; do
  find_out "$run"
  case $seen in
    *going*)
      started=1 missed=0 minutes=$((minutes + 1)) tried=$((minutes < 60 ? tried : 0)) mixed=$((mixed + 1))
      [[ $seen =~ ^(going )+$ ]] && mixed=0
      ((mixed <= 15)) || { look on all "tmux kill-session -t =$run" || true; again "$run hung ($seen)"; }
      wait_for 60 ;;
    ACTIVE | UNKNOWN | SUSPENDING | DELETING)
      known="$TPU_NAME is $seen${at:+ (TPU: $at)}"
      ((missed % 60)) || echo "babysit: $known, and its workers do not answer; nothing is changed"
      missed=$((missed + 1))
      ((missed < unreachable)) || end 6 "$TPU_NAME was out of reach for $missed minutes and is left as it is"
      wait_for 60 ;;
    SUSPENDED | FAILED | GONE)
      # A person may have made it anew meanwhile. Without --force a request whose TPU runs is not deleted.
      [[ $(state) == "${seen/GONE/ACTIVE}" ]] || continue
      tpu queued-resources delete "$TPU_NAME" --quiet || true
      again "$TPU_NAME was $seen, and is made anew" ;;
    *bare*) started=0 && { set_up || again "$TPU_NAME was not set up"; } ;;
    [A-Z]*) started=0 most=0 && { "$SCRIPTS/create.sh" || [[ $? == 3 ]] || again "$TPU_NAME is not there yet"; } ;;
    *) # What was there before this script began says nothing of its command.
      [[ $started$seen =~ ^1(0 )+$ ]] && echo "babysit: $run is done" && exit 0
      [[ $started == 1 && " $seen" == *' 2 '* ]] && end 2 "$run refused its input; see logs.sh $run"
      ((started)) && again "$run ended ($seen)" && continue
      "$SCRIPTS/run.sh" "$@" || [[ $? == 4 ]] || { again "$run was not started" && continue; }
      started=1 ;;
  esac
done
