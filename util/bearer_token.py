"""Prints a fresh access token, to paste as the proxy password of another program: python util/bearer_token.py

The token alone goes to stdout, renewed first if it must be; also while the proxy runs. Without a login it says so on
stderr and ends with status 1.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
PYTHON = TOP / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


async def fresh_token() -> str:
    """The access token of the login that would pay next. Raises ProxyError and ConfigError with the words to show."""
    from server.config import Config
    from server.errors import ProxyError
    from server.start import accounts_of

    config = Config.load()
    accounts = accounts_of(config)
    await accounts.start()
    try:
        kinds = {account.kind for account in accounts.all()}
        if kinds == {"api_key"}:
            raise ProxyError(401, "There is no token, because you use an API key. Paste the API key itself instead.")
        return (await accounts.credential(kinds=("platform", "subscription"))).secret
    finally:
        await accounts.close()


def main() -> int:
    if sys.argv[1:]:
        print(__doc__)
        return 0 if sys.argv[1] in ("-h", "--help") else 2
    if PYTHON.exists() and Path(sys.prefix).resolve() != PYTHON.parent.parent.resolve():
        return subprocess.call([str(PYTHON), __file__])  # the proxy's own Python has what this needs
    sys.path.insert(0, str(TOP))
    try:
        from server.config import ConfigError
        from server.errors import ProxyError
    except ImportError:
        print("Start the proxy once with run.sh (run.bat); that installs what this needs.", file=sys.stderr)
        return 1
    try:
        print(asyncio.run(fresh_token()))
    except (ProxyError, ConfigError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
