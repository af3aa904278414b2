# CPU image: ckzd beside the training jobs of a node. Run it as the user that owns the checkpoints, with the least
# share of the CPU that there is (a container's nice values do not count outside of it):
#   docker build -t ckzd .
#   docker run --cpu-shares 2 --user 1000:1000 -v /ckpts:/ckpts -v ckzd-state:/var/lib/ckzd \
#     -v ./ckzd.toml:/etc/ckzd/ckzd.toml:ro ckzd
FROM python:3.11-slim AS build
ENV VIRTUAL_ENV=/opt/ckzd PATH=/opt/ckzd/bin:$PATH PIP_NO_CACHE_DIR=1 UV_NO_CACHE=1
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN python -m venv "$VIRTUAL_ENV"
WORKDIR /src
COPY pyproject.toml README.md ./
COPY ckzd ckzd
COPY deploy deploy
RUN sh deploy/install.sh

FROM python:3.11-slim
COPY --from=build /opt/ckzd /opt/ckzd
# the journal's directory is open to whichever user runs it; the image holds nothing else to protect
RUN useradd --system --uid 10019 --create-home --home-dir /var/lib/ckzd ckzd && chmod 1777 /var/lib/ckzd
# all interfaces of the container; what the host sees of it is the host's choice (-p)
ENV PATH=/opt/ckzd/bin:$PATH STATE_DIRECTORY=/var/lib/ckzd CKZD_DAEMON__HOST=0.0.0.0 PYTHONUNBUFFERED=1
USER ckzd
VOLUME ["/var/lib/ckzd"]
EXPOSE 19840
ENTRYPOINT ["ckzd"]
CMD ["serve"]
