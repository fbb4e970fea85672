#!/bin/sh
# Write the lock of the development environment: exact versions for every supported Python, no index and no path.
#
#   scripts/lock.sh UV FILE
set -eu

uv=$1
lock=$2
new=$(mktemp)
trap 'rm -f "$new"' EXIT

# Kept versions stay (uv reads the output file); delete the lock first to upgrade everything.
if [ -f "$lock" ]; then cp "$lock" "$new"; fi
"$uv" pip compile pyproject.toml --extra all --group dev --universal --python-version 3.11 \
    --no-annotate --no-header --quiet --output-file "$new"
{
    echo "# The development environment, exactly. Written by \`make lock\` from pyproject.toml; not edited by hand."
    cat "$new"
} >"$lock"
