# docker build --target cpu --tag prefloop:cpu .       docker build --target cuda --tag prefloop:cuda .
#
# A container's command is one of prefloop's; runs go to /work/runs, by user 1000:
#   docker run --volume "$PWD/runs:/work/runs" prefloop:cpu run configs/quickstart.yaml
# Servers listen on the container's own 127.0.0.1: 'prefloop up' needs --network host to be seen from outside.

FROM python:3.11-slim-bookworm AS base
# libgomp1 and libnuma1: threads of PyTorch and vLLM. g++: on a GPU machine kernels are compiled.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ libgomp1 libnuma1 make \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home --uid 1000 prefloop \
 && install --directory --owner prefloop --group prefloop /work /work/runs
USER 1000
WORKDIR /work
ENV PATH=/work/.venv/bin:$PATH PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1
COPY --chown=1000 Makefile pyproject.toml hatch_build.py constraints.txt README.md LICENSE ./
COPY --chown=1000 prefloop prefloop
COPY --chown=1000 pipeline pipeline
COPY --chown=1000 reward_models reward_models
COPY --chown=1000 flows flows
COPY --chown=1000 configs configs
VOLUME /work/runs
# A server must answer; of anything else the main process must be there. That takes a shell.
# hadolint ignore=DL3025
HEALTHCHECK --interval=30s --timeout=20s --start-period=120s CMD \
  case "$(tr '\0' ' ' < /proc/1/cmdline)" in \
    *" up "* | *" ui "*) python -c "import urllib.request as web; web.urlopen('http://127.0.0.1:4200/api/health', timeout=15)" ;; \
    *) test -d /proc/1 ;; \
  esac
ENTRYPOINT ["prefloop"]
CMD ["run", "configs/quickstart.yaml"]

FROM base AS cuda
RUN make install EXTRA=gpu

FROM base AS cpu
RUN make install EXTRA=cpu
