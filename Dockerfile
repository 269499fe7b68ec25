# The daemon for any container host: it listens on port 3000, is alive while GET /health answers, and keeps all that it
# has in /data. Settings come from the environment; provider keys too, or as files under $CREDENTIALS_DIRECTORY.

# The interpreter that the tests run on. Both stages have the same, since an environment belongs to its interpreter.
FROM python:3.11-slim-bookworm AS build
WORKDIR /opt/goosestack
COPY requirements.lock ./
RUN python -m venv .venv && .venv/bin/pip install --no-cache-dir --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY goosestack ./goosestack
RUN .venv/bin/pip install --no-cache-dir --no-deps --no-build-isolation .

FROM python:3.11-slim-bookworm
COPY --from=build /opt/goosestack/.venv /opt/goosestack/.venv
# By number, so that a host which asks for a user that is not root can see it. A new volume takes over the owner and mode
# of /data; one that is there already must belong to 10001.
RUN install -d -m 0700 -o 10001 -g 10001 /data
USER 10001:10001
WORKDIR /data
VOLUME /data
ENV PATH=/opt/goosestack/.venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    HOST=0.0.0.0 PORT=3000 DB_PATH=/data/goosestack.db
EXPOSE 3000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f'http://127.0.0.1:{os.environ[\"PORT\"]}/health', timeout=4)"]
# SIGTERM, the default signal, lets requests finish for DRAIN_S (30 s): give it a minute before it is killed.
ENTRYPOINT ["goosestack"]
CMD ["serve"]
