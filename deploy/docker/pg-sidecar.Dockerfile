# The sidecar that serves bundles as PostgreSQL databases. The context is a folder that scripts/release made:
#   docker build -f deploy/docker/pg-sidecar.Dockerfile --build-arg VERSION=0.1.0 release/0.1.0
FROM debian:12.12-slim
ARG VERSION

# Debian's stable release changes by security updates only, which a version pinned here would keep out.
# hadolint ignore=DL3008
RUN groupadd --gid 999 postgres \
 && useradd --uid 999 --gid 999 --home-dir /var/lib/postgresql --shell /bin/sh postgres \
 && apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates fuse3 postgresql-15 \
 && rm -rf /var/lib/apt/lists/* /var/lib/postgresql/15

ADD datamon-${VERSION}-linux-x64.tar.gz /opt/
RUN ln -s "datamon-${VERSION}" /opt/datamon \
 && ln -s /opt/datamon/scripts/datamon /opt/datamon/scripts/wrap_datamon_pg.sh /usr/local/bin/ \
 && ln -s /opt/datamon/scripts/wrap_datamon_pg.sh /opt/datamon/scripts/wrap_application.sh / \
 && datamon version

ENV HOME=/var/lib/postgresql PATH=/usr/lib/postgresql/15/bin:$PATH
WORKDIR /var/lib/postgresql
# postgres, whom the database server runs as.
USER 999
ENTRYPOINT ["/wrap_datamon_pg.sh"]
