#!/usr/bin/env bash
# Packs what `benchmarks/gpu_run.py` needs for a CUDA machine without network that has PyTorch, in parts that travel on their own.
#   gpu_pack.sh PACKER OUT [PART_MIB]
# PACKER packs the engine into OUT/part1, OUT/part2, ...: wheels and archives named *.tar.xz. Added here, to the last of them, are the
# pure Python packages that Dooly needs beside the engine's; CatBoost is not one of them, as predicting needs no GPU. A last part that
# fits the first joins it: each part costs a journey. A part above PART_MIB (60) ends the script with an error.
# On the machine: gpu_unpack.sh SITE PART..., then PYTHONPATH=SITE.
set -euo pipefail
packer=$1 out=$(realpath -m "$2") most=${3:-60}
"$packer" "$out"
parts=("$out"/part*)
last=${parts[-1]}
python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 -d "$last" \
  'pytest>=9.0' 'pluggy>=1.6' iniconfig 'networkx>=3.5' 'typer>=0.28' nvidia-ml-py
# vLLM 0.26 pins an apache-tvm-ffi that is older than its xgrammar calls: the engine does not start with it.
if compgen -G "$out/part*/apache_tvm_ffi-*.whl" >/dev/null; then
  rm "$out"/part*/apache_tvm_ffi-*.whl
  python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_24_x86_64 --platform manylinux2014_x86_64 \
    -d "$last" 'apache-tvm-ffi>=0.1.11'
fi
for wheel in "$out"/part*/pycountry-*.whl; do # of its 8 MB all but 0.2 are translations
  [ -e "$wheel" ] && python3 - "$wheel" <<'P'
import sys, zipfile
from pathlib import Path

wheel = Path(sys.argv[1])
with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(wheel.with_suffix(".less"), "w", zipfile.ZIP_DEFLATED) as new:
    for entry in old.infolist():
        if not entry.filename.startswith("pycountry/locales/"):
            new.writestr(entry, old.read(entry), zipfile.ZIP_DEFLATED)
wheel.with_suffix(".less").replace(wheel)
P
done
size() { du -sm --apparent-size "$1" | cut -f1; }
if [ "$last" != "${parts[0]}" ] && [ $(($(size "${parts[0]}") + $(size "$last"))) -le "$most" ]; then
  find "$last" -type f -exec mv -t "${parts[0]}" {} +
  rmdir "$last"
fi
for part in "$out"/part*; do
  echo "$part $(size "$part") MiB"
  if [ "$(size "$part")" -gt "$most" ]; then
    echo "gpu_pack.sh: $part is $(size "$part") MiB, above $most; move files of it to a part of its own" >&2
    exit 1
  fi
done
