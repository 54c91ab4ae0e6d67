#!/bin/sh
# Regenerates every lock from the .in files beside this script: requirements/update.sh [NAME...]
# Needs uv. The locks hold exact versions and the hash of every file of a version, for all platforms and Pythons, and no
# index address: whoever installs uses their own index. Versions already locked stay; UPGRADE=1 looks for newer ones.
set -eu
cd "$(dirname "$0")"
native=../templates/native

lock() { # lock INPUT OUTPUT PYTHON DISK_MB [uv options]
  input=$1 output=$2 python=$3 disk=$4
  shift 4
  uv pip compile --quiet --no-config --universal --python-version "$python" --generate-hashes --no-annotate --no-header \
    --no-emit-index-url --no-emit-find-links ${UPGRADE:+--upgrade} ${SYSTEM_CERTS:+--system-certs} "$@" "$input" --output-file "$output"
  { # provision.py reads these two lines.
    printf '# requires-python: >=%s\n# disk-mb: %s\n' "$python" "$disk"
    grep -v '^#' "$output"
  } >"$output.new"
  mv "$output.new" "$output"
  echo "$output: $(grep -c '==' "$output") packages"
}

for name in "${@:-all}"; do
  case $name in all | build) lock build.in build.lock 3.11 50 ;; esac
  case $name in all | homelab) lock homelab.in homelab.lock 3.11 100 ;; esac
  case $name in all | dev) lock dev.in dev.lock 3.11 250 --constraint homelab.lock ;; esac
  case $name in all | llamacpp) lock llamacpp.in "$native/llamacpp.lock" 3.10 300 ;; esac
  case $name in all | litellm) lock litellm.in "$native/litellm.lock" 3.10 700 --override litellm-overrides.txt ;; esac
  case $name in all | caddy) lock caddy.in "$native/caddy.lock" 3.10 60 ;; esac
done
