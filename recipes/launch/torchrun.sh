#!/usr/bin/env bash
# Several machines by torchrun: start this on each of them, with NODE_RANK 0, 1, .. and the same HEAD.
#
#   HEAD=node0 NODES=2 NODE_RANK=0 recipes/launch/torchrun.sh --data data/mosi --base_model meta-llama/Llama-3.1-8B
#
# The run's directory must be on a file system that all machines share. After a failure start it again, on as many machines
# as are left: the run goes on from its newest checkpoint.
set -euo pipefail

exec torchrun \
  --nnodes "${NODES:-1}" \
  --node_rank "${NODE_RANK:-0}" \
  --nproc_per_node "${GPUS:-$(python -c 'import torch; print(max(torch.cuda.device_count(), 1))')}" \
  --master_addr "${HEAD:-127.0.0.1}" \
  --master_port "${PORT:-29500}" \
  --module deepmlf_llm.commands.train --ds "${DS:-zero2}" "$@"
