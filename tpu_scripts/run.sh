#!/usr/bin/env bash
# Usage: run.sh [--dry-run] RUN -- COMMAND [ARGUMENT ...]
#
# Starts a command on all workers of the TPU, each in a tmux session called RUN, and returns. What it
# prints is added to ~/runs/RUN/log on each worker, and its exit status is in ~/runs/RUN/status once it
# has ended. Nothing is started where RUN is still going (status 4), nor where that cannot be found out
# because a worker does not answer (3). Example:
#
#   run.sh nq -- prorank train configs/qwen2.5-0.5b.yaml --workdir gs://bucket/nq seed=1
# shellcheck source=tpu_scripts/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
[[ $# -ge 3 && $2 == -- ]] || refuse "give a name and a command, as: run.sh RUN -- COMMAND ARGUMENT ..."
run=$1
shift 2
[[ $run =~ ^[A-Za-z0-9_-]+$ ]] || refuse "RUN=$run: letters, digits, _ and - only"

# Quoted once for the shell in the session, and once more for the one that starts it.
command=$(printf '%q ' "$@")
inside="cd ~/prorank_jax; export PATH=\"\$PWD/.venv/bin:\$PATH\"
$command >>~/runs/$run/log 2>&1
echo \$? >~/runs/$run/status"
# With babysit.sh (GCLOUD_LIMIT) no call may hang; by hand, ssh may ask for a passphrase.
if ! ((DRY_RUN)); then
  reached=1
  found=$(${GCLOUD_LIMIT:+look} on all "if tmux has-session -t =$run 2>/dev/null; then echo going; fi") || reached=0
  [[ $found != *going* ]] || { echo "run.sh: $run is still going; see logs.sh $run" >&2 && exit 4; }
  ((reached)) || { echo "run.sh: not all workers of $TPU_NAME can be reached; nothing is started" >&2 && exit 3; }
fi
start="tmux new-session -d -s $run $(printf '%q' "$inside")"
${GCLOUD_LIMIT:+look} on all "mkdir -p ~/runs/$run; rm -f ~/runs/$run/status; $start"
