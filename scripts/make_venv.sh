#!/bin/sh
# Make a virtual environment in the directory $1, with uv in it.
# PYTHON names the interpreter; without it the newest usual name that is >= 3.11 is taken.
set -eu

venv=$1

usable() { # an interpreter that runs, is new enough and can make an environment
    "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

if [ -n "${PYTHON:-}" ]; then
    if ! usable "$PYTHON"; then
        echo "headrace: PYTHON=$PYTHON is not a Python >= 3.11 with the modules venv and" \
            "ensurepip." >&2
        exit 1
    fi
else
    for candidate in python3 python3.13 python3.12 python3.11 python3.14 python; do
        if usable "$candidate"; then
            PYTHON=$candidate
            break
        fi
    done
fi

if [ -z "${PYTHON:-}" ]; then
    found=$(python3 --version 2>&1 || true)
    echo "headrace: no usable Python found; wanted: Python >= 3.11 with venv; python3 says:" \
        "'$found'." >&2
    echo "On Debian and Ubuntu: apt-get install python3 python3-venv." >&2
    echo "Or name one: make PYTHON=/path/to/python3.12 ..." >&2
    exit 1
fi

echo "headrace: making $venv with $("$PYTHON" --version) ..."
"$PYTHON" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check uv
