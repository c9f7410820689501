#!/usr/bin/env bash
# Usage: setup.sh [--dry-run]
#
# Puts the committed state of this checkout on all workers of the TPU, in ~/prorank_jax, and installs
# it there with what a TPU needs. May be run again: after a new commit, or on a new TPU.
# shellcheck source=tpu_scripts/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
[[ $# == 0 ]] || refuse "$1: not known; see --help"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
git -C "$SCRIPTS/.." archive --format=tar.gz --output="$folder/prorank_jax.tar.gz" HEAD
tpu tpu-vm scp "$folder/prorank_jax.tar.gz" "$TPU_NAME:" --worker=all

# The images bring Python 3.10, and prorank_jax takes 3.11 or later: uv fetches one.
# The mark at the end is what babysit.sh knows a finished set-up by.
on all 'set -e
mkdir -p ~/prorank_jax
rm -f ~/prorank_jax/.set_up
tar -xzf ~/prorank_jax.tar.gz -C ~/prorank_jax
cd ~/prorank_jax
command -v tmux >/dev/null || sudo apt-get install -y -q tmux
python3 -m pip install --quiet --user uv
[ -x .venv/bin/python ] || python3 -m uv venv --quiet --python 3.12 .venv
python3 -m uv pip install --quiet --python .venv/bin/python ".[tpu,gcs]"
.venv/bin/prorank --help >/dev/null
touch .set_up'
