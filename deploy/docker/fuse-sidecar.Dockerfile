# The sidecar that shows bundles as files and uploads results. The context is a folder that scripts/release made:
#   docker build -f deploy/docker/fuse-sidecar.Dockerfile --build-arg VERSION=0.1.0 release/0.1.0
FROM debian:12.12-slim
ARG VERSION

# Debian's stable release changes by security updates only, which a version pinned here would keep out.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates fuse3 \
 && rm -rf /var/lib/apt/lists/*

ADD datamon-${VERSION}-linux-x64.tar.gz /opt/
RUN ln -s "datamon-${VERSION}" /opt/datamon \
 && ln -s /opt/datamon/scripts/datamon /opt/datamon/scripts/wrap_datamon.sh /usr/local/bin/ \
 && ln -s /opt/datamon/scripts/wrap_datamon.sh /opt/datamon/scripts/wrap_application.sh / \
 && datamon version

# Root: only a privileged container may let others see what it mounts (mountPropagation: Bidirectional).
ENV HOME=/root
WORKDIR /
ENTRYPOINT ["/wrap_datamon.sh"]
