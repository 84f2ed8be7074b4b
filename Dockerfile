# Three images of the service: `docker build .` makes `cpu`, the last stage; `--target gpu` and
# `--target triton-client` (no ONNX Runtime: the graph runs in a Triton server) the others.
# constraints.txt pins what pip installs, and only wheels are taken, so no stage needs a compiler.
# What ships is a base and /opt/venv, neither with pip; nothing writes to a file when it runs, so the
# root file system may be read-only. The starter bundle is inside; docs/deployment.md mounts or bakes another.

ARG PYTHON_IMAGE=python:3.11-slim-bookworm
# onnxruntime-gpu 1.31 from PyPI asks for CUDA 13 and cuDNN 9; an older one may ask for CUDA 12.
ARG CUDA_IMAGE=nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04

FROM ${PYTHON_IMAGE} AS wheel
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/root/.cache/pip \
    PIP_CONSTRAINT=/src/constraints.txt python -m pip wheel --no-deps --wheel-dir /dist .

FROM ${PYTHON_IMAGE} AS cpu-venv
COPY constraints.txt /
COPY --from=wheel /dist /dist
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv --without-pip /opt/venv \
    && python -m pip --python /opt/venv/bin/python install --only-binary :all: \
        --constraint /constraints.txt "$(echo /dist/*.whl)[cpu,otel,fetch]"

FROM ${PYTHON_IMAGE} AS triton-client-venv
COPY constraints.txt /
COPY --from=wheel /dist /dist
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv --without-pip /opt/venv \
    && python -m pip --python /opt/venv/bin/python install --only-binary :all: \
        --constraint /constraints.txt "$(echo /dist/*.whl)[triton,otel,fetch]"

# The gpu stages have not been built on their CUDA base nor run on a GPU, for want of both. On plain
# Debian 13 in its place they build, serve with ALIGNET_DEVICE=cpu, and refuse to start with cuda.
FROM ${CUDA_IMAGE} AS gpu-base
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/*

FROM gpu-base AS gpu-venv
RUN apt-get update && apt-get install -y --no-install-recommends python3-venv python3-pip
COPY constraints.txt /
COPY --from=wheel /dist /dist
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv --without-pip /opt/venv \
    && python3 -m pip --python /opt/venv/bin/python install --only-binary :all: \
        --constraint /constraints.txt "$(echo /dist/*.whl)[gpu,otel,fetch]"

FROM gpu-base AS gpu
COPY --from=gpu-venv /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 \
    ALIGNET_DEVICE=cuda \
    ALIGNET_LOG_FORMAT=json \
    ALIGNET_HOST=0.0.0.0 \
    ALIGNET_PORT=8000
USER 10001:10001
WORKDIR /
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.build_opener(u.ProxyHandler({})).open(f'http://127.0.0.1:{os.environ[\"ALIGNET_PORT\"]}/health/ready', timeout=2)"]
CMD ["alignet-serve"]

FROM ${PYTHON_IMAGE} AS slim
# Python images bring pip, in one of these places; what serves needs none.
RUN rm -rf /usr/local/lib/python3*/site-packages/pip /usr/local/lib/python3*/site-packages/pip-* \
    /usr/local/lib/python3*/ensurepip /usr/local/bin/pip* \
    /usr/lib/python3/dist-packages/pip /usr/lib/python3/dist-packages/pip-* /usr/bin/pip*
# ONNX Runtime's Linux wheels send telemetry to Microsoft unless this is set (its Privacy.md).
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 \
    ALIGNET_LOG_FORMAT=json \
    ALIGNET_HOST=0.0.0.0 \
    ALIGNET_PORT=8000
USER 10001:10001
WORKDIR /
EXPOSE 8000
# An error status raises, so the check fails until the bundle is verified and warm.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.build_opener(u.ProxyHandler({})).open(f'http://127.0.0.1:{os.environ[\"ALIGNET_PORT\"]}/health/ready', timeout=2)"]
CMD ["alignet-serve"]

# Set ALIGNET_TRITON_URL=host:port when it runs.
FROM slim AS triton-client
COPY --from=triton-client-venv /opt/venv /opt/venv

FROM slim AS cpu
COPY --from=cpu-venv /opt/venv /opt/venv
