#!/bin/sh
# Starts Tavern Proxy; the first time it installs what is needed, into .venv beside this file. ./run.sh --help
root=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
venv=$root/.venv

start() { # start PYTHON "what else it must be able to do" ARGUMENTS...: never returns where that Python will do
    python=$1
    check="import sys; $2; sys.exit(sys.version_info < (3, 11))"
    shift 2
    if "$python" -I -S -c "$check" 2>/dev/null; then exec "$python" "$root/util/bootstrap.py" "$@"; fi
}

if [ -f "$venv/ready" ]; then start "$venv/bin/python" pass "$@"; fi
for need in "import ensurepip" pass; do # one that can install is best; without such a one, any can say what is missing
    for python in python3.14 python3.13 python3.12 python3.11 python3 python; do start "$python" "$need" "$@"; done
done

old=$(python3 --version 2>/dev/null)
cat >&2 <<END
Tavern Proxy needs Python 3.11 or newer, and found ${old:-none} on this computer. Get it, then start ./run.sh again:

  Debian, Ubuntu   sudo apt install python3 python3-venv
  Fedora           sudo dnf install python3
  Arch             sudo pacman -S python
  macOS            brew install python, or the installer from https://www.python.org/downloads/

If your system offers only an older one, use Docker: see README.md.
END
exit 1
