# The image of the proxy: built once, run by a user without a name or any right, with nothing to write to.
#   docker build -t sniproxy .
#   docker run --read-only -p 8443:8443 -v $PWD/config:/etc/sniproxy/config:ro sniproxy
# BASE needs Python 3.11 or later, with its venv module; both stages have the same one.
ARG BASE=python:3.11-slim

FROM ${BASE} AS build
# 1 compiles the hot path, which takes a compiler here and none in the image; 0 leaves it as it is.
ARG SNIPROXY_COMPILE=1
RUN if [ "$SNIPROXY_COMPILE" = 1 ] && ! command -v gcc; then \
        apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && \
        { [ -x /usr/local/bin/python3 ] || apt-get install -y --no-install-recommends python3-dev; }; \
    fi
WORKDIR /src
COPY pyproject.toml constraints.txt ./
RUN python3 -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
        >requirements.txt && \
    python3 -m venv /build && \
    /build/bin/pip install --disable-pip-version-check --constraint constraints.txt \
        --requirement requirements.txt setuptools mypy types-PyYAML
COPY setup.py README.md LICENSE ./
COPY sniproxy sniproxy
COPY bench/__init__.py bench/hello.py bench/training.py bench/
# Compiled twice: to count which way the code goes at work, and by what was counted.
RUN if [ "$SNIPROXY_COMPILE" = 1 ]; then \
        SNIPROXY_PROFILE=record /build/bin/pip install --disable-pip-version-check --no-build-isolation --no-deps \
            --target /profiled . && \
        PYTHONSAFEPATH=1 PYTHONPATH=/profiled:. /build/bin/python -m bench.training && \
        rm -r build/lib*; \
    fi
RUN SNIPROXY_PROFILE=use /build/bin/pip wheel --disable-pip-version-check --no-build-isolation --no-deps \
        --wheel-dir /wheels . && \
    python3 -m venv --without-pip /opt/sniproxy && \
    /build/bin/pip --python /opt/sniproxy/bin/python3 install --disable-pip-version-check \
        --constraint constraints.txt /wheels/*.whl

FROM ${BASE}
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="sniproxy" \
      org.opencontainers.image.description="An SNI forward proxy for TLS egress that knows who is calling and says why it decided." \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/sniproxy /opt/sniproxy
ENV PATH=/opt/sniproxy/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
EXPOSE 8443 9402 9403
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s \
    CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9402/healthz', timeout=2)"]
ENTRYPOINT ["sniproxy"]
CMD ["run", "--config", "/etc/sniproxy/config/sniproxy.yaml"]
