#!/usr/bin/env bash
# Several machines by the deepspeed command, which starts the others by ssh: start this on one of them. HOSTFILE names them.
#
#   HOSTFILE=recipes/launch/hostfile recipes/launch/deepspeed.sh --data data/mosi --base_model meta-llama/Llama-3.1-8B
#
# The checkout, the Python environment and the run's directory must be at the same place on all of them. The deepspeed
# command passes no signal on; see docs/runs.md for how a run is stopped.
set -euo pipefail

exec deepspeed \
  --hostfile "${HOSTFILE:-recipes/launch/hostfile}" \
  --master_port "${PORT:-29500}" \
  --module deepmlf_llm.commands.train --ds "${DS:-zero2}" "$@"
