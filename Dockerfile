# Builds a small image whose entry point is `domicile`. It reads /etc/domicile/domicile.yaml (packaging/container.yaml by default). Its
# working directory, to which relative paths refer, is /var/lib/domicile. It contains `geoip/country.mmdb`; mount a volume for `ledger/`.
#   docker build -t domicile .
#   docker run -e APP=http://app:3000 -p 8080:8080 domicile
#   docker run -v "$PWD/my-config:/etc/domicile:ro" -v ledger:/var/lib/domicile/ledger -p 8443:8443 -p 9443:9443 domicile
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
# Debug information is for profiling, and five times as large as the program.
RUN CARGO_PROFILE_RELEASE_DEBUG=none CARGO_PROFILE_RELEASE_STRIP=symbols cargo build --locked --release

FROM debian:bookworm-slim
# For app servers and ACME servers with certificates of public authorities.
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/*
RUN useradd --system --home-dir /var/lib/domicile --create-home domicile && install -d -o domicile /var/lib/domicile/ledger
COPY --from=build /src/target/release/domicile /usr/local/bin/domicile
COPY --from=build /src/geoip /var/lib/domicile/geoip
COPY packaging/container.yaml /etc/domicile/domicile.yaml
WORKDIR /var/lib/domicile
USER domicile
ENV DOMICILE_CONFIG=/etc/domicile/domicile.yaml
EXPOSE 8080 8443 9443
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s CMD ["domicile", "status", "--ready"]
ENTRYPOINT ["domicile"]
CMD ["run"]
