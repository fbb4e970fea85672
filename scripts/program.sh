#!/bin/sh
# See to it that a program from a Debian package is there: this machine's, or one unpacked into the user's cache.
#
#   scripts/program.sh chromium|debootstrap|promtool
#
# What is unpacked is run by a small script in the cache's bin folder, which the Makefile has on PATH.
set -eu

program=$1
cache=${XDG_CACHE_HOME:-$HOME/.cache}/warrener
if "$program" --version >/dev/null 2>&1; then exit 0; fi

case $program in
    chromium) package=chromium inside=usr/lib/chromium/chromium ;;
    debootstrap) package=debootstrap inside=usr/sbin/debootstrap ;;
    promtool) package=prometheus inside=usr/bin/promtool ;;
    *)
        echo "program.sh: no package is known for $program" >&2
        exit 2
        ;;
esac

"$(dirname "$0")/unpack.sh" "$cache/$package" "$package"
# A library may stand in a folder of its own below the others, as those of PulseAudio do.
libraries=$(find "$cache/$package/usr/lib" -mindepth 2 -maxdepth 3 -path '*-linux-*' -name '*.so*' | sed 's,/[^/]*$,,' | sort -u | paste -sd : -)
mkdir -p "$cache/bin"
new=$(mktemp "$cache/bin/.$program.XXXXXX")
cat >"$new" <<SCRIPT
#!/bin/sh
export LD_LIBRARY_PATH="$libraries\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}"
export DEBOOTSTRAP_DIR="$cache/$package/usr/share/debootstrap"
exec "$cache/$package/$inside" "\$@"
SCRIPT
chmod 755 "$new"
mv "$new" "$cache/bin/$program"
