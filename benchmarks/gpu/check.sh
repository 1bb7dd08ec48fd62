#!/bin/sh
# Is this machine's GPU fit for a run? In nine minutes; docs/dev/gpu.md says what each line proves.
cd "$(dirname "$0")/../.." && exec "${PYTHON:-python3}" -m benchmarks.gpu.check "$@"
