#!/bin/sh
# Build the sdist into dist/, and the wheel from it; check what they say of themselves; then use the
# wheel in an empty environment and an empty directory, with nothing of the repository in reach.
# $1: the bin/ of an environment with uv and twine.
set -eu

uv=$1/uv
rm -rf dist
"$uv" build --quiet --out-dir dist
"$1/twine" check --strict dist/*
wheel=$(echo "$PWD"/dist/*.whl)

elsewhere=$(mktemp -d)
trap 'rm -rf "$elsewhere"' EXIT
# The versions that run the tests: they are in uv's cache, and torch is gigabytes.
"$uv" pip freeze --quiet --exclude-editable --python "$1/python" > "$elsewhere/versions.txt"
cp scripts/smoke.py "$elsewhere"
"$uv" venv --quiet --python "$1/python" "$elsewhere/env"

install() {
    "$uv" pip install --quiet --python "$elsewhere/env/bin/python" \
        --constraints "$elsewhere/versions.txt" "$1"
}

unset PYTHONPATH VIRTUAL_ENV
install "$wheel"
cd "$elsewhere"
env/bin/python -W error smoke.py
install "$wheel[demo]"
env/bin/headrace demo --epochs 2
"$uv" pip check --quiet --python env/bin/python
echo "dist: $(basename "$wheel") and its sdist are whole"
