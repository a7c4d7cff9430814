#!/bin/sh
# Installs what the tests talk to, where it is missing or too old: programs, and the very files of packages that tests name.
# `tests/peers.sh --list` installs nothing: it prints a line for each thing that is missing, and its package.
set -eu
PATH="$PATH:/usr/sbin" # Orthanc's place
root=${CDAL_PEERS_ROOT:-} # where those files are looked for; a test of this script sets it

# Debian 12's versions, which the tests were written with.
pinned="dcmtk=3.6.7* dicom3tools=1.00* libgdcm-tools=3.0.21* socat=1.7.4* chromium openssl procps orthanc=1.10.1*
    orthanc-dicomweb=1.7* postgresql-15"

missing= # packages
reasons= # lines

lacks() { # PACKAGE WHAT
    case " $missing " in *" $1 "*) ;; *) missing="$missing $1" ;; esac
    reasons="$reasons$1: $2
"
}

program() { # PACKAGE NAME...
    package=$1
    shift
    for name; do
        command -v "$name" >/dev/null || lacks "$package" "no program $name"
    done
}

file() { # PACKAGE PATH
    [ -e "$root$2" ] || lacks "$1" "no file $root$2"
}

number() { # A.B.C as one number
    old=$IFS
    IFS=.
    # shellcheck disable=SC2086
    set -- $1 0 0
    IFS=$old
    echo $((${1:-0} * 1000000 + ${2:-0} * 1000 + ${3:-0}))
}

at_least() { # PACKAGE NAME FOUND LEAST
    case $3 in
    [0-9]*) [ "$(number "$3")" -ge "$(number "$4")" ] || lacks "$1" "$2 is version $3, $4 is needed" ;;
    *) lacks "$1" "$2 does not tell its version" ;;
    esac
}

look() {
    missing=
    reasons=
    program dcmtk storescu storescp echoscu dcmdump
    if command -v storescu >/dev/null; then
        found=$(storescu --version 2>/dev/null) || found=
        found=${found#*storescu v} # "$dcmtk: storescu v3.6.7 2022-04-22 $"
        at_least dcmtk storescu "${found%%[!0-9.]*}" 3.6.7
    fi
    program dicom3tools dciodvfy
    program libgdcm-tools gdcmconv
    program socat socat
    program chromium chromium
    program openssl openssl
    program procps pgrep
    file orthanc /usr/sbin/Orthanc
    file orthanc-dicomweb /usr/share/orthanc/plugins/libOrthancDicomWeb.so
    # The newest version that is whole: what the tests start.
    server=
    for bin in "$root"/usr/lib/postgresql/*/bin; do
        version=${bin%/bin}
        version=${version##*/}
        [ -x "$bin/initdb" ] && [ -x "$bin/postgres" ] && [ -x "$bin/psql" ] && [ -x "$bin/pg_isready" ] &&
            [ "$(number "$version")" -ge "$(number 13)" ] && server=$bin
    done
    [ -n "$server" ] || lacks postgresql-15 "no initdb, postgres, psql and pg_isready of version 13 or later in $root/usr/lib/postgresql"
}

look
if [ "${1:-}" = --list ]; then
    printf %s "$reasons"
    [ -z "$missing" ] || exit 1
    exit 0
fi
[ -n "$missing" ] || exit 0

packages=
for package in $missing; do
    for pin in $pinned; do
        case $pin in "$package" | "$package="*) packages="$packages $pin" ;; esac
    done
done
if ! command -v apt-get >/dev/null; then
    printf 'the tests need\n%sinstall the packages%s\n' "$reasons" "$packages" >&2
    exit 1
fi
sudo=
[ "$(id -u)" = 0 ] || sudo=sudo
$sudo apt-get update -qq
install() {
    DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}
# shellcheck disable=SC2086
if ! install $packages; then
    echo "these versions cannot be had here:$packages; trying those of this system" >&2
    install $missing
fi
# The tests start an Orthanc and a PostgreSQL of their own; the packages' services are not wanted.
if [ -d /run/systemd/system ]; then $sudo systemctl disable --quiet --now orthanc postgresql || true; fi
look
if [ -n "$missing" ]; then
    printf 'still missing after the installation:\n%s' "$reasons" >&2
    exit 1
fi
