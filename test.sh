#!/usr/bin/env bash
# Lint and all tests on a CPU: bash test.sh [PYTEST-OPTION...]; the quick ones alone: pytest
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source scripts/environment.sh
environment requirements-dev.txt

"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
if command -v shellcheck >/dev/null; then
    shellcheck --external-sources --source-path=SCRIPTDIR ./*.sh scripts/*.sh docs/*.sh diffae/*.sh ddae/*.sh
fi
"$PYTHON" -m pytest -m "slow or not slow" "$@"
