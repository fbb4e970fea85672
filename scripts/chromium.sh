#!/bin/sh
# See to it that there is a Chromium: the status page is tested in one. Without it those tests are skipped and say so.
set -eu

for program in chromium chromium-browser google-chrome; do
    if command -v "$program" >/dev/null; then exit 0; fi
done
"$(dirname "$0")/apt-install.sh" chromium || echo "Going on without Chromium: the tests of the status page are skipped." >&2
