# CPU image: ckzd beside training jobs on a node's checkpoint directory. Build: docker build -t ckzd .
FROM python:3.11-slim AS build
ENV VIRTUAL_ENV=/opt/ckzd PATH=/opt/ckzd/bin:$PATH PIP_NO_CACHE_DIR=1 UV_NO_CACHE=1
RUN python -m venv "$VIRTUAL_ENV"
WORKDIR /src
COPY pyproject.toml README.md ./
COPY ckzd ckzd
COPY deploy deploy
RUN sh deploy/install.sh

FROM python:3.11-slim
COPY --from=build /opt/ckzd /opt/ckzd
# The ids that own the checkpoints are the ones to run as: docker run --user 1000:1000 ...
RUN useradd --system --uid 10019 --create-home --home-dir /var/lib/ckzd ckzd
ENV PATH=/opt/ckzd/bin:$PATH STATE_DIRECTORY=/var/lib/ckzd PYTHONUNBUFFERED=1
USER ckzd
VOLUME ["/var/lib/ckzd"]
EXPOSE 19840
ENTRYPOINT ["ckzd"]
CMD ["serve"]
