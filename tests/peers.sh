#!/bin/sh
# Installs the programs that the tests talk to, where they are missing. Debian 12's versions.
set -eu
PATH="$PATH:/usr/sbin" # Orthanc's place
missing=
for program in storescu storescp echoscu dcmdump dciodvfy gdcmconv socat chromium Orthanc; do
    command -v "$program" >/dev/null || missing="$missing $program"
done
ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || missing="$missing postgresql"
[ -n "$missing" ] || exit 0
packages="dcmtk=3.6.7* dicom3tools=1.00* libgdcm-tools=3.0.21* socat=1.7.4* chromium orthanc=1.10.1* orthanc-dicomweb=1.7* postgresql-15"
if ! command -v apt-get >/dev/null; then
    echo "the tests need$missing; install the packages $packages" >&2
    exit 1
fi
root=
[ "$(id -u)" = 0 ] || root=sudo
$root apt-get update -qq
# shellcheck disable=SC2086
DEBIAN_FRONTEND=noninteractive $root apt-get install -y -qq --no-install-recommends $packages >/dev/null
# The tests start an Orthanc and a PostgreSQL of their own; the packages' services are not wanted.
if [ -d /run/systemd/system ]; then $root systemctl disable --quiet --now orthanc postgresql || true; fi
