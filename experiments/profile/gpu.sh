#!/usr/bin/env bash
# What only a GPU can show, in at most 8 minutes, as one csv:
#
#     experiments/profile/gpu.sh [--dry-run] [--seconds 480] [--out gpu.csv] [--only controlnet train]
#
# From a checkout: nothing needs to be installed but what posegen depends on. WHEELS=FOLDER unpacks wheels of what is
# missing first, without network; PYTHON chooses the interpreter.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=${PYTHON:-python3}
export PYTHONPATH="$here:$here/src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false
export HF_HUB_OFFLINE=1 WANDB_MODE=offline
if [[ -n ${WHEELS:-} ]]; then
    site=$(mktemp -d)
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$WHEELS"/*.whl
    PYTHONPATH="$PYTHONPATH:$site"
fi
exec "$python" "$here/experiments/profile/gpu.py" "$@"
