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
"$(dirname "$0")/program.sh" debootstrap
PATH=$PATH:${XDG_CACHE_HOME:-$HOME/.cache}/warrener/bin

# shellcheck disable=SC2016 # apt itself fills in $(SITE)
mirror() {
    apt-get indextargets "$@" --format '$(SITE)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' 'Component: main' |
        sort -u | head -n 1
}
site=$(mirror)
if [ -z "$site" ]; then
    # A fresh machine has no lists of packages; these are this set-up's own.
    lists=$(mktemp -d)
    if apt-get update -qq -o "Dir::State::Lists=$lists" >"$lists/log" 2>&1 </dev/null; then
        site=$(mirror -o "Dir::State::Lists=$lists")
    fi
    rm -rf "$lists"
fi
if [ -z "$site" ]; then
    echo "RabbitMQ 4 was not tested: apt knows no Debian mirror here to take Debian 13 from." >&2
    exit 1
fi

mkdir -p "$(dirname "$folder")"
# As in unpack.sh: of two at once the second waits, and what a killed one left is removed by the next.
exec 9>"$folder.lock"
flock 9
if [ -e "$folder/usr/lib/rabbitmq/bin/rabbitmq-server" ]; then exit 0; fi
rm -rf --one-file-system "$folder".making.*
work=$(mktemp -d "$folder.making.XXXXXX")
trap 'rm -rf --one-file-system "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

echo "Making $folder: Debian 13 with RabbitMQ 4, from $site (some minutes, once) ..."
new=$work/root
cat >"$work/build" <<'SCRIPT'
set -eu
debootstrap --variant=minbase trixie "$1" "$2"
# No service of it ever starts: the tests run the broker themselves.
printf '#!/bin/sh\nexit 101\n' >"$1/usr/sbin/policy-rc.d"
chmod 755 "$1/usr/sbin/policy-rc.d"
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
chroot "$1" apt-get install -y -qq --no-install-recommends rabbitmq-server
chroot "$1" apt-get clean
SCRIPT
# In namespaces of their own: what it mounts and starts ends with it, and it ends with this script, also by SIGKILL.
if ! unshare --mount --pid --fork --kill-child --mount-proc --propagation private \
    sh "$work/build" "$new" "$site" >"$work/log" 2>&1 </dev/null; then
    tail -n 20 "$work/log" >&2
    echo "Making $folder failed." >&2
    exit 1
fi
mv "$new" "$folder"
