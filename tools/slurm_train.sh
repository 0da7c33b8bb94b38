#!/usr/bin/env bash
# Train under Slurm:  tools/slurm_train.sh PARTITION JOB_NAME CONFIG [options of tools/train.py]
#   GPUS (8), GPUS_PER_NODE (8), CPUS_PER_TASK (5), SRUN_ARGS
set -euo pipefail

# PYTHON names the interpreter; else it is the one of the checkout's environment, or of the path.
venv=$(cd -P "$(dirname "$0")/.." && pwd)/.venv/bin/python
PYTHON=${PYTHON:-$([ -x "$venv" ] && echo "$venv" || command -v python3 || command -v python)}

if [ $# -lt 3 ]; then
    echo "usage: $0 PARTITION JOB_NAME CONFIG [options of tools/train.py]" >&2
    exit 2
fi
partition=$1 job=$2 config=$3
shift 3
gpus=${GPUS:-8} per_node=${GPUS_PER_NODE:-8}

# shellcheck disable=SC2086  # SRUN_ARGS is a list of options
exec srun --partition="$partition" --job-name="$job" \
    --ntasks="$gpus" --ntasks-per-node="$per_node" --gres=gpu:"$per_node" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    "$PYTHON" -u "$(dirname "$0")/train.py" "$config" --launcher slurm "$@"
