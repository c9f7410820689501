#!/usr/bin/env bash
# Usage: babysit.sh RUN -- COMMAND [ARGUMENT ...]
#
# Sees a run through: starts it (see run.sh), looks every minute, and starts it again where it was
# preempted (status 75), lost one of its processes (76) or ended otherwise; where the TPU itself was
# taken away it makes a new one first. The run goes on from its last checkpoint, so its --workdir has
# to be in a bucket. At most RETRIES times (default: 20), waiting longer each time. Ends with 0 when
# the run has, with 2 when it refused its input, which is never tried again, and with 5 when it gave up.
# shellcheck source=tpu_scripts/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
((DRY_RUN)) && refuse "--dry-run: shows nothing here; see that of run.sh, create.sh and setup.sh"
[[ $# -ge 3 && $2 == -- ]] || refuse "give a name and a command, as: babysit.sh RUN -- COMMAND ARGUMENT ..."
run=$1 retries=${RETRIES:-20} tried=0

is_there() {
  [[ $(tpu queued-resources describe "$TPU_NAME" --format='value(state.state)' 2>/dev/null) == ACTIVE ]]
}

# The exit statuses of all workers, or `going`; nothing where they cannot be reached.
look() {
  on all "if tmux has-session -t =$run 2>/dev/null; then echo going; else cat ~/runs/$run/status; fi" 2>/dev/null ||
    true
}

start() {
  is_there || {
    echo "babysit: $TPU_NAME is not there; making a new one"
    "$SCRIPTS/delete.sh" "$TPU_NAME" >/dev/null 2>&1 || true
    "$SCRIPTS/create.sh" && "$SCRIPTS/setup.sh" || return 1
  }
  "$SCRIPTS/run.sh" "$@" || [[ $? == 4 ]]
}

# Waits until the run has ended, or cannot be reached for five minutes, or its TPU is gone.
watch() {
  local missed=0
  while ((missed < 5)); do
    wait_for 60
    found=$(look | tr '\n' ' ')
    case $found in
      *going*) missed=0 ;;
      '') if is_there; then missed=$((missed + 1)); else return 0; fi ;;
      *) return 0 ;;
    esac
  done
}

while :; do
  found=''
  if start "$@"; then watch; fi
  [[ $found =~ ^(0 )+$ ]] && echo "babysit: $run is done" && exit 0
  [[ " $found" == *' 2 '* ]] && echo "babysit: $run refused its input; see logs.sh $run" >&2 && exit 2
  ((tried < retries)) || break
  tried=$((tried + 1))
  pause=$((tried < 6 ? 15 * 2 ** tried : 900))
  echo "babysit: $run ended (${found:-no answer}); try $tried of $retries in $pause s"
  wait_for "$pause"
done
echo "babysit: $run did not end well after $retries tries; see logs.sh $run" >&2
exit 5
