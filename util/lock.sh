#!/bin/sh
# Writes requirements.txt and requirements-dev.txt anew from the .in files, and the SBOM from the first of them:
# util/lock.sh [--upgrade]   (needs uv, and a .venv with the development packages: ./run.sh test makes it)
set -eu
cd "$(dirname "$0")/.."

lock() {
    uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
        --custom-compile-command util/lock.sh "$@"
}

lock requirements.in --output-file requirements.txt "$@"
lock requirements-dev.in --output-file requirements-dev.txt "$@"
.venv/bin/python util/sbom.py
