#!/bin/sh
# Run the quick tests on each Python that we support and that this machine has, each in an environment
# of its own, .venv-3.12 for instance; say which were not there. $1: uv; the rest goes to pytest.
# The environments stay, for the next time; torch is large.
set -u

uv=$1
shift
cd "$(dirname "$0")/.."

find_python() { # print the interpreter of a version, if it works
    for candidate in "python$1" "$(pyenv prefix "$(pyenv latest "$1" 2>/dev/null)" \
        2>/dev/null)/bin/python" "$("$uv" python find --no-python-downloads "$1" 2>/dev/null)"; do
        if "$candidate" -c "import sys, venv; sys.exit('%d.%d' % sys.version_info[:2] != '$1')" \
            >/dev/null 2>&1; then
            command -v "$candidate"
            return
        fi
    done
}

passed="" failed="" lacked=""
for version in 3.11 3.12 3.13 3.14; do
    python=$(find_python "$version")
    if [ -z "$python" ]; then
        lacked="$lacked $version"
        continue
    fi
    environment=.venv-$version
    echo "pythons: $version ($python)"
    [ -x "$environment/bin/python" ] || "$uv" venv --quiet --python "$python" "$environment"
    if "$uv" pip install --quiet --python "$environment/bin/python" \
        --editable '.[demo,bench]' --group test \
        && "$environment/bin/python" -m pytest -n 2 --dist worksteal -m quick "$@"; then
        passed="$passed $version"
    else
        failed="$failed $version"
    fi
done

echo "pythons: passed:${passed:- none}; failed:${failed:- none}; not on this machine:${lacked:- none}"
[ -z "$failed" ] && [ -n "$passed" ]
