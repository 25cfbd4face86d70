# Builds a small image whose entry point is `domicile`. Mount your configuration at /etc/domicile:
#   docker build -t domicile .
#   docker run -v "$PWD/my-config:/etc/domicile:ro" -v ledger:/var/lib/domicile -p 8443:8443 -p 9443:9443 domicile
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --locked --release

FROM debian:bookworm-slim
RUN useradd --system --home-dir /var/lib/domicile --create-home domicile
COPY --from=build /src/target/release/domicile /usr/local/bin/domicile
COPY --from=build /src/geoip /usr/share/domicile/geoip
COPY config/minimal.yaml /etc/domicile/domicile.yaml
WORKDIR /etc/domicile
USER domicile
ENV DOMICILE_CONFIG=/etc/domicile/domicile.yaml
EXPOSE 8080 8443 9443
STOPSIGNAL SIGTERM
ENTRYPOINT ["domicile"]
CMD ["run"]
