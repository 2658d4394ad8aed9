#!/usr/bin/env bash
# Unpacks parts made by gpu_pack.sh into a folder for PYTHONPATH, in one call or in several:  gpu_unpack.sh SITE PART...
set -euo pipefail
site=$1
shift
mkdir -p "$site"
for part in "$@"; do
  found=0
  for archive in "$part"/*.tar.xz; do
    [ -e "$archive" ] || continue
    tar xJf "$archive" -C "$site"
    found=1
  done
  wheels=("$part"/*.whl)
  if [ -e "${wheels[0]}" ]; then
    python3 -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" "${wheels[@]}"
    found=1
  fi
  if [ "$found" = 0 ]; then
    echo "gpu_unpack.sh: $part holds neither wheels nor archives; give a part made by gpu_pack.sh" >&2
    exit 1
  fi
done
