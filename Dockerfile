# Builds a small image whose entry point is `domicile`. It reads /etc/domicile/domicile.yaml. Its working directory, to which
# relative paths refer, is /var/lib/domicile. That directory contains `geoip/country.mmdb`; mount a volume for `ledger/`.
#   docker build -t domicile .
#   docker run -v "$PWD/my-config:/etc/domicile:ro" -v ledger:/var/lib/domicile/ledger -p 8443:8443 -p 9443:9443 domicile
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
# Debug information is for profiling, and five times as large as the program.
RUN CARGO_PROFILE_RELEASE_DEBUG=none CARGO_PROFILE_RELEASE_STRIP=debuginfo cargo build --locked --release

FROM debian:bookworm-slim
RUN useradd --system --home-dir /var/lib/domicile --create-home domicile && install -d -o domicile /var/lib/domicile/ledger
COPY --from=build /src/target/release/domicile /usr/local/bin/domicile
COPY --from=build /src/geoip /var/lib/domicile/geoip
COPY config/minimal.yaml /etc/domicile/domicile.yaml
# Clients outside the container cannot connect to its loopback address.
RUN sed -i 's|- address: "127.0.0.1:8080"|- { address: "0.0.0.0:8080", cleartext: true }|' /etc/domicile/domicile.yaml
WORKDIR /var/lib/domicile
USER domicile
ENV DOMICILE_CONFIG=/etc/domicile/domicile.yaml
EXPOSE 8080 8443 9443
STOPSIGNAL SIGTERM
ENTRYPOINT ["domicile"]
CMD ["run"]
