#!/bin/sh
# Run the tests of `make test` on each supported Python that this machine has, one after the other.
#
#   scripts/pythons.sh [ARGUMENTS OF PYTEST]
#
# The Pythons come from uv or pyenv where these are there, otherwise from PATH; nothing is downloaded. Each has an
# environment of its own, .venv-3.11 and so on. Says at the end which versions passed, failed and were not found; the status
# is 1 when one failed or none was found.
set -u

here=$(dirname "$0")

find_python() {
    if command -v uv >/dev/null; then uv python find --no-python-downloads "$1" 2>/dev/null && return; fi
    if command -v pyenv >/dev/null; then
        for folder in $(pyenv versions --bare 2>/dev/null | grep "^$1\." | sort -rV); do
            if [ -x "$(pyenv root)/versions/$folder/bin/python" ]; then
                echo "$(pyenv root)/versions/$folder/bin/python"
                return
            fi
        done
    fi
    command -v "python$1"
}

passed='' failed='' absent=''
for version in 3.11 3.12 3.13 3.14; do
    if ! python=$(find_python $version) || ! "$python" -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] != sys.argv[1])' $version 2>/dev/null; then
        absent="$absent $version"
        continue
    fi
    echo "== $("$python" --version)"
    venv=.venv-$version
    if PYTHON=$python "$here/venv.sh" "$venv" run test &&
        "$venv/bin/python" -m pytest -q -n 2 -m "not broker and not full" "$@" &&
        "$venv/bin/python" -m pytest -q -m "broker and not full" "$@"; then
        passed="$passed $version"
    else
        failed="$failed $version"
    fi
done
echo "passed:${passed:- none}; failed:${failed:- none}; not on this machine:${absent:- none}"
[ -z "$failed" ] && [ -n "$passed" ]
