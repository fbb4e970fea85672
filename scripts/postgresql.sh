#!/bin/sh
# See to it that there is a PostgreSQL to run privately: this machine's, or one unpacked into the user's cache (unpack.sh).
# Where neither can be had, the tests that need it are skipped; this says so and is no failure.
set -eu

cache=${XDG_CACHE_HOME:-$HOME/.cache}/warrener

for postgres in /usr/lib/postgresql/*/bin/postgres "$cache"/postgresql/usr/lib/postgresql/*/bin/postgres; do
    if [ -x "$postgres" ]; then exit 0; fi
done
if command -v postgres >/dev/null; then exit 0; fi
"$(dirname "$0")/unpack.sh" "$cache/postgresql" postgresql ||
    echo "Going on without PostgreSQL: tests of its outbox need it." >&2
