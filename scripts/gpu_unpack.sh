#!/usr/bin/env bash
# Unpacks parts made by gpu_pack.sh into a folder for PYTHONPATH, in one call or in several:  gpu_unpack.sh SITE PART...
# Wheels are taken as the archives that they are: the machine's time is short, and pip takes most of a minute for them.
set -euo pipefail
export site=$1
shift
mkdir -p "$site"
unpack() {
  case $1 in
    *.tar.xz) tar xJf "$1" -C "$site" ;;
    *.whl) python3 -m zipfile -e "$1" "$site" ;;
  esac
}
export -f unpack
for part in "$@"; do
  files=()
  for file in "$part"/*.tar.xz "$part"/*.whl; do
    [ -e "$file" ] && files+=("$file")
  done
  if [ "${#files[@]}" = 0 ]; then
    echo "gpu_unpack.sh: $part holds neither wheels nor archives; give a part made by gpu_pack.sh" >&2
    exit 1
  fi
  printf '%s\0' "${files[@]}" | xargs -0 -n 1 -P "$(nproc)" bash -c 'unpack "$0"'
done
