# shellcheck shell=bash
# Sourced by create.sh and babysit.sh: what is known of the TPU (state, node), as one word, of a run on it
# (workers), and of both (find_out).
#
#   NONE      gcloud reports that there is no such thing
#   UNKNOWN   the answer is no state: no network, an expired login, no permission, a service that is
#             down. Nothing may be concluded from it, and nothing deleted; the answer is printed.
#   others    the state as Google Cloud names it (https://cloud.google.com/tpu/docs/queued-resources):
#             CREATING, ACCEPTED, WAITING_FOR_RESOURCES and PROVISIONING have a place in the queue,
#             ACTIVE has a TPU, SUSPENDED and FAILED will never have one again.

# The state of the request for the TPU.
state() { described queued-resources state.state; }

# The state of the TPU itself.
node() { described tpu-vm state; }

# Asks four times, and longer apart each time, before an answer counts as UNKNOWN.
described() {
  local answer word seconds
  for seconds in 5 15 45 0; do
    if answer=$(look tpu "$1" describe "$TPU_NAME" --format="value($2)" --quiet 2>&1); then
      # Warnings of gcloud may stand around the state.
      word=$(grep -xE '[A-Z][A-Z_]+' <<<"$answer" | tail -n 1) || word=''
      [[ -z $word || $word == STATE_UNSPECIFIED ]] || { echo "$word" && return; }
    elif [[ $answer == *NOT_FOUND* ]]; then
      echo NONE && return
    fi
    wait_for "$seconds"
  done
  echo "${0##*/}: the state of $TPU_NAME cannot be found out: ${answer:-gcloud answers nothing}" >&2
  echo UNKNOWN
}

# workers RUN NUMBER: a word of each worker on one line. `going`, the exit status of the run, `ready` where
# none is found, `bare` without a finished set-up. Fails where a worker does not answer, or fewer of them
# than NUMBER, and none is going.
workers() {
  local words status=0
  words=$(look on all "if tmux has-session -t =$1 2>/dev/null; then echo going
elif [ ! -e ~/prorank_jax/.set_up ]; then echo bare
else grep -xE '[0-9]+' ~/runs/$1/status 2>/dev/null || echo ready; fi" 2>/dev/null |
    grep -xE '[0-9]+|going|bare|ready') || status=$?
  (($(wc -w <<<"$words") >= $2)) || status=1
  [[ $status == 0 || $words == *going* ]] && tr '\n' ' ' <<<"$words"
}

# find_out RUN: `seen` becomes what the workers say, or else the state of the request, or GONE where its TPU
# was deleted; `at` the state of the TPU, where that was asked. `most` is the number of workers seen so far.
most=0
find_out() {
  local number
  at='' seen=$(workers "$1" "$most") || seen=$(state)
  [[ $seen != ACTIVE ]] || at=$(node)
  [[ $at != NONE ]] || seen=GONE
  number=$(wc -w <<<"$seen") most=$((number > most ? number : most))
}
