#!/bin/sh
# Install Debian packages without starting the services that come with them.
#
#   scripts/apt-install.sh PACKAGE...
#
# Needs root or sudo, and exits with status 1 and one line of advice where there is neither, or no apt.
# A package asks /usr/sbin/policy-rc.d before it starts a service; for the time of the installation one that forbids it
# stands there. Whatever was in its place before comes back, also when the installation fails or is interrupted.
set -eu

policy="${POLICY_RC_D:-/usr/sbin/policy-rc.d}"
advice="To install by hand: apt-get install $*"

if ! command -v apt-get >/dev/null; then
    echo "Cannot install $*: there is no apt-get on this machine." >&2
    exit 1
fi
if [ "$(id -u)" != 0 ]; then
    if ! command -v sudo >/dev/null; then
        echo "Cannot install $*: neither root nor sudo. $advice" >&2
        exit 1
    fi
    # Ask for a password only where somebody can answer.
    if [ -t 0 ]; then exec sudo "$0" "$@"; fi
    if sudo -n true 2>/dev/null; then exec sudo -n "$0" "$@"; fi
    echo "Cannot install $*: sudo wants a password. $advice" >&2
    exit 1
fi

work=$(mktemp -d)
moved=
placed=
restore() {
    status=$?
    trap - EXIT
    if [ -n "$placed" ]; then rm -f "$policy"; fi
    if [ -n "$moved" ]; then mv "$moved" "$policy"; fi
    rm -rf "$work"
    exit "$status"
}
trap restore EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

if [ -e "$policy" ] || [ -L "$policy" ]; then
    # A rename within the folder keeps owner, mode and contents, whatever it is.
    moved="$policy.saved-by-warrener.$$"
    mv "$policy" "$moved"
fi
placed=yes
printf '#!/bin/sh\nexit 101\n' >"$policy"
chmod 755 "$policy"

export DEBIAN_FRONTEND=noninteractive
install() { apt-get install -y -qq --no-install-recommends "$@" >"$work/log" 2>&1 </dev/null; }

echo "Installing $* ..."
# The lists of packages may be old or, on a fresh machine, absent.
if ! install "$@" && ! { apt-get update -qq >"$work/update" 2>&1 </dev/null && install "$@"; }; then
    cat "$work/update" "$work/log" >&2 2>/dev/null || true
    echo "Installing $* failed. $advice" >&2
    exit 1
fi
