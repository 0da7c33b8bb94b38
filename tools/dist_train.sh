#!/usr/bin/env bash
# Train on several GPUs:  tools/dist_train.sh CONFIG GPUS [options of tools/train.py]
# On several nodes, once on each:
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 tools/dist_train.sh CONFIG GPUS
set -euo pipefail

# PYTHON names the interpreter; else it is the one of the checkout's environment, or of the path.
venv=$(cd -P "$(dirname "$0")/.." && pwd)/.venv/bin/python
PYTHON=${PYTHON:-$([ -x "$venv" ] && echo "$venv" || command -v python3 || command -v python)}

if [ $# -lt 2 ]; then
    echo "usage: $0 CONFIG GPUS [options of tools/train.py]" >&2
    exit 2
fi
config=$1 gpus=$2
shift 2

exec "$PYTHON" -m mobileone_ext.engine.launch \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --nproc_per_node="$gpus" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${MASTER_PORT:-29500}" \
    "$(dirname "$0")/train.py" "$config" --launcher pytorch "$@"
