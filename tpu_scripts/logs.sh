#!/usr/bin/env bash
# Usage: logs.sh [--dry-run] RUN [WORKER]
#
# Shows what a run prints on a worker (default: 0), and goes on showing it.
# shellcheck source=tpu_scripts/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
[[ $# -ge 1 && $1 =~ ^[A-Za-z0-9_-]+$ ]] || refuse "give the name of a run, as: logs.sh RUN"
on "${2:-0}" "tail -n 100 -F ~/runs/$1/log"
