#!/bin/sh
# Make the virtual environment, or add to it: this package, editable, and what the named groups need, as locked.
#
#   scripts/venv.sh FOLDER GROUP...        PYTHON=python3.12 chooses the interpreter of a new one
#
# The groups are those of pyproject.toml; `run` is what the library, the commands and the demo need, `serve` the ML service
# too. What is there already and newer than pyproject.toml and the lock is not touched. Of two set-ups at once the
# second waits for the first; after a killed one the folder is made anew.
set -eu

venv=$1
shift
here=$(dirname "$0")
cache=${XDG_CACHE_HOME:-$HOME/.cache}/warrener

has() {
    for group in "$@"; do
        stamp=$venv/.has-$group
        if ! [ -e "$stamp" ] || [ pyproject.toml -nt "$stamp" ] || [ requirements-dev.lock -nt "$stamp" ]; then return 1; fi
    done
}
if has "$@"; then exit 0; fi
if command -v flock >/dev/null; then
    exec 9>"$venv.lock"
    flock 9
    if has "$@"; then exit 0; fi
fi

fits() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

if [ -e "$venv/.unfinished" ] || ! { [ -x "$venv/bin/python" ] && fits "$venv/bin/python" && "$venv/bin/python" -m pip --version >/dev/null 2>&1; }; then
    for python in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        if fits "$python"; then break; fi
        python=
    done
    if [ -z "$python" ]; then
        echo "No Python 3.11 or newer found; set PYTHON to one." >&2
        exit 1
    fi
    echo "Making $venv with $("$python" --version) ..."
    if "$python" -c 'import ensurepip' 2>/dev/null; then
        "$python" -m venv --clear "$venv"
    else
        # Debian's Python has no pip of its own; the wheel in this package runs as it is and installs another.
        "$here/unpack.sh" "$cache/pip" python3-pip-whl
        "$python" -m venv --clear --without-pip "$venv"
        PYTHONPATH=$(echo "$cache"/pip/usr/share/python-wheels/pip-*.whl) "$venv/bin/python" -m pip -qq install pip
    fi
fi

# A lock that has changed is for all that is installed.
for stamp in "$venv"/.has-*; do
    if [ -e "$stamp" ]; then set -- "$@" "${stamp##*.has-}"; fi
done
groups=$(printf '%s\n' "$@" | sort -u | tr '\n' ' ')
echo "Installing into $venv what these need: $groups..."
touch "$venv/.unfinished"
"$venv/bin/python" "$here/requirements.py" build >"$venv/.build.txt"
# shellcheck disable=SC2086 # one word for each group
"$venv/bin/python" "$here/requirements.py" $groups >"$venv/.requirements.txt"
pip() { "$venv/bin/python" -m pip -qq --disable-pip-version-check --no-input install --constraint requirements-dev.lock "$@"; }
pip --requirement "$venv/.build.txt"
pip --no-build-isolation --requirement "$venv/.requirements.txt"
rm "$venv/.unfinished"
for group in $groups; do touch "$venv/.has-$group"; done
