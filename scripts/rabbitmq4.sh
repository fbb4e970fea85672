#!/bin/sh
# Make a folder that holds Debian 13 ("trixie") with its RabbitMQ 4, once; nothing of it runs on this machine by itself.
#
#   scripts/rabbitmq4.sh FOLDER
#
# Needs root: debootstrap makes a system to chroot into. It comes from the mirror that apt uses here.
set -eu

folder=$1
if [ -e "$folder/usr/lib/rabbitmq/bin/rabbitmq-server" ]; then exit 0; fi

if [ "$(id -u)" != 0 ]; then
    echo "RabbitMQ 4 was not tested: its Debian 13 lives in a chroot, which only root can make and enter." >&2
    exit 1
fi
if ! command -v debootstrap >/dev/null; then "$(dirname "$0")/apt-install.sh" debootstrap; fi

mirror() {
    apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' 'Component: main' |
        sort -u | head -n 1
}
site=$(mirror)
if [ -z "$site" ]; then
    apt-get update -qq >/dev/null 2>&1 </dev/null || true
    site=$(mirror)
fi
if [ -z "$site" ]; then
    echo "RabbitMQ 4 was not tested: apt knows no Debian mirror here to take Debian 13 from." >&2
    exit 1
fi

mkdir -p "$(dirname "$folder")"
work=$(mktemp -d "$folder.XXXXXX")
trap 'rm -rf --one-file-system "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

echo "Making $folder: Debian 13 with RabbitMQ 4, from $site (some minutes, once) ..."
new=$work/root
# Chained, since a failing line does not end a function that is asked `if ! …`.
build() {
    debootstrap --variant=minbase trixie "$new" "$site" &&
        # No service of it ever starts: the tests run the broker themselves.
        printf '#!/bin/sh\nexit 101\n' >"$new/usr/sbin/policy-rc.d" &&
        chmod 755 "$new/usr/sbin/policy-rc.d" &&
        DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 chroot "$new" \
            apt-get install -y -qq --no-install-recommends rabbitmq-server &&
        chroot "$new" apt-get clean
}
if ! build >"$work/log" 2>&1 </dev/null; then
    tail -n 20 "$work/log" >&2
    echo "Making $folder failed." >&2
    exit 1
fi
mv "$new" "$folder"
