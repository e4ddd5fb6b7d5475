# datamover and backup, for a shared disk. The context is a folder that scripts/release made:
#   docker build -f deploy/docker/datamover.Dockerfile --build-arg VERSION=0.1.0 release/0.1.0
FROM debian:12.12-slim
ARG VERSION

# Debian's stable release changes by security updates only, which a version pinned here would keep out.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --create-home datamon

ADD datamon-${VERSION}-linux-x64.tar.gz /opt/
RUN ln -s "datamon-${VERSION}" /opt/datamon \
 && ln -s /opt/datamon/scripts/datamon /opt/datamon/scripts/datamover /opt/datamon/scripts/backup /usr/local/bin/ \
 && datamon version

# Where files are to be unlinked, the pod runs as their owner: securityContext.runAsUser.
USER 10001
WORKDIR /home/datamon
ENTRYPOINT ["datamover"]
