# One image for every part of Dalil: the steps of a pipeline, the operator, MLflow's server.
#
#     docker build -t dalil .
#
# TORCH_INDEX: an additional package index that offers the wanted build of torch, see docs/kubernetes.md.
# FBGEMM: fbgemm-gpu-cpu, or fbgemm-gpu for CUDA.
FROM python:3.11-slim-bookworm AS build
ARG TORCH_INDEX=
ARG FBGEMM=fbgemm-gpu-cpu
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /build
COPY requirements.txt requirements-torchrec.txt requirements-cluster.txt ./
# Tests, headers and tools of others are a seventh of the whole, and nothing here runs them.
RUN pip install ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -r requirements.txt -r requirements-cluster.txt \
 && sed "s/^fbgemm-gpu-cpu/$FBGEMM/" requirements-torchrec.txt > torchrec.txt \
 && pip install --no-deps -r torchrec.txt \
 && cd /opt/venv/lib/python3.11/site-packages \
 && rm -r torch/test torch/include && find torch/bin -type f ! -name torch_shm_manager -delete \
 && find matplotlib networkx numpy pandas pyarrow scipy sklearn sympy -type d -name tests -prune -exec rm -r {} +

FROM python:3.11-slim-bookworm
RUN groupadd --gid 10001 dalil && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp dalil
COPY --from=build /opt/venv /opt/venv
COPY pipelines /opt/dalil/pipelines
COPY components /opt/dalil/components
COPY trainer /opt/dalil/trainer
ENV PATH=/opt/venv/bin:$PATH PYTHONPATH=/opt/dalil HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
RUN python -m compileall -q /opt/dalil \
 && python -c 'import components.shipping, mlflow.pyfunc, pipelines.operator, torchrec, trainer.fit, lightgbm'
USER 10001:10001
WORKDIR /tmp
CMD ["python", "-m", "pipelines.cli", "--help"]
