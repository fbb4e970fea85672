#!/bin/sh
# See to it that graphviz's `dot` is there: it draws the diagram of the state machine.
set -eu

if command -v dot >/dev/null; then exit 0; fi
exec "$(dirname "$0")/apt-install.sh" graphviz
