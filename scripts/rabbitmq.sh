#!/bin/sh
# See to it that there is a RabbitMQ to run privately: the programs only, no service is started.
# Where it cannot be installed, RABBITMQ_URL serves the tests that need just any broker; this says so and is no failure.
set -eu

here=$(dirname "$0")

if [ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || command -v rabbitmq-server >/dev/null; then exit 0; fi
if [ -n "${RABBITMQ_URL:-}" ]; then
    echo "No RabbitMQ on this machine; using RABBITMQ_URL. Tests that kill or freeze a broker are skipped."
    exit 0
fi
"$here/apt-install.sh" rabbitmq-server ||
    echo "Going on without RabbitMQ: tests and demos of a real broker need it, or RABBITMQ_URL." >&2
