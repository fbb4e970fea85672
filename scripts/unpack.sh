#!/bin/sh
# Unpack Debian packages, and what they need and this machine lacks, into a folder of the user's cache.
#
#   scripts/unpack.sh FOLDER PACKAGE...
#
# Nothing is installed and no service starts: apt only downloads and dpkg-deb only unpacks, so neither root nor undoing is
# needed. The folder appears complete, by one rename, or not at all. A set-up that was killed leaves a working folder
# beside it, which the next one removes; of two at once the second waits for the first and finds the folder made.
# Exits with status 1 and one line of advice where apt is absent or cannot get the packages.
set -eu

folder=$1
shift
if [ -e "$folder" ]; then exit 0; fi
advice="To install by hand, as root: apt-get install $*"

for program in apt-get dpkg-deb flock; do
    if ! command -v $program >/dev/null; then
        echo "Cannot unpack $*: there is no $program on this machine." >&2
        exit 1
    fi
done

parent=$(dirname "$folder")
mkdir -p "$parent"
# The kernel frees the lock when this process and its children have ended, whatever ended them.
exec 9>"$parent/.lock"
flock 9
if [ -e "$folder" ]; then exit 0; fi
rm -rf "$parent"/.unpacking.*
work=$(mktemp -d "$parent/.unpacking.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

mkdir -p "$work/cache/archives/partial" "$work/root"
apt() {
    apt-get -q -y -o Debug::NoLocking=1 -o "Dir::Cache=$work/cache" -o "APT::Sandbox::User=$(id -un)" "$@" \
        >>"$work/log" 2>&1 </dev/null
}
# The machine's own lists of packages may be old or, on a fresh machine, absent: then lists of this set-up's own.
download() { apt --no-install-recommends --download-only "$@"; }
update() {
    mkdir -p "$work/lists/partial"
    apt -o "Dir::State::Lists=$work/lists" update
}

echo "Unpacking $* into $folder ..."
if ! download install "$@" && ! { update && download -o "Dir::State::Lists=$work/lists" install "$@"; }; then
    tail -n 5 "$work/log" >&2
    echo "Unpacking $* failed. $advice" >&2
    exit 1
fi
for package in "$work"/cache/archives/*.deb; do
    dpkg-deb -x "$package" "$work/root"
done
# Erlang's start scripts name the folder that they are installed in.
for script in "$work"/root/usr/lib/erlang/bin/erl "$work"/root/usr/lib/erlang/bin/start; do
    if [ -f "$script" ]; then sed -i "s#=/usr/lib/erlang#=\"$folder/usr/lib/erlang\"#" "$script"; fi
done
mv -T "$work/root" "$folder"
