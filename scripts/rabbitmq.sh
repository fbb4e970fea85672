#!/bin/sh
# See to it that there is a RabbitMQ to run privately: this machine's, or one unpacked into the user's cache (unpack.sh).
# Where neither can be had, RABBITMQ_URL serves the tests that need just any broker; this says so and is no failure.
#
#   scripts/rabbitmq.sh            make it ready
#   scripts/rabbitmq.sh --which    and say in one line which broker a demo uses; status 3 where it is the embedded one
set -eu

cache=${XDG_CACHE_HOME:-$HOME/.cache}/warrener

say() { if [ "${which:-}" ]; then echo "Broker: $1"; fi; }

which=
if [ "${1:-}" = --which ]; then which=yes; fi
if [ -x /usr/lib/rabbitmq/bin/rabbitmq-server ]; then
    say "a private RabbitMQ, by the programs in /usr/lib/rabbitmq"
elif [ ! -e "$cache/rabbitmq" ] && found=$(command -v rabbitmq-server); then
    say "a private RabbitMQ, by $found"
elif [ -z "$which" ] && [ -n "${RABBITMQ_URL:-}" ]; then
    echo "No RabbitMQ on this machine; using RABBITMQ_URL. Tests that kill or freeze a broker are skipped."
elif "$(dirname "$0")/unpack.sh" "$cache/rabbitmq" rabbitmq-server; then
    say "a private RabbitMQ, by the programs in $cache/rabbitmq"
elif [ "$which" ]; then
    say "the embedded one, since RabbitMQ is not on this machine and cannot be unpacked"
    exit 3
else
    echo "Going on without RabbitMQ: tests of a real broker need it, or RABBITMQ_URL." >&2
fi
