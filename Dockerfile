# The packages are installed here; only the finished folder goes on, so that nothing left over from it stays in the image.
FROM python:3.13-slim-bookworm AS packages
WORKDIR /app
COPY requirements.txt .
RUN python -m venv --without-pip .venv \
    && python -m pip --python .venv/bin/python install --require-hashes --only-binary=:all: --no-cache-dir \
        --disable-pip-version-check --root-user-action=ignore -r requirements.txt


FROM python:3.13-slim-bookworm
LABEL org.opencontainers.image.title="Tavern Proxy" \
    org.opencontainers.image.description="SillyTavern and its cousins chat with Claude, through a small proxy." \
    org.opencontainers.image.version="0.1.0"

# The number is fixed, so that a folder of the host can be made this user's: chown 10001:10001 FOLDER
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /data --shell /usr/sbin/nologin tavern \
    && install --directory --mode 0700 --owner tavern --group tavern /data
VOLUME /data

WORKDIR /app
COPY --from=packages /app/.venv .venv
COPY presets presets
COPY server server

ENV PATH=/app/.venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PROXY_HOST=0.0.0.0 \
    PROXY_DATA_DIR=/data \
    PROXY_AUTO_OPEN_BROWSER=false \
    PROXY_MAKE_FIRST_KEY=true
RUN python -m compileall -q server

USER 10001:10001
EXPOSE 42069
HEALTHCHECK --interval=15s --timeout=5s --start-period=10s CMD ["python", "-c", \
    "import os, urllib.request as u; u.urlopen(f'http://127.0.0.1:{os.environ.get(\"PROXY_PORT\", 42069)}/health')"]

# The exec form: the server itself receives the signal to stop, and ends in good order.
ENTRYPOINT ["python", "-m", "server"]
