# Nothing but wrap_application.sh, for an init container that copies it into a volume of the application's
# container. The context is a folder that scripts/release made:
#   docker build -f deploy/docker/wrapper.Dockerfile --build-arg VERSION=0.1.0 release/0.1.0
FROM busybox:1.36.1 AS release
ARG VERSION
ADD datamon-${VERSION}-linux-x64.tar.gz /opt/
RUN ln -s "datamon-${VERSION}" /opt/datamon

FROM busybox:1.36.1
COPY --from=release /opt/datamon/scripts/wrap_application.sh /
USER 65534
CMD ["cp", "/wrap_application.sh", "/scripts/"]
