#!/usr/bin/env bash
# Sourced by demo.sh and test.sh: make .venv once, install a requirements file into it, and point PYTHON at it.

# environment REQUIREMENTS.TXT
environment() {
    local python=${PYTHON:-python3} stamp=.venv/installed-$1
    if ! "$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' 2>/dev/null; then
        echo "error: PYTHON: expected Python 3.10 to 3.13, got $("$python" --version 2>&1 || echo "no $python")" >&2
        exit 2
    fi
    if ! cat requirements*.txt | cmp -s - "$stamp"; then
        [[ -x .venv/bin/python ]] || "$python" -m venv .venv
        echo "installing what is missing of $1 into .venv" >&2
        .venv/bin/python -m pip install --quiet --requirement "$1"
        cat requirements*.txt >"$stamp"
    fi
    export PYTHON=$PWD/.venv/bin/python
}
