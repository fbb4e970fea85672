#!/bin/sh
# Make the development environment: a virtual environment with the locked packages and this one, editable.
#
#   scripts/venv.sh FOLDER        PYTHON=python3.12 chooses the interpreter of a new one
set -eu

venv=$1
here=$(dirname "$0")

fits() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

if ! { [ -x "$venv/bin/python" ] && fits "$venv/bin/python" && "$venv/bin/python" -m pip --version >/dev/null 2>&1; }; then
    for python in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if fits "$python"; then break; fi
        python=
    done
    if [ -z "$python" ]; then
        echo "No Python 3.11 or newer found; set PYTHON to one." >&2
        exit 1
    fi
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        "$here/apt-install.sh" "$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
    fi
    echo "Making $venv with $("$python" --version) ..."
    "$python" -m venv --clear "$venv"
fi

echo "Installing the development environment ..."
pip() { "$venv/bin/python" -m pip -qq --disable-pip-version-check --no-input "$@"; }
pip install --requirement requirements-dev.lock
pip install --no-deps --no-build-isolation --editable .
